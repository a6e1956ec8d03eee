"""Made-up customer service: what customers write, with no label at all."""

import random
from pathlib import Path

from training.samples.phrases import ASKS
from training.samples.text_classification import ticket_text

SEED = 7
MESSAGES = 1_500


def write_data(data: Path) -> None:
    """Writes ``messages.csv``."""
    draw = random.Random(SEED)
    texts = [ticket_text(draw.choice(list(ASKS)), draw) for _ in range(MESSAGES)]
    lines = ["text", *('"' + text.replace('"', '""') + '"' for text in texts)]
    (data / "messages.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
