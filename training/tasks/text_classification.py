"""Text classification, one label of a fixed set: which team, which intent, which sentiment."""

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from cluster.errors import UserError
from training.evaluation import metrics
from training.recipe import Model
from training.tasks.task import Baseline, Batch, Example, Outputs, Row, Task

if TYPE_CHECKING:
    from training.evaluation.sections import Section

LONGEST = 512
"""Tokens kept where neither the recipe nor the base sets a limit."""

READABLE = (str, int, float, Decimal, dt.date, dt.time)
"""Types of a value that is read as its ``str``; a ``datetime`` is a ``date``."""

TOP_K = 5
"""Labels in an answer where the request does not say, as the Hugging Face Inference API answers."""


class TextClassification(Task):
    """Reads one or several text columns and answers with labels and their probabilities.

    Attributes:
        columns: the text columns, joined in this order by the tokenizer's separator token.
        target: the column that holds the label.
        labels: every label, sorted; its index is the model's output.
        max_length: tokens kept of one input, special tokens included.
        unicode: the form that texts and labels are brought to: NFC, NFKC, NFD, NFKD or none.
    """

    name: ClassVar[str] = "text-classification"
    roles: ClassVar[dict[str, str]] = {"text": "the column or columns that are read"}
    metrics_known: ClassVar[dict[str, str]] = metrics.CLASSIFICATION
    headline: ClassVar[str] = "accuracy"
    of_probabilities: ClassVar[frozenset[str]] = frozenset({"calibration_error", "loss"})

    def __init__(
        self,
        columns: Sequence[str],
        target: str,
        labels: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        unicode: str = "none",
    ) -> None:
        self.columns = list(columns)
        self.target = target
        self.labels: list[str] = list(labels)
        self.max_length = max_length
        self.unicode = unicode
        self.tokenizer = tokenizer
        self.tokenizer.model_max_length = max_length  # so that transformers.pipeline cuts where we cut
        self.tokenizer.backend_tokenizer.enable_truncation(max_length)
        self.tokenizer.backend_tokenizer.no_padding()
        self._index = {label: index for index, label in enumerate(self.labels)}

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        for split, table in splits.items():
            _check_targets(split, table, model.target)
        values = [value for table in splits.values() for value in table[model.target].unique().to_pylist()]
        labels = sorted({in_form(label_text(value), unicode) for value in values}, key=_label_order)
        if len(labels) < 2:
            raise UserError(f"model.target: '{model.target}' has {len(labels)} label; a classifier needs two or more")
        tokenizer = _open_tokenizer(base)
        limits = [model.max_length, tokenizer.model_max_length, _positions(base)]
        max_length = min(limit for limit in limits if limit)
        return cls(model.inputs["text"], model.target, labels, tokenizer, max_length, unicode)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        return cls(tokenizer=_open_tokenizer(folder), **settings)

    def save(self, folder: Path) -> dict[str, Any]:
        self.tokenizer.save_pretrained(folder)
        return {
            "columns": self.columns,
            "target": self.target,
            "labels": self.labels,
            "max_length": self.max_length,
            "unicode": self.unicode,
        }

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self._row(index, value) for index, value in enumerate(inputs)]

    def text(self, row: Row) -> str:
        """What the tokenizer reads of a row, in the Unicode form of the training rows; a missing value is nothing."""
        values = [row[column] for column in self.columns]
        texts = ["" if value is None else in_form(str(value), self.unicode) for value in values]
        return f" {self.tokenizer.sep_token or ''} ".join(texts)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast([self.text(row) for row in rows])
        return [{"input_ids": encoding.ids} for encoding in encodings]

    def encode_target(self, row: Row) -> int:
        return self._index[in_form(label_text(row[self.target]), self.unicode)]

    def length(self, example: Example) -> int:
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        longest = max(len(example["input_ids"]) for example in examples)
        input_ids = np.full((len(examples), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, example in enumerate(examples):
            tokens = example["input_ids"]
            input_ids[row, : len(tokens)] = tokens
            attention_mask[row, : len(tokens)] = 1
        batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
        if "target" in examples[0]:
            batch["targets"] = torch.tensor([example["target"] for example in examples])
        return batch

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> PreTrainedModel:
        return self._from_pretrained(
            base,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id=self._index,
            ignore_mismatched_sizes=True,  # a base that was a classifier of other labels gets a new head
        )

    def open(self, folder: Path) -> PreTrainedModel:
        return self._from_pretrained(folder).eval()

    def head(self, model: PreTrainedModel) -> Sequence[torch.nn.Module]:
        return [module for name, module in model.named_children() if name != model.base_model_prefix]

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, batch["targets"], reduction="none")

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def decode(self, outputs: Outputs, parameters: Mapping[str, Any]) -> list[Any]:
        top_k = _top_k(parameters, len(self.labels))
        scores = np.exp(metrics.log_probabilities(outputs))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [{"label": self.labels[index], "score": float(row[index])} for index in order]
            for row, order in zip(scores, best, strict=True)
        ]

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.classification(outputs, np.asarray(targets, dtype=np.int64), self.labels)

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import baselines  # a replica, which never measures, does not load scikit-learn

        return {
            "majority": Baseline("Most frequent label", baselines.majority),
            "tfidf": Baseline("TF-IDF + linear SVM", baselines.tfidf, probabilities=False),
            "frozen": Baseline("Frozen base + linear head", baselines.frozen),
        }

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # which draws: as above

        return sections.CLASSIFICATION

    def signature(self) -> dict[str, Any]:
        columns = {column: {"type": "string"} for column in self.columns}
        row = {"type": "object", "properties": columns, "required": self.columns}
        entry = {
            "type": "object",
            "properties": {"label": {"enum": self.labels}, "score": {"type": "number", "minimum": 0, "maximum": 1}},
            "required": ["label", "score"],
        }
        return {
            "input": {"anyOf": [{"type": "string"}, row]} if len(self.columns) == 1 else row,
            "parameters": {
                "type": "object",
                "properties": {"top_k": {"type": "integer", "minimum": 1, "default": TOP_K}},
                "additionalProperties": False,
            },
            "output": {"type": "array", "items": entry},
        }

    def _row(self, index: int, value: Any) -> Row:
        if isinstance(value, str):
            if len(self.columns) > 1:
                raise UserError(f"inputs[{index}]: this model reads an object with {', '.join(self.columns)}")
            return {self.columns[0]: value}
        if not isinstance(value, Mapping):
            raise UserError(f"inputs[{index}]: a string or an object is needed, not {type(value).__name__}")
        for column in self.columns:
            if column not in value:
                raise UserError(f"inputs[{index}].{column}: missing")
            if value[column] is not None and not isinstance(value[column], READABLE):
                raise UserError(f"inputs[{index}].{column}: a string is needed, not {type(value[column]).__name__}")
        return value

    def _from_pretrained(self, folder: Path, **settings: Any) -> PreTrainedModel:
        transformers_logging.disable_progress_bar()
        level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # a new head is what we ask for
        try:
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, **settings
            )
        finally:
            transformers_logging.set_verbosity(level)
        model.config.pad_token_id = self.tokenizer.pad_token_id  # decoders find their last token by it
        return model


def label_text(value: Any) -> str:
    """A label as text, so that ``3``, ``3.0`` and ``"3"`` are one label whatever engine read the column."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def in_form(text: str, form: str) -> str:
    """``text`` in a Unicode form; in the form that it has for ``none``."""
    return text if form == "none" else normalize(cast(Any, form), text)


def _label_order(label: str) -> tuple[bool, float, str]:
    try:
        return (False, float(label), label)
    except ValueError:
        return (True, 0.0, label)


def _check_targets(split: str, table: pa.Table, target: str) -> None:
    missing = table[target].null_count
    if missing:
        raise UserError(
            f"model.target: {missing} of {table.num_rows} {split} rows have no '{target}'; "
            f"add it to data.clean.drop_empty to leave them out"
        )


def _open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise UserError("model.base: its tokenizer has no tokenizer.json; convert it with transformers first")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _positions(base: Path) -> int:
    """How many tokens the base has positions for."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    return min(getattr(config, "max_position_embeddings", None) or LONGEST, LONGEST)


def _top_k(parameters: Mapping[str, Any], labels: int) -> int:
    unknown = sorted(set(parameters) - {"top_k"})
    if unknown:
        raise UserError(f"parameters.{unknown[0]}: unknown; this task takes top_k")
    top_k = parameters.get("top_k")
    if top_k is None:
        return min(TOP_K, labels)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise UserError("parameters.top_k: a whole number from 1 up is needed")
    return min(top_k, labels)
