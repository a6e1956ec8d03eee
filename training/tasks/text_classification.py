"""Text classification: one label, several, a label of an order, or a number for a text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import torch
from transformers import AutoModelForSequenceClassification

from cluster.settings import Strict
from training.families.predicting import Predicting
from training.inputs.text import Reader
from training.inputs.words import Word, silent, words_of
from training.models.adapt import head_of
from training.recipe import Model
from training.targets import Target, TargetOptions, load_target
from training.tasks.task import Baseline, Batch, Example, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextClassification(Predicting):
    """Reads one or several text columns and answers with labels and their probabilities, or with a number.

    Attributes:
        reader: turns the text columns into tokens.
        target: turns the target column into tensors, and outputs into answers.
    """

    name: ClassVar[str] = "text-classification"
    roles: ClassVar[dict[str, str]] = {"text": "the column or columns that are read"}
    options_known: ClassVar[type[Strict]] = TargetOptions
    attributable: ClassVar[bool] = True
    one_row_each: ClassVar[bool] = True

    def __init__(self, reader: Reader, target: Target) -> None:
        super().__init__(target)
        self.reader = reader

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        target = cls.learn_target(model, splits, unicode)
        return cls(Reader.learn(model.inputs["text"], base, model.max_length, unicode), target)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        return cls(Reader.load(settings["reader"], folder), load_target(settings["target"]))

    def save(self, folder: Path) -> dict[str, Any]:
        return {"reader": self.reader.save(folder), "target": self.target.save()}

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self.reader.row(index, value) for index, value in enumerate(inputs)]

    def text(self, row: Row) -> str:
        return self.reader.text(row)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [{"input_ids": tokens} for tokens in self.reader.read(rows)]

    def length(self, example: Example) -> int:
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = self.reader.pad([example["input_ids"] for example in examples])
        return self.with_targets(batch, examples)

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        return self.reader.from_pretrained(
            AutoModelForSequenceClassification,
            base,
            **self.head_settings(),
        )

    def open(self, folder: Path) -> "PreTrainedModel":
        return self.reader.from_pretrained(AutoModelForSequenceClassification, folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return head_of(model)

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    # --- what an answer rests on ----------------------------------------------------------------------------------

    def words(self, row: Row) -> list[Word]:
        """The words that are read of a row."""
        return words_of(self.reader, row)

    def silent(self, example: Example) -> Example:
        """An example as long as this one that says nothing."""
        return {"input_ids": silent(self.reader, example["input_ids"])}

    def forward_embedded(self, model: torch.nn.Module, embedded: torch.Tensor) -> torch.Tensor:
        """As :meth:`forward`, for texts of one length given as the vectors of their tokens.

        Args:
            embedded: what the model's input embeddings say of the tokens, of shape ``[texts, tokens, width]``.
        """
        logits: torch.Tensor = model(inputs_embeds=embedded).logits
        return logits

    # --- outputs to answers ---------------------------------------------------------------------------------------

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import baselines  # a replica, which never measures, does not load scikit-learn

        return {
            "majority": Baseline(baselines.CONSTANTS[self.target.problem], baselines.majority),
            "tfidf": Baseline(
                "TF-IDF + linear model",
                baselines.tfidf,
                probabilities=self.target.problem == "regression",
                of_texts=True,
            ),
            "frozen": Baseline("Frozen base + linear head", baselines.frozen, of_texts=True),
        }

    def input_schema(self) -> dict[str, Any]:
        return self.reader.schema()
