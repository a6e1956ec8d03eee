"""What the tasks have in common that say one target of a row, whatever they read of it."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from cluster.errors import FewRowsError, UserError
from training.inputs.cells import read_label, read_labels
from training.recipe import Model
from training.targets import KINDS, Kinds, Number, Target, TargetOptions, every_metric
from training.tasks.task import Batch, Example, Outputs, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.evaluation.sections import Section


class MediaOptions(TargetOptions):
    """What is predicted of a file, and where files are."""

    folder: str = Field(
        ".",
        description="What relative names of files in the column start from, relative to the recipe; where it is given, "
        "a job on a cluster takes the folder along.",
    )


class Predicting(Task):
    """A task with a :class:`Target`; who derives from it brings what is read and what the model is.

    Attributes:
        target: turns the target column into tensors, and outputs into answers.
    """

    targets: ClassVar[Kinds] = KINDS
    """What can be predicted; the first where the task's options name no ``problem``."""

    metrics_known: dict[str, str] = every_metric(KINDS)
    headline: str = KINDS["single-label"].headline

    def __init__(self, target: Target) -> None:
        self.target, self.labels = target, target.labels
        self.metrics_known, self.headline = target.metrics_known, target.headline
        self.of_probabilities = target.of_probabilities

    @classmethod
    def metrics_with(cls, options: Mapping[str, Any]) -> dict[str, str]:
        problem = options.get("problem", next(iter(cls.targets)))
        known = cls.targets.get(problem) if isinstance(problem, str) else None
        return known.metrics_known if known else cls.metrics_known

    @classmethod
    def learn_target(cls, model: Model, splits: Mapping[str, pa.Table], unicode: str) -> Target:
        """The target that the options ask for, learned from the target column.

        Raises:
            FewRowsError: it lacks what further rows may have.
            UserError: it cannot be learned.
        """
        options = cls.options_known.model_validate(model.options).model_dump()
        kind = cls.targets[options.get("problem", next(iter(cls.targets)))]
        cells = {split: table[model.named_target].to_pylist() for split, table in splits.items()}
        try:
            return kind.learn(model.named_target, cells, options, unicode)
        except UserError as error:
            if _further_rows_may_do(cells, options):
                raise FewRowsError(str(error)) from None
            raise

    def encode_target(self, row: Row) -> Any:
        return self.target.encode(row[self.target.column])

    def with_targets(self, batch: Batch, examples: Sequence[Example]) -> Batch:
        """A batch with its ``targets``, where the examples have any."""
        if "target" in examples[0]:
            batch["targets"] = self.target.tensor([example["target"] for example in examples])
        return batch

    def head_settings(self) -> dict[str, Any]:
        """What transformers wants to know to put a new head on a base, also on one that had a head of other labels."""
        names = list(self.labels) or [self.target.column]
        return {
            "num_labels": self.target.width,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": self.target.problem_type,
            "ignore_mismatched_sizes": True,
        }

    def last_layer(self, model: "PreTrainedModel") -> torch.nn.Linear:
        """The layer whose outputs are the model's."""
        layers = [layer for module in self.head(model) for layer in module.modules()]
        width = self.target.width
        return [layer for layer in layers if isinstance(layer, torch.nn.Linear) and layer.out_features == width][-1]

    def temperature(self, outputs: Outputs, targets: Sequence[Any]) -> float:
        return self.target.temperature(np.asarray(outputs), targets)

    def cool(self, model: "PreTrainedModel", temperature: float) -> None:
        last = self.last_layer(model)
        with torch.no_grad():
            last.weight.div_(temperature)
            if last.bias is not None:
                last.bias.div_(temperature)

    def settle(self, model: "PreTrainedModel") -> Task:
        if not isinstance(self.target, Number):
            return self
        settled = copy.copy(self)
        settled.target = self.target.settle(self.last_layer(model))
        return settled

    @abstractmethod
    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]: ...

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.target.loss(outputs, batch["targets"])

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        return self.target.decode(np.stack(outputs), parameters)

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        return self.target.metrics(np.asarray(outputs), targets)

    @abstractmethod
    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema of one input."""

    def signature(self) -> dict[str, Any]:
        return {
            "input": self.input_schema(),
            "parameters": self.target.parameters_schema(),
            "output": self.target.answer_schema(),
        }

    @property
    def report_sections(self) -> Sequence["Section"]:
        return self.target.report_sections


def _further_rows_may_do(cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any]) -> bool:
    """Whether what a target misses could stand in rows that are not here: a second value, or a label of its order."""
    several = options.get("problem") == "multi-label"
    every = [cell for one in cells.values() for cell in one]
    if None in every and not several:
        return False
    separator = options.get("separator", ",")
    parts = [part for cell in cells["train"] for part in read_labels(cell if several else [cell], separator)]
    order = set(map(read_label, options.get("order") or ()))
    return len(set(parts)) < 2 or bool(order and set(map(read_label, every)) < order)
