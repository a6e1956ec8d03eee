"""What the tasks have in common that say one target of a row, whatever they read of it."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from training.targets import KINDS, Number, Target, every_metric
from training.tasks.task import Batch, Example, Outputs, Row, Task

if TYPE_CHECKING:
    from training.evaluation.sections import Section


class Predicting(Task):
    """A task with a :class:`Target`; who derives from it brings what is read and what the model is.

    Attributes:
        target: turns the target column into tensors, and outputs into answers.
    """

    metrics_known: dict[str, str] = every_metric()
    headline: str = KINDS["single-label"].headline

    def __init__(self, target: Target) -> None:
        self.target, self.labels = target, target.labels
        self.metrics_known, self.headline = target.metrics_known, target.headline
        self.of_probabilities = target.of_probabilities

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

    def last_layer(self, model: PreTrainedModel) -> torch.nn.Linear:
        """The layer whose one output is the number."""
        layers = [layer for module in self.head(model) for layer in module.modules()]
        return [layer for layer in layers if isinstance(layer, torch.nn.Linear) and layer.out_features == 1][-1]

    def settle(self, model: PreTrainedModel) -> Task:
        if not isinstance(self.target, Number):
            return self
        settled = copy.copy(self)
        settled.target = self.target.settle(self.last_layer(model))
        return settled

    @abstractmethod
    def head(self, model: PreTrainedModel) -> Sequence[torch.nn.Module]: ...

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.target.loss(outputs, batch["targets"])

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        return self.target.decode(np.stack(outputs), parameters)

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        return self.target.metrics(np.asarray(outputs), targets)

    @property
    def report_sections(self) -> Sequence["Section"]:
        return self.target.report_sections
