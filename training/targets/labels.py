"""Targets that are labels: one, one of an order, or several."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from cluster.errors import UserError
from training.evaluation import calibration, metrics
from training.evaluation.metrics import Floats
from training.inputs.cells import read_label, read_labels
from training.inputs.text import in_form
from training.targets.target import TOP_K, Problem, Target, refuse_missing, refuse_unknown

if TYPE_CHECKING:
    from training.evaluation.sections import Section


class OneLabel(Target):
    """One label of a fixed set."""

    problem: ClassVar[Problem] = "single-label"
    problem_type: ClassVar[str] = "single_label_classification"
    metrics_known: ClassVar[dict[str, str]] = metrics.CLASSIFICATION
    headline: ClassVar[str] = "accuracy"
    of_probabilities: ClassVar[frozenset[str]] = frozenset({"calibration_error", "loss"})

    def __init__(self, column: str, labels: Sequence[str], unicode: str = "none") -> None:
        super().__init__(column, unicode)
        self.labels = list(labels)
        self._index = {label: index for index, label in enumerate(self.labels)}

    @classmethod
    def learn(cls, column: str, cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any], unicode: str) -> Self:
        refuse_missing(column, cells)
        return cls(column, _label_set(column, (cell for one in cells.values() for cell in one), unicode), unicode)

    def save(self) -> dict[str, Any]:
        return {"problem": self.problem, "column": self.column, "labels": self.labels, "unicode": self.unicode}

    def encode(self, cell: Any) -> int:
        return self._index[in_form(read_label(cell), self.unicode)]

    def tensor(self, encoded: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(encoded, dtype=torch.int64)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def decode(self, outputs: Floats, parameters: Mapping[str, Any]) -> list[Any]:
        """The labels of each row and their probabilities, likeliest first.

        With ``abstain_below`` a row whose likeliest label is less probable gets no label: somebody should look at it.
        """
        refuse_unknown(parameters, ("top_k", "abstain_below"))
        least = _share(parameters, "abstain_below")
        answers = _ranked(np.exp(metrics.log_probabilities(outputs)), self.labels, _top_k(parameters, len(self.labels)))
        return [answer if answer[0]["score"] >= least else [] for answer in answers]

    def parameters_schema(self) -> dict[str, Any]:
        known = super().parameters_schema()
        known["properties"]["abstain_below"] = {"type": ["number", "null"], "minimum": 0, "maximum": 1, "default": 0}
        return known

    def temperature(self, outputs: Floats, targets: Sequence[Any]) -> float:
        said, truth = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.int64)
        unknown = 1 / (len(truth) + 1)  # the weight of one further row, which may have any label

        def loss(temperature: float) -> float:
            likely = metrics.log_probabilities(said / temperature)
            known = likely[np.arange(len(truth)), truth].mean()
            return float(-(1 - unknown) * known - unknown * likely.mean())

        return calibration.temperature(loss, len(truth))

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.classification(outputs, np.asarray(targets, dtype=np.int64), self.labels)

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # it draws, and a replica does not

        return sections.CLASSIFICATION


class Ordinal(OneLabel):
    """One label of an ordered set: stars, grades, severities. It is judged by how far it misses.

    Loss and answer are those of a classifier, so that ``transformers.pipeline`` names the same label. Who would rather
    have the label of the least expected distance finds it at the median of the probabilities in the answer.
    """

    problem: ClassVar[Problem] = "ordinal"
    metrics_known: ClassVar[dict[str, str]] = metrics.ORDINAL
    headline: ClassVar[str] = "mae"

    @classmethod
    def learn(cls, column: str, cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any], unicode: str) -> Self:
        refuse_missing(column, cells)
        found = _label_set(column, (cell for one in cells.values() for cell in one), unicode)
        order = [in_form(read_label(label), unicode) for label in options.get("order") or ()]
        if not order and not all(map(_is_number, found)):
            raise UserError(
                f"model.options.order: the labels of '{column}' are no numbers; list them from least to most"
            )
        if order and set(order) != set(found):
            odd = ", ".join(sorted(set(order) ^ set(found)))
            raise UserError(f"model.options.order: must name every label of '{column}' once; look at {odd}")
        return cls(column, order or found, unicode)

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.ordinal(outputs, np.asarray(targets, dtype=np.int64), self.labels)


class ManyLabels(Target):
    """Any number of labels of a fixed set, none too. A cell is a list, or a text with a separator between them."""

    problem: ClassVar[Problem] = "multi-label"
    problem_type: ClassVar[str] = "multi_label_classification"
    metrics_known: ClassVar[dict[str, str]] = metrics.MULTILABEL
    headline: ClassVar[str] = "micro_f1"
    of_probabilities: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __init__(self, column: str, labels: Sequence[str], separator: str, unicode: str = "none") -> None:
        super().__init__(column, unicode)
        self.labels, self.separator = list(labels), separator
        self._index = {label: index for index, label in enumerate(self.labels)}

    @classmethod
    def learn(cls, column: str, cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any], unicode: str) -> Self:
        separator = options.get("separator", ",")
        every = (name for one in cells.values() for cell in one for name in read_labels(cell, separator))
        return cls(column, _label_set(column, every, unicode), separator, unicode)

    def save(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "column": self.column,
            "labels": self.labels,
            "separator": self.separator,
            "unicode": self.unicode,
        }

    def encode(self, cell: Any) -> npt.NDArray[np.int64]:
        labels = read_labels(cell, self.separator)
        # With a type, for a row without a label has one, too: columns are made of the first rows.
        return np.array(sorted({self._index[in_form(label, self.unicode)] for label in labels}), dtype=np.int64)

    def tensor(self, encoded: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(metrics.indicators(encoded, len(self.labels)).astype(np.float32))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)

    def decode(self, outputs: Floats, parameters: Mapping[str, Any]) -> list[Any]:
        refuse_unknown(parameters, ("top_k",))
        return _ranked(metrics.sigmoid(outputs), self.labels, _top_k(parameters, len(self.labels)))

    def temperature(self, outputs: Floats, targets: Sequence[Any]) -> float:
        said, truth = np.asarray(outputs, dtype=np.float64), metrics.indicators(targets, len(self.labels))
        unknown = 1 / (len(truth) + 1)
        wanted = (1 - unknown) * truth + unknown / 2

        def loss(temperature: float) -> float:
            logits = said / temperature
            return float(np.mean(np.logaddexp(0, logits) - wanted * logits))

        return calibration.temperature(loss, len(truth))

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.multilabel(outputs, metrics.indicators(targets, len(self.labels)))

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # as above

        return sections.MULTILABEL


def _label_set(column: str, names: Iterable[Any], unicode: str) -> list[str]:
    labels = sorted({in_form(read_label(name), unicode) for name in names}, key=_label_order)
    if len(labels) < 2:
        raise UserError(f"model.target: '{column}' has {len(labels)} label; a classifier needs two or more")
    return labels


def _label_order(label: str) -> tuple[bool, float, str]:
    return (False, float(label), label) if _is_number(label) else (True, 0.0, label)


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def _ranked(scores: Floats, labels: Sequence[str], top_k: int) -> list[Any]:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[index], "score": float(row[index])} for index in order]
        for row, order in zip(scores, best, strict=True)
    ]


def _top_k(parameters: Mapping[str, Any], labels: int) -> int:
    top_k = parameters.get("top_k")
    if top_k is None:
        return min(TOP_K, labels)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise UserError("parameters.top_k: a whole number from 1 up is needed")
    return min(top_k, labels)


def _share(parameters: Mapping[str, Any], name: str) -> float:
    share = parameters.get(name)
    if share is None:
        return 0.0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"parameters.{name}: a number from 0 to 1 is needed")
    return float(share)
