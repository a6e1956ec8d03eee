"""A made-up help centre: articles on the troubles of products, and what customers ask, in words of their own.

Customers name products and troubles otherwise than the articles do, so that counting common words does not do. Some ask
for two things, and a part of the articles is never asked for.
"""

import csv
import random
from pathlib import Path
from typing import Any

from training.samples.text_classification import expand

SEED = 7
QUESTIONS = 420
UNASKED = 0.15  # articles that no customer needs
WORDED_ALIKE = 0.25  # questions that call the product what the article calls it
SECOND = 0.3  # questions that a second article answers in part

PRODUCTS: dict[str, list[str]] = {
    "Kettle K2": ["water boiler", "thing for boiling water", "tea boiler"],
    "Desk lamp L1": ["reading light", "table light", "light on my desk"],
    "Headphones H5": ["headset", "earphones", "cans"],
    "Vacuum cleaner V7": ["hoover", "dust sucker", "floor cleaner"],
    "Blender B3": ["smoothie maker", "mixer", "shake machine"],
    "Space heater S4": ["radiator", "warm air blower", "little stove"],
    "Camera C9": ["photo machine", "digicam", "picture taker"],
    "Loudspeaker P6": ["boombox", "sound box", "music box"],
    "Smart watch W2": ["wrist computer", "fitness band", "thing on my wrist"],
    "Fan F8": ["ventilator", "air mover", "cooling blower"],
    "Bathroom scale N1": ["weighing machine", "body weight meter", "scales"],
    "Coffee machine M3": ["espresso maker", "barista box", "brewer"],
}

TROUBLES: dict[str, tuple[str, list[str]]] = {
    "No power": (
        "Check that the mains lead sits firmly in the wall socket and that the fuse has not tripped.",
        ["my {0} is {dead|stone dead}", "{nothing happens|no sign of life} when I press the button of the {0}"],
    ),
    "Noise during operation": (
        "A worn bearing rattles. Remove the cover, clean out dust and grease the axle.",
        ["the {0} {hums|squeals|is so loud} that {I cannot think|the dog runs off}", "why does my {0} make a racket?"],
    ),
    "Overheating": (
        "The thermal cut-out protects the unit. Let it cool for an hour and free the air vents.",
        ["the {0} gets {burning hot|too hot to touch}", "my {0} {smells of burning|nearly burned my hand}"],
    ),
    "Pairing over Bluetooth": (
        "Hold the pairing key for five seconds, then choose the device in the settings of your telephone.",
        ["my {phone|mobile} cannot {find|see} the {0}", "how do I {link|hook up} the {0} {to|with} my {phone|mobile}?"],
    ),
    "Cleaning and descaling": (
        "Wipe the housing with a damp cloth and remove lime with citric acid.",
        ["how do I get the {0} {spotless|rid of the crust}?", "there is {muck|chalk|grime} all over my {0}"],
    ),
    "Guarantee and repair": (
        "Within two years of purchase our workshop mends defects free of charge. Enclose the receipt.",
        ["who fixes my {0} {for nothing|at no cost}?", "is the {0} still {covered|insured} after {a year|18 months}?"],
    ),
    "Spare parts": (
        "Order replacement components by the number on the type plate.",
        [
            "where can I {buy|get} a new {lid|knob|strap} for the {0}?",
            "a bit of my {0} {snapped|came} off, can I get one?",
        ],
    ),
    "Disposal and recycling": (
        "Take worn-out devices to a collection point; batteries go into a bin of their own.",
        ["how do I {get rid of|throw away} my old {0}?", "does the {0} go into the {rubbish|household waste}?"],
    ),
}


def write_data(folder: Path) -> None:
    """``articles.csv`` (article_id, title, body) and ``questions.csv`` (question_id, question, article_id, use)."""
    draw = random.Random(SEED)
    articles = [(product, trouble) for product in PRODUCTS for trouble in TROUBLES]
    write_table(
        folder / "articles.csv",
        ["article_id", "title", "body"],
        [[number, f"{product}: {trouble}", TROUBLES[trouble][0]] for number, (product, trouble) in enumerate(articles)],
    )
    asked = draw.sample(range(len(articles)), round((1 - UNASKED) * len(articles)))
    rows: list[list[Any]] = []
    for number in range(QUESTIONS):
        article = draw.choice(asked)
        product, trouble = articles[article]
        rows.append([number, question(product, trouble, draw), article, 2])
        same = [one for one in asked if articles[one][0] == product and one != article]
        if same and draw.random() < SECOND:
            rows.append([number, rows[-1][1], draw.choice(same), 1])
    write_table(folder / "questions.csv", ["question_id", "question", "article_id", "use"], rows)


def question(product: str, trouble: str, draw: random.Random) -> str:
    """What a customer asks."""
    name = product.rsplit(" ", 1)[0].lower() if draw.random() < WORDED_ALIKE else draw.choice(PRODUCTS[product])
    asked = expand(draw.choice(TROUBLES[trouble][1]), draw).format(name)
    return expand(draw.choice(["{0}", "{Hi|Hello}, {0}", "{0} {Thanks|Please help}"]), draw).replace("{0}", asked)


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """A CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
