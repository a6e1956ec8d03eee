"""Made-up customer service: messages, and the line that a clerk put over each."""

import csv
import random
from pathlib import Path

from training.samples.replies import SUBJECTS
from training.samples.text_classification import ticket_text

SEED = 7
MESSAGES = 900


def write_data(data: Path) -> None:
    """Writes ``messages.csv``."""
    draw = random.Random(SEED)
    intents = [draw.choice(list(SUBJECTS)) for _ in range(MESSAGES)]
    rows = [(10_000 + number, ticket_text(intent, draw), SUBJECTS[intent]) for number, intent in enumerate(intents)]
    with (data / "messages.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("message_id", "text", "subject"), *rows])
