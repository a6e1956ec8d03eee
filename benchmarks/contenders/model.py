"""The model as all contenders compute it: transformers, PyTorch in fp32, all cores."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

FOLDER = Path(os.environ["BUNDLE"])
BATCH = 32
WAIT_SECONDS = 0.01
LABELS = 5


class Model:
    """A classifier that answers many texts in one forward pass."""

    def __init__(self) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        self.tokenizer = AutoTokenizer.from_pretrained(FOLDER)
        self.model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()

    def classify(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        """The likeliest labels of each text."""
        encoded = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            best = self.model(**encoded).logits.softmax(-1).topk(LABELS)
        names = self.model.config.id2label
        return [
            [{"label": names[index], "score": score} for score, index in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
