"""Token classification: the entities in a text, each a stretch of characters with a type."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from pydantic import Field
from tokenizers import normalizers
from transformers import AutoModelForTokenClassification

from cluster.errors import UserError
from cluster.progress import say
from cluster.settings import Strict
from training.inputs import entities, stretches, units
from training.inputs.annotations import Annotations, rows_of
from training.inputs.entities import Entity
from training.inputs.text import CELL, Reader, padded
from training.models.adapt import head_of
from training.recipe import Model
from training.tasks.task import Baseline, Batch, Example, Output, Outputs, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.evaluation.sections import Section

Aggregation = Literal["first", "simple"]

OFTEN_ENOUGH = 0.99
"""The share of training entities that must begin and end with a word for words to be what is tagged."""

AT_ONCE = 16_384
"""Padded tokens that the model answers in one pass: one endless text must not fill the memory."""

LOOKED_AT = 5_000
"""Training rows, spread over all, that tell what is tagged."""

FORMS = {
    "NFC": normalizers.NFC,
    "NFKC": normalizers.NFKC,
    "NFD": normalizers.NFD,
    "NFKD": normalizers.NFKD,
}


class Options(Strict):
    """How tags are written, and what gets one."""

    tags: list[str] = Field(default_factory=list, description="The names of tags that are numbers: that of 0 first.")
    aggregation: Literal["auto", "first", "simple"] = Field(
        "auto",
        description="What is decided as one: first, a word, by the first of its tokens; simple, each token; auto, "
        "words where the tokenizer knows them and entities begin and end with them.",
    )


class TokenClassification(Task):
    """Reads a text and answers with the entities in it.

    A text is tokenised whole and read in overlapping windows where it is long; the logits of a token are those of the
    window in which it is farthest from an edge. Every token is learned: ``B-TYPE`` where an entity begins, ``I-TYPE``
    inside, so that the model answers well whatever the strategy by which somebody joins its tokens. What is decided as
    one is a unit: a word (by its first token), a token, or, where a row is a list of tokens, one of those.

    Outputs are of shape ``[entities, 4]``: start, end, index of the type, score. Targets are flat: start, end and type
    of each entity, one after the other. Starts and ends count characters of the text.

    Attributes:
        reader: turns the text into tokens, in the Unicode form of the training rows.
        annotations: how rows tell of entities.
        aggregation: transformers' name for how tokens become units.
    """

    name: ClassVar[str] = "token-classification"
    roles: ClassVar[dict[str, str]] = {"text": "the column that is read: a text, or a list of its tokens"}
    options_known: ClassVar[type[Strict]] = Options
    lone_answer: ClassVar[bool] = True
    metrics_known: dict[str, str] = entities.METRICS
    headline: str = "f1"

    def __init__(
        self, reader: Reader, annotations: Annotations, labels: Sequence[str], aggregation: Aggregation = "simple"
    ) -> None:
        self.reader, self.annotations, self.labels, self.aggregation = reader, annotations, list(labels), aggregation
        self._tokenizer = reader.tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        if reader.unicode != "none":  # done by the tokenizer, whose offsets then still count characters as they came
            own = [self._tokenizer.normalizer] if self._tokenizer.normalizer else []
            self._tokenizer.normalizer = normalizers.Sequence([FORMS[reader.unicode](), *own])
        self._prefix, self._suffix = units.special_tokens(self._tokenizer)
        self._room = reader.max_length - len(self._prefix) - len(self._suffix)

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options = Options.model_validate(model.options)
        columns, target = model.inputs["text"], model.named_target
        if len(columns) > 1:
            raise UserError(f"model.inputs.text: {cls.name} reads one column, not {', '.join(columns)}")
        annotations = Annotations.learn(columns[0], target, options.tags, splits)
        reader = Reader.learn(columns, base, model.max_length, unicode)
        task = cls(reader, annotations, annotations.types(splits))
        task.aggregation = task._choose(options.aggregation, splits["train"])
        return task

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        reader, annotations = Reader.load(settings["reader"], folder), Annotations(**settings["annotations"])
        return cls(reader, annotations, settings["labels"], settings["aggregation"])

    def save(self, folder: Path) -> dict[str, Any]:
        return {
            "reader": self.reader.save(folder),
            "annotations": self.annotations.save(),
            "labels": self.labels,
            "aggregation": self.aggregation,
        }

    def _choose(self, wanted: str, train: pa.Table) -> Aggregation:
        """Words where the tokenizer knows them and the entities of training keep to them; else tokens."""
        marked = units.part_mark(self._tokenizer) is not None
        if wanted == "first" and not marked:
            raise UserError(
                "model.options.aggregation: 'first' needs a tokenizer that marks the parts of a word, as BERT's does, "
                "and the base's does not; use simple"
            )
        sample = train.take(np.unique(np.linspace(0, train.num_rows - 1, LOOKED_AT).astype(np.int64)))
        rows = list(rows_of(sample, self.annotations.column, self.annotations.target))
        kept: dict[Aggregation, int] = {"simple": self._kept_to(rows, "simple")}
        if marked:
            kept["first"] = self._kept_to(rows, "first")
        by_words = wanted == "first" or (wanted == "auto" and kept.get("first", -1) >= OFTEN_ENOUGH * kept["simple"])
        chosen: Aggregation = "first" if by_words else "simple"
        total = sum(len(self.annotations.entities(row)) for row in rows)
        if total > kept[chosen]:
            say(
                f"{total - kept[chosen]} of {total} entities looked at begin or end inside a "
                f"{'word' if chosen == 'first' else 'token'}; they count, and cannot be found exactly"
            )
        return chosen

    def _kept_to(self, rows: Sequence[Row], aggregation: Aggregation) -> int:
        """How many entities begin and end with a unit."""
        self.aggregation = aggregation
        kept = 0
        for example, row in zip(self.encode(rows), rows, strict=True):
            starts, ends = set(example["unit_starts"].tolist()), set(example["unit_ends"].tolist())
            kept += sum(one.start in starts and one.end in ends for one in self.annotations.entities(row))
        return kept

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self._row(index, value) for index, value in enumerate(inputs)]

    def _row(self, index: int, value: Any) -> Row:
        tokens = value.get(self.annotations.column) if isinstance(value, Mapping) else None
        if not isinstance(tokens, list):
            return self.reader.row(index, value)
        if not all(isinstance(token, str) for token in tokens):
            raise UserError(f"inputs[{index}].{self.annotations.column}: a string or a list of strings is needed")
        row: Row = value
        return row

    def text(self, row: Row) -> str:
        return self.annotations.read(row)[0]

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        read = [self.annotations.read(row) for row in rows]
        encodings = self._tokenizer.encode_batch([text for text, _ in read], add_special_tokens=False)
        mark = units.part_mark(self._tokenizer) if self.aggregation == "first" else None
        return [units.example(text, places, one, mark) for (text, places), one in zip(read, encodings, strict=True)]

    def encode_target(self, row: Row) -> Any:
        found = self.annotations.entities(row)
        return np.array([part for one in found for part in (one.start, one.end, self._index[one.type])], dtype=np.int64)

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def length(self, example: Example) -> int:
        special = len(self._prefix) + len(self._suffix)
        return sum(max(1, end - start + special) for start, end in stretches.cut(len(example["input_ids"]), self._room))

    def _pieces(self, example: Example) -> list[list[int]]:
        """What the model reads of an example: its windows, each with the tokenizer's special tokens around."""
        ids = list(example["input_ids"])
        pieces = [self._prefix + ids[start:end] + self._suffix for start, end in stretches.cut(len(ids), self._room)]
        return [piece or [self.reader.tokenizer.pad_token_id] for piece in pieces]  # no model reads nothing at all

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Windows of tokens, and where among them each token of a text is read.

        ``input_ids`` and ``attention_mask`` are of shape ``[batch, windows, width]``, where a window without any token
        is none; ``places`` and ``targets`` of shape ``[batch, longest]``: for each token its place among the tokens of
        all windows, and its tag.
        """
        pieces = [self._pieces(example) for example in examples]
        counts = np.array([len(one) for one in pieces])
        tokens, mask = padded([piece for one in pieces for piece in one], self.reader.tokenizer.pad_token_id)
        real = np.arange(counts.max()) < counts[:, None]
        input_ids, attention_mask = np.zeros((2, *real.shape, tokens.shape[1]), dtype=np.int64)
        input_ids[real], attention_mask[real] = tokens, mask
        first = np.cumsum(counts) - counts
        places = [self._places(example, at, tokens.shape[1]) for example, at in zip(examples, first, strict=True)]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "places": padded(places, 0)[0]}
        if "target" in examples[0]:
            batch["targets"] = padded([units.tags(example) for example in examples], units.NO_TARGET)[0]
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _places(self, example: Example, first: int, width: int) -> list[int]:
        """Where among the windows of a batch, laid end to end, the logits of each token are taken from."""
        cut = stretches.cut(len(example["input_ids"]), self._room)
        own = stretches.owners(cut)
        inside = np.arange(len(own)) - np.array([start for start, _ in cut])[own]
        place: list[int] = ((first + own) * width + len(self._prefix) + inside).tolist()
        return place

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        tags = [entities.OUTSIDE, *(f"{letter}-{label}" for label in self.labels for letter in "BI")]
        return self.reader.from_pretrained(
            AutoModelForTokenClassification,
            base,
            num_labels=len(tags),
            id2label=dict(enumerate(tags)),
            label2id={tag: index for index, tag in enumerate(tags)},
            ignore_mismatched_sizes=True,  # a base that found other entities gets a new head
        )

    def open(self, folder: Path) -> "PreTrainedModel":
        return self.reader.from_pretrained(AutoModelForTokenClassification, folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return head_of(model)

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return self._stitched(model, batch, None)

    def infer(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if dist.is_initialized():  # workers that share a parted model must call it equally often
            return self.forward(model, batch)
        return self._stitched(model, batch, max(1, AT_ONCE // batch["input_ids"].shape[-1]))

    def _stitched(self, model: torch.nn.Module, batch: Batch, at_once: int | None) -> torch.Tensor:
        """Logits of shape ``[batch, longest, tags]``, from ``at_once`` windows in one pass (None: from all)."""
        real = batch["attention_mask"].any(-1)
        input_ids, mask = batch["input_ids"][real], batch["attention_mask"][real]
        step = at_once or len(mask)
        parts = [slice(start, start + step) for start in range(0, len(mask), step)]
        logits = torch.cat([model(input_ids=input_ids[part], attention_mask=mask[part]).logits for part in parts])
        return logits.flatten(0, 1)[batch["places"]]

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean cross-entropy of each text's tokens, so that a long text counts as much as a short one."""
        targets = batch["targets"]
        each = torch.nn.functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), ignore_index=units.NO_TARGET, reduction="none"
        ).view(targets.shape)
        return each.sum(1) / (targets != units.NO_TARGET).sum(1).clamp(min=1)

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def keep(self, outputs: torch.Tensor, examples: Sequence[Example]) -> list[Output]:
        scores = outputs.detach().float().softmax(-1).cpu().numpy()
        return [units.found(own, example) for own, example in zip(scores, examples, strict=True)]

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        ignored = self._ignored(parameters)
        return [
            [
                {
                    "entity_group": self.labels[int(label)],
                    "score": float(score),
                    "word": example["text"][int(start) : int(end)],
                    "start": int(start),
                    "end": int(end),
                }
                for start, end, label, score in found
                if self.labels[int(label)] not in ignored
            ]
            for found, example in zip(outputs, examples, strict=True)
        ]

    def _ignored(self, parameters: Mapping[str, Any]) -> Sequence[str]:
        known = self.signature()["parameters"]["properties"]
        for name in parameters:
            if name not in known:
                raise UserError(f"parameters.{name}: unknown; this task takes {', '.join(known)}")
        strategy = parameters.get("aggregation_strategy")
        if strategy not in (None, self.aggregation):
            raise UserError(f"parameters.aggregation_strategy: this model answers by '{self.aggregation}' alone")
        ignored = parameters.get("ignore_labels")
        if ignored is None:
            return ()
        if not isinstance(ignored, list) or not all(isinstance(label, str) for label in ignored):
            raise UserError("parameters.ignore_labels: a list of labels is needed")
        return ignored

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        if not len(targets):
            return {}
        return entities.score([self.listed(one) for one in outputs], [self.listed(one) for one in targets])

    def listed(self, numbers: Any) -> list[Entity]:
        """The entities of an output, or of a target."""
        return entities.from_numbers(numbers, self.labels)

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation.entities import dictionary  # a replica never measures

        return {"dictionary": Baseline("Dictionary of seen entities", dictionary, probabilities=False)}

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation.entities import SECTIONS  # it draws, and a replica does not

        return SECTIONS

    def signature(self) -> dict[str, Any]:
        text = {"type": "string"}
        cell = {"anyOf": [CELL, {"type": "array", "items": text}]}
        row = {"type": "object", "properties": {self.annotations.column: cell}, "required": [self.annotations.column]}
        entity = {
            "entity_group": {"enum": self.labels},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "word": text,
            "start": {"type": "integer", "minimum": 0},
            "end": {"type": "integer", "minimum": 1},
        }
        parameters = {
            "aggregation_strategy": {"enum": [self.aggregation, None]},
            "ignore_labels": {"type": ["array", "null"], "items": text, "description": "Types that are left out."},
        }
        return {
            "input": {"anyOf": [text, row]},
            "parameters": {"type": "object", "properties": parameters, "additionalProperties": False},
            "output": {
                "type": "array",
                "items": {"type": "object", "properties": entity, "required": list(entity)},
            },
        }
