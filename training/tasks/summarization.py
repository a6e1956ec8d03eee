"""Summarization: text-to-text generation whose answer the Inference API calls a summary."""

from typing import ClassVar

from training.tasks.text2text_generation import Text2TextGeneration


class Summarization(Text2TextGeneration):
    """Reads one or several text columns and writes what matters of them."""

    name: ClassVar[str] = "summarization"
    roles: ClassVar[dict[str, str]] = {"text": "the column or columns that are summed up"}
    answer_key: ClassVar[str] = "summary_text"
