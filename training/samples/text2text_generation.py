"""Made-up customer service: messages and what was answered."""

import csv
import random
from pathlib import Path

from training.samples.replies import REPLIES, reply
from training.samples.text_classification import ticket_text

SEED = 7
MESSAGES = 900


def write_data(data: Path) -> None:
    """Writes ``answered.csv``."""
    draw = random.Random(SEED)
    rows = []
    for number in range(MESSAGES):
        intent = draw.choice(list(REPLIES))
        rows.append((10_000 + number, ticket_text(intent, draw), reply(intent, "plus")))
    with (data / "answered.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("message_id", "text", "answer"), *rows])
