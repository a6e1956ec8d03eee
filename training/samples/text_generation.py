"""Made-up customer service: messages, the customers' plans, and what was answered."""

import csv
import json
import random
from pathlib import Path

from training.samples.replies import DAYS, REPLIES, reply
from training.samples.text_classification import ticket_text

SEED = 7
MESSAGES, CUSTOMERS = 900, 200


def write_data(data: Path) -> None:
    """Writes ``customers.csv`` and ``answered.jsonl``."""
    draw = random.Random(SEED)
    plans = {number: draw.choices(list(DAYS), [5, 3, 2])[0] for number in range(1, CUSTOMERS + 1)}
    with (data / "customers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("customer_id", "plan"), *plans.items()])
    lines = []
    for number in range(MESSAGES):
        intent, customer = draw.choice(list(REPLIES)), draw.randint(1, CUSTOMERS)
        row = {
            "message_id": 10_000 + number,
            "customer_id": customer,
            "text": ticket_text(intent, draw),
            "answer": reply(intent, plans[customer]),
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    (data / "answered.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
