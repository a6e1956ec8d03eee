"""Messages to a made-up shop, with the people, products, places and order numbers in them marked.

Each is put together from the lists below with a fixed seed. They are as untidy as real data: names in small letters,
words of names that are none (``the lamp``), numbers that are no orders, marks that somebody forgot, copies.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

SEED = 7
MESSAGES = 700

SMALL_LETTERS = 0.2
FORGOTTEN = 0.02  # marks that should be there and are not
COPIES = 0.02

FIRST = (
    "Amina,Bruno,Chiara,Dmitri,Elena,Farid,Greta,Hugo,Ines,Jonas,Kavya,Lars,Maria,Nadia,Oskar,Priya,Quentin,Rosa,"
    "Samuel,Tove,Umar,Vera,Wei,Ximena,Yusuf,Zoe"
)
LAST = (
    "Abbott,Bergström,Costa,Duval,Eriksen,Fischer,Gallo,Haddad,Ivanova,Jensen,Kowalski,Lindgren,Moreau,Novak,Okafor,"
    "Pereira,Quist,Rossi,Sato,Tanaka,Ueda,Varga,Weber,Xu,Yilmaz,Zhang"
)
LINES = "Aurora,Birch,Cinder,Delta,Ember,Fjord,Glade,Harbor,Iris,Juniper,Kestrel,Lumen"
KINDS = (
    "desk lamp,kettle,office chair,rain jacket,frying pan,coffee grinder,bookshelf,running shoes,headphones,blanket,"
    "camping stove,garden hose"
)
PLACES = (
    "Lyon,Porto,Graz,Ghent,Malmö,Kraków,Turin,Basel,Cork,Bergen,Seville,Tampere,Aarhus,Leipzig,Utrecht,San Sebastián,"
    "Baden-Baden,Novi Sad,Stratford upon Avon,La Rochelle,King's Lynn,Bad Ischl"
)

SENTENCES = [
    "I ordered the {product} on Monday and {place} is not that far.",
    "Could you send {order} to my office in {place} instead?",
    "{person} here, my {product} arrived with a broken part.",
    "Please change the name on {order} to {person}.",
    "Is the {product} still in stock in your {place} shop?",
    "My colleague {person} will pick up {order} in {place} tomorrow.",
    "The {product} and the {product} came in one box, thank you.",
    "I spoke to {person} in {place} last week about {order}.",
    "Where is {order}? It left {place} four days ago.",
    "The lamp flickers and the manual of the {product} does not help.",
    "I paid 49.90 for the {product}, number {order}, and got an invoice for 59.90.",
    "Regards, {person}, {place}",
    "We moved from {place} to {place}, so {order} needs another address.",
    "Can {person} call me back on 0171 5550 about the chair?",
    "Two of these jackets please, and a {product} for {person}.",
    "I want to return the {product} that {person} gave me.",
    "the tracking of {order} says {place} since last Friday",
    "No order yet, I only want to know whether a {product} fits in a small kitchen.",
    "Nothing has happened for a week and nobody answers the phone.",
    "How long do I have to send something back?",
]

PART = re.compile(r"\{(\w+)\}")


def write_data(folder: Path) -> None:
    """``messages.jsonl``: ``message_id``, ``text`` and ``entities``, a list of ``{start, end, label}``."""
    draw = random.Random(SEED)
    rows: list[dict[str, Any]] = []
    for number in range(MESSAGES):
        text, marks = (rows[-1]["text"], rows[-1]["entities"]) if rows and draw.random() < COPIES else message(draw)
        rows.append({"message_id": 50_000 + number, "text": text, "entities": marks})
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "messages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def message(draw: random.Random) -> tuple[str, list[dict[str, Any]]]:
    """One to three sentences, and what is marked in them."""
    text, marks = "", []
    for sentence in draw.sample(SENTENCES, draw.randint(1, 3)):
        text += " " if text else ""
        at = 0
        for part in PART.finditer(sentence):
            text += sentence[at : part.start()]
            name = named(part[1], draw)
            marks.append({"start": len(text), "end": len(text) + len(name), "label": part[1]})
            text += name
            at = part.end()
        text += sentence[at:]
    if draw.random() < SMALL_LETTERS:
        text = text.lower()  # none of the letters above changes its length
    return text, [mark for mark in marks if draw.random() >= FORGOTTEN]


def named(kind: str, draw: random.Random) -> str:
    """A person, a product, a place or an order, as customers write it."""
    if kind == "person":
        first, last = one_of(FIRST, draw), one_of(LAST, draw)
        return draw.choice([f"{first} {last}", f"{first} {last}", f"{first[0]}. {last}", first, f"Ms {last}"])
    if kind == "product":
        return draw.choice([f"{one_of(LINES, draw)} {one_of(KINDS, draw)}", one_of(LINES, draw)])
    if kind == "place":
        return one_of(PLACES, draw)
    number = draw.randint(10_000, 99_999)
    return draw.choice([f"A-{number}", f"order {number}", f"#{number}", f"{number}-{draw.choice('BKX')}"])


def one_of(names: str, draw: random.Random) -> str:
    """One of names with a comma between them."""
    return draw.choice(names.split(","))
