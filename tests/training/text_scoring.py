"""A second task, as a file that somebody adds: a number for a text. The test of it copies it to the other tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from training.recipe import Model
from training.tasks.task import Baseline, Batch, Example, Outputs, Row, Task

if TYPE_CHECKING:
    from training.evaluation.sections import Section


class TextScoring(Task):
    """Reads a text column and answers with a number."""

    name: ClassVar[str] = "text-scoring"
    roles: ClassVar[dict[str, str]] = {"text": "the column that is read"}
    metrics_known = {"within_one": "max", "loss": "min"}
    headline = "within_one"

    def __init__(self, column: str, target: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.column, self.target, self.tokenizer = column, target, tokenizer

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        return cls(model.inputs["text"][0], model.named_target, AutoTokenizer.from_pretrained(base))

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        return cls(settings["column"], settings["target"], AutoTokenizer.from_pretrained(folder))

    def save(self, folder: Path) -> dict[str, Any]:
        self.tokenizer.save_pretrained(folder)
        return {"column": self.column, "target": self.target}

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [value if isinstance(value, Mapping) else {self.column: value} for value in inputs]

    def text(self, row: Row) -> str:
        return str(row[self.column])

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [{"input_ids": ids} for ids in self.tokenizer([self.text(row) for row in rows])["input_ids"]]

    def encode_target(self, row: Row) -> float:
        return float(row[self.target])

    def length(self, example: Example) -> int:
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        padded = self.tokenizer.pad([{"input_ids": one["input_ids"]} for one in examples], return_tensors="pt")
        targets = {"targets": torch.tensor([one["target"] for one in examples])} if "target" in examples[0] else {}
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"], **targets}

    def build(self, base: Path) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        return model

    def open(self, folder: Path) -> PreTrainedModel:
        return self.build(folder).eval()

    def head(self, model: PreTrainedModel) -> Sequence[torch.nn.Module]:
        return [module for name, module in model.named_children() if name != model.base_model_prefix]

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        outputs: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return outputs[:, 0]

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return (outputs - batch["targets"]) ** 2

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        return [{"score": float(value)} for value in outputs]

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        away = np.abs(np.asarray(outputs) - np.asarray(targets))
        return {"within_one": float(np.mean(away <= 1)), "loss": float(np.mean(away**2))}

    @property
    def baselines(self) -> dict[str, Baseline]:
        return {"mean": Baseline("Always the mean", _mean)}

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation.sections import comparison, learning, making, recipe, sources, verdict

        return [verdict, comparison, learning, sources, recipe, making]

    def signature(self) -> dict[str, Any]:
        row = {"type": "object", "properties": {self.column: {"type": "string"}}, "required": [self.column]}
        answer = {"type": "object", "properties": {"score": {"type": "number"}}}
        return {"input": {"anyOf": [{"type": "string"}, row]}, "parameters": {"type": "object"}, "output": answer}


def _mean(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    mean = np.mean([task.encode_target(row) for row in train.to_pylist()])
    return [list(np.full(table.num_rows, mean, dtype=np.float32)) for table in others]
