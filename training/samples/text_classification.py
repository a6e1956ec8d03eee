"""Made-up customer service: tickets, the customers who wrote them, and what those ordered.

The tickets are put together from ``phrases.py`` with a fixed seed. They are as untidy as real data: words of one intent
in the tickets of another, typing errors, wrong labels, copies, customers that nobody knows, lines that cannot be read.
"""

import csv
import json
import random
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.samples.phrases import AFTER_OTHER, AFTER_SETTLED, ASKS, CLOSINGS, OPENINGS, SETTLED

SEED = 7
TICKETS = 1_200
CUSTOMERS = 300

QUOTING = 0.5  # tickets that mention another request
MIXED = 0.2  # tickets that say of another intent that it is settled
TYPING_ERRORS = 0.15
WRONG_LABELS = 0.03
COPIES = 0.02
UNKNOWN_CUSTOMERS = 0.04
UNLABELLED = 0.005

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
UNREADABLE = ['{"ticket_id": 90001, "customer_id": 17, "text": "where is my', "ticket 90002: call back", "[90003]"]

Row = dict[str, Any]


def write_data(data: Path) -> None:
    """Writes ``tickets.jsonl``, ``customers.csv`` and ``shop.db``."""
    draw = random.Random(SEED)
    write_tickets(data / "tickets.jsonl", tickets(draw))
    write_customers(data / "customers.csv", draw)
    write_orders(data / "shop.db", draw)


def tickets(draw: random.Random) -> list[Row]:
    """Support tickets with their intent: ``ticket_id``, ``customer_id``, ``created``, ``text``, ``intent``."""
    intents = list(ASKS)
    rows: list[Row] = []
    for number in range(TICKETS):
        if rows and draw.random() < COPIES:
            text, intent = rows[-1]["text"], rows[-1]["intent"]  # sent twice
        else:
            intent = draw.choice(intents)
            text = ticket_text(intent, draw)
        label = draw.choice(intents) if draw.random() < WRONG_LABELS else intent
        known = draw.random() >= UNKNOWN_CUSTOMERS
        rows.append(
            {
                "ticket_id": 10_000 + number,
                "customer_id": draw.randint(1, CUSTOMERS) if known else draw.randint(9_000, 9_999),
                "created": f"2024-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}",
                "text": text,
                "intent": None if draw.random() < UNLABELLED else label,
            }
        )
    return rows


def ticket_text(intent: str, draw: random.Random) -> str:
    """One ticket of an intent, as somebody types it."""
    ask = expand(draw.choice(ASKS[intent]), draw)
    other = draw.choice([name for name in ASKS if name != intent])
    kind = draw.random()
    if kind < QUOTING:
        ask = join(draw.choice(AFTER_OTHER), draw, ask=ask, other=expand(draw.choice(ASKS[other]), draw))
    elif kind < QUOTING + MIXED:
        ask = join(draw.choice(AFTER_SETTLED), draw, ask=ask, settled=expand(draw.choice(SETTLED[other]), draw))
    text = expand(draw.choice(OPENINGS), draw) + ask + expand(draw.choice(CLOSINGS), draw)
    text = re.sub(r"\s+([,.?!])", r"\1", re.sub(r"\s+", " ", text)).strip()
    text = re.sub(r"([?!])[.,]", r"\1", text)
    if draw.random() < 0.5:
        text = text[:1].upper() + text[1:]
    return mistype(text, draw) if draw.random() < TYPING_ERRORS else text


def expand(phrase: str, draw: random.Random) -> str:
    """The phrase with one part chosen for each ``{a|b}``."""
    return CHOICE.sub(lambda match: draw.choice(match.group(1).split("|")), phrase)


def join(phrase: str, draw: random.Random, **parts: str) -> str:
    """The phrase, expanded, with each ``{name}`` in it replaced by that part."""
    text = expand(phrase, draw)
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


def mistype(text: str, draw: random.Random) -> str:
    """The text with one or two letters swapped, lost or doubled."""
    for _ in range(draw.randint(1, 2)):
        at = draw.randrange(1, len(text) - 1)
        pair = text[at : at + 2]
        text = text[:at] + draw.choice([pair[::-1], pair[1:], pair[0] + pair]) + text[at + 2 :]
    return text


def write_tickets(path: Path, rows: Sequence[Row]) -> None:
    """JSON lines, with a few among them that are none."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for number, broken in enumerate(UNREADABLE, 1):
        lines.insert(number * len(rows) // (len(UNREADABLE) + 1), broken)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_customers(path: Path, draw: random.Random) -> None:
    """One line a customer: ``customer_id``, ``plan``, ``country``, ``since``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["customer_id", "plan", "country", "since"])
        for number in range(1, CUSTOMERS + 1):
            plan = draw.choices(["free", "plus", "business"], [6, 3, 1])[0]
            country = draw.choice(["AT", "BE", "CH", "DE", "ES", "FR", "IT", "NL", "PT", ""])
            writer.writerow([number, plan, country, f"{draw.randint(2015, 2023)}-{draw.randint(1, 12):02}-01"])


def write_orders(path: Path, draw: random.Random) -> None:
    """A SQLite database with one table: ``order_id``, ``customer_id``, ``amount``, ``placed``."""
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE orders (order_id INTEGER PRIMARY KEY, customer_id INTEGER, amount REAL, placed TEXT)"
    )
    rows = [
        (
            number,
            draw.randint(1, CUSTOMERS),
            round(draw.lognormvariate(3.5, 0.8), 2),
            f"2024-{draw.randint(1, 12):02}-15",
        )
        for number in range(1, 4 * CUSTOMERS)
    ]
    database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
    database.commit()
    database.close()
