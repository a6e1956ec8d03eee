"""What a task is: the one place where training and serving agree.

A task is a file in this folder, named like its Hugging Face pipeline with ``_`` for ``-``, that defines one
subclass of :class:`Task`. Nothing else is registered anywhere. Data walks through its methods in this order:

    rows -> questions (for most tasks the rows themselves)
    row -> encode -> example -> collate -> batch -> forward -> keep -> outputs -> decode -> answer
                                                       \\-> loss          \\-> metrics (training only)

Training and serving call the same ``encode``, ``collate``, ``forward``, ``keep`` and ``decode``: what was learned is
what is served. What several tasks share is not a task: ``training/inputs/`` reads texts, pictures, sounds and tables,
``training/targets/`` predicts labels and numbers, ``training/models/`` holds networks, and ``training/families/`` what
whole tasks have in common.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.errors import UserError
from cluster.settings import Strict
from training.recipe import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.evaluation.sections import Section  # it draws, and a replica does not

Row = Mapping[str, Any]
"""One row of business data: column name to value."""

Example = dict[str, Any]
"""One encoded row: plain lists, numbers and texts, e.g. ``{"input_ids": [101, …], "target": 3}``."""

Batch = dict[str, torch.Tensor]
"""Collated examples: tensors whose first dimension is the number of examples."""

Output = npt.NDArray[Any]
"""What the model says of one row, of any shape: logits of shape ``[labels]``, say, or one line for each entity."""

Outputs = Sequence[Output]
"""What the model says of some rows; ``list(array)`` where all are of one shape."""


class NoOptions(Strict):
    """Nothing more to say than the recipe's other fields do."""


@dataclass(frozen=True)
class Baseline:
    """A model that the fine-tuned one must beat to earn its keep.

    Attributes:
        title: what the report calls it.
        outputs: ``outputs(task, base, train, others)`` learns from ``train`` and returns its outputs for each table of
            ``others``, shaped like the model's, so that the same metrics judge both. ``base`` is the pre-trained
            model's folder.
        probabilities: whether its outputs are log-probabilities; margins only rank.
        of_texts: whether it holds features of all texts of ``train`` in memory, which then are no more than it can.
    """

    title: str
    outputs: Callable[["Task", Path, pa.Table, Sequence[pa.Table]], list[Outputs]]
    probabilities: bool = True
    of_texts: bool = False


class Task(ABC):
    """One kind of thing a model can learn to do."""

    name: ClassVar[str]
    """The Hugging Face pipeline name."""

    roles: ClassVar[dict[str, str]]
    """What the recipe's ``model.inputs`` must fill: role to a description."""

    optional_roles: ClassVar[dict[str, str]] = {}
    """What it may fill besides."""

    compared_roles: ClassVar[frozenset[str] | None] = None
    """The roles whose texts tell which rows are near copies, that no two splits may share; None: all of them."""

    file_roles: ClassVar[frozenset[str]] = frozenset()
    """The roles whose columns may name files. In the rows of training such names are full paths; relative ones in the
    data start from the recipe's folder, or from ``model.options.folder`` below it."""

    options_known: ClassVar[type[Strict]] = NoOptions
    """What the recipe's ``model.options`` may say."""

    target_needed: ClassVar[bool] = True
    """Whether the recipe must name a ``model.target``; a task that learns from its inputs alone has none."""

    corpus_read: ClassVar[bool] = False
    """Whether it finds things among the rows of ``data.corpus``, which the splits then hold as ``corpus``."""

    base_needed: ClassVar[bool] = True
    """Whether the recipe must name a ``model.base``."""

    lone_answer: ClassVar[bool] = False
    """Whether the Inference API answers an input that stands in no list with an answer that stands in none."""

    table_answer: ClassVar[str | None] = None
    """What of an answer's first entry a row of a table gets, where the Inference API asks whole tables."""

    writes_on: ClassVar[bool] = False
    """Whether it writes from left to right after what it reads, so that a server can write many texts side by side; it
    is a ``TextWriter`` of ``training/families/generation.py`` then."""

    attributable: ClassVar[bool] = False
    """Whether an answer can be attributed to the words that were read; it is an ``AttributableTask`` of
    ``serving/explain.py`` then."""

    one_row_each: ClassVar[bool] = False
    """Whether the model reads a batch in one pass in which each example is one row, and says logits of it; a server may
    then ask several models on one base for rows of the same batch."""

    new_head: ClassVar[bool] = True
    """Whether the model gets new weights on top, which ``adapt: head`` trains alone."""

    whole_batch: ClassVar[bool] = False
    """Whether the loss of a row depends on the other rows of its batch, which are then gathered from all workers."""

    metrics_known: dict[str, str]
    """The metrics that early stopping and a sweep may name: metric to ``max`` or ``min``."""

    headline: str
    """The metric that the report compares the model with its baselines by; one of ``metrics_known``."""

    of_probabilities: frozenset[str] = frozenset()
    """The metrics that mean nothing for a :class:`Baseline` without ``probabilities``."""

    metrics_of_answers: dict[str, str] = {}
    """The metrics that :meth:`metrics` gives besides of what :meth:`infer` says, and so of a finished model only."""

    final_headline: str = ""
    """The metric that the report compares by where it is another than ``headline``; one of ``metrics_of_answers``."""

    labels: Sequence[str] = ()
    """The names that outputs and targets index, where the task has such a set."""

    @property
    def has_targets(self) -> bool:
        """Whether examples have a ``target``: where the recipe names none, a task may make one of its inputs."""
        return self.target_needed

    @classmethod
    def metrics_with(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """``metrics_known`` of the task that learns with these ``model.options``, which are not checked yet."""
        return cls.metrics_known

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        """The task for these splits: the label set and whatever else must be known before encoding.

        Args:
            unicode: the form that the texts of the splits have, as ``data.clean.unicode`` names it. :meth:`encode`
                and :meth:`encode_target` bring every row to it, so that what is asked reads as what was learned.

        Raises:
            UserError: a column is missing, or the target cannot be learned (one label only, say).
        """

    @classmethod
    @abstractmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        """The task that :meth:`save` kept in ``folder`` and ``settings``."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Writes what has a file format of its own (the tokenizer) to ``folder`` and returns the rest as JSON."""

    def questions(self, splits: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """What is asked about the fused rows of each split: for most tasks one question a row, the row itself.

        A task whose question spans many rows makes its tables here. It sees all splits, since what is asked of the
        test rows may rest on what was known before them; a row of a question belongs to the split of its target.
        """
        return splits

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    @abstractmethod
    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        """Request inputs (a string, or an object with the columns) as rows.

        Raises:
            UserError: an input has the wrong type or lacks a column; names the input's index and the column, never
                its content.
        """

    def as_asked(self, rows: Sequence[Row]) -> Sequence[Any]:
        """Rows of a table as request inputs. What only a table spells as a text is read here."""
        return rows

    def apart(self, row: Row, most: int) -> list[Row]:
        """A row of many texts that are read one by one as several rows, each of at most so many of them."""
        return [row]

    def together(self, answers: Sequence[Any], most: int, parameters: Mapping[str, Any]) -> Any:
        """The answer to a row, of those to the rows that :meth:`apart` made of it."""
        (answer,) = answers
        return answer

    @abstractmethod
    def text(self, row: Row) -> str:
        """What a person reads of a row, in the report."""

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Rows as examples, without their targets; every example has the same keys.

        Raises:
            UnreadableError: of ``training/inputs/media.py``: a file that a row names or holds cannot be read.
        """

    def encode_asked(self, rows: Sequence[Row]) -> list[Example]:
        """:meth:`encode` for somebody who waits for the answers, and is told where one would be to something else.

        Raises:
            UserError: an input cannot be read whole, and its answer would be another's; says which.
        """
        return self.encode(rows)

    @abstractmethod
    def encode_target(self, row: Row) -> Any:
        """The target of one row as what :meth:`loss` takes."""

    @abstractmethod
    def length(self, example: Example) -> int:
        """Tokens of an example, for batches of equal lengths; of its target too where that is read beside it."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one padded batch; with a ``targets`` tensor where the examples have a ``target``."""

    def shown(self, example: Example) -> dict[str, str]:
        """What a person looks at or hears instead of reading: ``image`` and ``sound`` as ``data:`` addresses."""
        return {}

    # --- the model ------------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, base: Path) -> "PreTrainedModel":
        """The pre-trained model with a new head for this task. Draws new weights from torch's random state."""

    @abstractmethod
    def open(self, folder: Path) -> "PreTrainedModel":
        """The fine-tuned model of a bundle, in evaluation mode."""

    @abstractmethod
    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        """The modules that are new, which ``adapt: head`` trains alone; none without a ``new_head``."""

    def temperature(self, outputs: Outputs, targets: Sequence[Any]) -> float:
        """What outputs are to be divided by so that the probabilities of answers are right on average; see
        :meth:`cool`."""
        return 1.0

    def cool(self, model: "PreTrainedModel", temperature: float) -> None:
        """Has a trained model say its outputs divided by a temperature, so that whoever opens it gets them so."""
        raise NotImplementedError

    def settle(self, model: "PreTrainedModel") -> "Task":
        """Brings into the weights what only training needed to know; returns the task that goes with them."""
        return self

    @abstractmethod
    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The model's outputs for a batch, e.g. logits of shape ``[batch, labels]``."""

    def infer(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The same where an answer is wanted; another thing than :meth:`forward` for a model that generates."""
        return self.forward(model, batch)

    def keep(self, outputs: torch.Tensor, examples: Sequence[Example]) -> list[Output]:
        """What of a batch's outputs is kept for each of its examples, padding removed."""
        return list(outputs.detach().float().cpu().numpy())

    def written_length(self, output: Output) -> int:
        """Tokens that the model wrote for an example, of whose outputs :meth:`keep` made this; none where it only
        reads."""
        return 0

    @abstractmethod
    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss of each example, of shape ``[batch]``; the loop sums and scales it.

        With ``whole_batch`` both are those of all workers, padded to one shape.
        """

    # --- outputs to answers ---------------------------------------------------------------------------------------

    @abstractmethod
    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        """One answer for each of ``outputs``, shaped as the Hugging Face Inference API's for this task.

        Raises:
            UserError: a parameter is unknown or has a wrong value.
        """

    @abstractmethod
    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        """The task's metrics by name; every name of ``metrics_known`` and ``loss`` are among them."""

    @property
    @abstractmethod
    def baselines(self) -> dict[str, Baseline]:
        """What is measured beside the model on the same rows: name to how it is made."""

    def importance(self, model: "PreTrainedModel", rows: Sequence[Row]) -> dict[str, float]:
        """By how much the headline worsens when one column's values are shuffled over ``rows``, for each column.

        Only a task whose report shows it computes it. ``model`` is a finished one, on the CPU.
        """
        return {}

    @property
    @abstractmethod
    def report_sections(self) -> Sequence["Section"]:
        """What the report of a run shows, in order: those of ``training/evaluation/sections.py``, or the task's own."""

    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """JSON Schemas of one ``input``, of the ``parameters`` and of one ``output``."""


def task_names() -> list[str]:
    """The names of all tasks there are: the files of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem.replace("_", "-") for file in files if file.stem not in {"__init__", "task"})


def task_class(name: str) -> type[Task]:
    """The task of that name.

    Raises:
        UserError: there is none.
    """
    if name not in task_names():
        raise UserError(f"there is no task '{name}' in this version; there is {', '.join(task_names())}")
    module = importlib.import_module(f"training.tasks.{name.replace('-', '_')}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__} must define exactly one Task"
    return own[0]


def parts_misfit(task: Task | type[Task], tokens: object) -> str | None:
    """Why this task's batches cannot be computed in parts of so many tokens; None where they can, or are not."""
    if tokens is None or not task.whole_batch:
        return None
    return (
        f"{task.name} compares all rows of a batch with each other, which cannot be computed in parts; lower "
        "train.batch_size, or set train.activation_checkpointing"
    )
