"""What is predicted of a row: one label, several labels, a label of an order, or a number.

A task that predicts one of these for a row, from whatever inputs, holds a :class:`Target`. It knows how a cell of the
target column becomes a tensor, what the loss is, and how the model's outputs become answers and metrics.

    cell -> encode -> tensor -> loss
                     outputs -> decode -> answer
                            \\-> metrics
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch

from cluster.errors import UserError
from training.evaluation import metrics
from training.evaluation.metrics import Floats
from training.text import in_form

if TYPE_CHECKING:
    from training.evaluation.sections import Section

Problem = Literal["single-label", "multi-label", "ordinal", "regression"]

TOP_K = 5
"""Labels in an answer where the request does not say, as the Hugging Face Inference API answers."""


class Target(ABC):
    """One kind of thing to predict.

    Attributes:
        column: the column that holds it.
        unicode: the form that labels are brought to.
        labels: the names that outputs index, where there are such.
        width: numbers that the model says of a row.
    """

    problem: ClassVar[Problem]
    problem_type: ClassVar[str]
    """The same, as transformers' configurations name it."""

    metrics_known: ClassVar[dict[str, str]]
    headline: ClassVar[str]
    of_probabilities: ClassVar[frozenset[str]] = frozenset()

    labels: list[str]

    def __init__(self, column: str, unicode: str = "none") -> None:
        self.column, self.unicode = column, unicode

    @property
    def width(self) -> int:
        """Numbers that the model says of a row."""
        return len(self.labels)

    # --- made from data, kept in a bundle -----------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def learn(cls, column: str, cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any], unicode: str) -> Self:
        """The target for these cells.

        Args:
            cells: for each split, the target column.
            options: the task's, of the recipe.

        Raises:
            UserError: nothing can be learned from them.
        """

    @abstractmethod
    def save(self) -> dict[str, Any]:
        """The arguments that make the same target again, as JSON."""

    # --- learning -----------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, cell: Any) -> Any:
        """A cell as a number or a list of numbers."""

    @abstractmethod
    def tensor(self, encoded: Sequence[Any]) -> torch.Tensor:
        """Encoded cells as what :meth:`loss` takes."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each row, of shape ``[rows]``, from outputs of shape ``[rows, width]``."""

    # --- answering ----------------------------------------------------------------------------------------------

    @abstractmethod
    def decode(self, outputs: Floats, parameters: Mapping[str, Any]) -> list[Any]:
        """One answer for each row of ``outputs``, in the shape of the Hugging Face Inference API.

        Raises:
            UserError: a parameter is unknown or has a wrong value.
        """

    @abstractmethod
    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        """One number for each name of ``metrics_known``; nothing where there are no rows."""

    @property
    @abstractmethod
    def report_sections(self) -> Sequence["Section"]:
        """What the report shows of a model with this target."""

    def parameters_schema(self) -> dict[str, Any]:
        """The JSON Schema of what a request may ask for besides."""
        properties: dict[str, Any] = {}
        if self.labels:
            properties["top_k"] = {"type": "integer", "minimum": 1, "default": TOP_K}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def answer_schema(self) -> dict[str, Any]:
        """The JSON Schema of one answer."""
        score = {"type": "number", "minimum": 0, "maximum": 1} if self.labels else {"type": "number"}
        entry = {
            "type": "object",
            "properties": {"label": {"enum": self.labels or [self.column]}, "score": score},
            "required": ["label", "score"],
        }
        return {"type": "array", "items": entry}


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
        _refuse_missing(column, cells)
        return cls(column, _label_set(column, (cell for one in cells.values() for cell in one), unicode), unicode)

    def save(self) -> dict[str, Any]:
        return {"problem": self.problem, "column": self.column, "labels": self.labels, "unicode": self.unicode}

    def encode(self, cell: Any) -> int:
        return self._index[in_form(label_text(cell), self.unicode)]

    def tensor(self, encoded: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(encoded, dtype=torch.int64)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def decode(self, outputs: Floats, parameters: Mapping[str, Any]) -> list[Any]:
        return _ranked(np.exp(metrics.log_probabilities(outputs)), self.labels, _top_k(parameters, len(self.labels)))

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.classification(outputs, np.asarray(targets, dtype=np.int64), self.labels)

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # it draws, and a replica does not

        return sections.CLASSIFICATION


class Ordinal(OneLabel):
    """One label of an ordered set: stars, grades, severities. Near misses count as such.

    The loss is that of a classifier; what is predicted is the median of its distribution, which is the label of the
    least expected distance.
    """

    problem: ClassVar[Problem] = "ordinal"
    metrics_known: ClassVar[dict[str, str]] = metrics.ORDINAL
    headline: ClassVar[str] = "mae"
    of_probabilities: ClassVar[frozenset[str]] = frozenset({"calibration_error", "loss", "mae", "quadratic_kappa"})

    @classmethod
    def learn(cls, column: str, cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any], unicode: str) -> Self:
        _refuse_missing(column, cells)
        found = _label_set(column, (cell for one in cells.values() for cell in one), unicode)
        order = [in_form(label_text(label), unicode) for label in options.get("order") or ()]
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
        every = (name for one in cells.values() for cell in one for name in _names(cell, separator))
        return cls(column, _label_set(column, every, unicode), separator, unicode)

    def save(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "column": self.column,
            "labels": self.labels,
            "separator": self.separator,
            "unicode": self.unicode,
        }

    def encode(self, cell: Any) -> list[int]:
        return sorted({self._index[in_form(label_text(name), self.unicode)] for name in _names(cell, self.separator)})

    def tensor(self, encoded: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(metrics.indicators(encoded, len(self.labels)).astype(np.float32))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)

    def decode(self, outputs: Floats, parameters: Mapping[str, Any]) -> list[Any]:
        return _ranked(metrics.sigmoid(outputs), self.labels, _top_k(parameters, len(self.labels)))

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.multilabel(outputs, metrics.indicators(targets, len(self.labels)))

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # as above

        return sections.MULTILABEL


class Number(Target):
    """A number. The model learns it standardised; :meth:`settle` brings its weights to the number's own scale.

    Attributes:
        mean: of the training rows.
        spread: their standard deviation; the loss is the squared error in units of it.
        settled: the model says the number itself.
    """

    problem: ClassVar[Problem] = "regression"
    problem_type: ClassVar[str] = "regression"
    metrics_known: ClassVar[dict[str, str]] = metrics.REGRESSION
    headline: ClassVar[str] = "mae"

    def __init__(self, column: str, mean: float, spread: float, settled: bool = False, unicode: str = "none") -> None:
        super().__init__(column, unicode)
        self.mean, self.spread, self.settled = mean, spread, settled
        self.labels = []

    @property
    def width(self) -> int:
        return 1

    @classmethod
    def learn(cls, column: str, cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any], unicode: str) -> Self:
        _refuse_missing(column, cells)
        try:
            numbers = np.array([float(cell) for one in cells.values() for cell in one])
            values = np.array([float(cell) for cell in cells["train"]])
        except (TypeError, ValueError):
            raise UserError(
                f"model.target: '{column}' is no column of numbers; data.clean.types: {{{column}: float}} "
                "rejects the rows that hold none"
            ) from None
        if not np.isfinite(numbers).all():
            raise UserError(f"model.target: '{column}' holds numbers that are not finite")
        if values.std() == 0:
            raise UserError(f"model.target: '{column}' is {values[0]:g} in every training row; nothing can be learned")
        return cls(column, float(values.mean()), float(values.std()), unicode=unicode)

    def save(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "column": self.column,
            "mean": self.mean,
            "spread": self.spread,
            "settled": self.settled,
            "unicode": self.unicode,
        }

    def encode(self, cell: Any) -> float:
        return float(cell)

    def tensor(self, encoded: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(encoded, dtype=torch.float64)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.mean, self.spread) if self.settled else (0.0, 1.0)
        standard = ((targets - self.mean) / self.spread).float()
        return ((outputs[:, 0] - shift) / scale - standard) ** 2

    def values(self, outputs: Floats) -> Floats:
        """The predicted numbers, of shape ``[rows]``."""
        said = np.asarray(outputs, dtype=np.float64).reshape(-1)
        return said if self.settled else said * self.spread + self.mean

    def decode(self, outputs: Floats, parameters: Mapping[str, Any]) -> list[Any]:
        _refuse_unknown(parameters, ())
        return [[{"label": self.column, "score": float(value)}] for value in self.values(outputs)]

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.regression(self.values(outputs), np.asarray(targets, dtype=np.float64), self.spread)

    def settle(self, last: torch.nn.Linear) -> "Number":
        """Brings the last layer of a trained model to the number's scale, so that whoever opens it gets the number.

        Returns:
            The target that goes with the changed model.
        """
        with torch.no_grad():
            last.weight.mul_(self.spread)
            last.bias.mul_(self.spread).add_(self.mean)
        return Number(self.column, self.mean, self.spread, settled=True, unicode=self.unicode)

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # as above

        return sections.REGRESSION


KINDS: dict[str, type[Target]] = {kind.problem: kind for kind in (OneLabel, ManyLabels, Ordinal, Number)}


def every_metric(problems: Iterable[str] = KINDS) -> dict[str, str]:
    """The metrics of these problems together: what a recipe may name before its problem is looked at."""
    return {name: way for problem in problems for name, way in KINDS[problem].metrics_known.items()}


def load_target(settings: Mapping[str, Any]) -> Target:
    """The target that ``save`` gave these settings for."""
    arguments = dict(settings)
    return KINDS[arguments.pop("problem")](**arguments)


def label_text(value: Any) -> str:
    """A label as text, so that ``3``, ``3.0`` and ``"3"`` are one label whatever engine read the column."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _names(cell: Any, separator: str) -> list[str]:
    """The labels in a cell; an empty or missing one has none."""
    if cell is None:
        return []
    parts = cell.split(separator) if isinstance(cell, str) else cell if isinstance(cell, list | tuple) else [cell]
    return [name for name in (label_text(part).strip() for part in parts) if name]


def _label_set(column: str, names: Iterable[Any], unicode: str) -> list[str]:
    labels = sorted({in_form(label_text(name), unicode) for name in names}, key=_label_order)
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


def _refuse_missing(column: str, cells: Mapping[str, Sequence[Any]]) -> None:
    for split, one in cells.items():
        missing = sum(cell is None for cell in one)
        if missing:
            raise UserError(
                f"model.target: {missing} of {len(one)} {split} rows have no '{column}'; "
                f"add it to data.clean.drop_empty to leave them out"
            )


def _ranked(scores: Floats, labels: Sequence[str], top_k: int) -> list[Any]:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[index], "score": float(row[index])} for index in order]
        for row, order in zip(scores, best, strict=True)
    ]


def _refuse_unknown(parameters: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        takes = f"this task takes {', '.join(known)}" if known else "this task takes none"
        raise UserError(f"parameters.{unknown[0]}: unknown; {takes}")


def _top_k(parameters: Mapping[str, Any], labels: int) -> int:
    _refuse_unknown(parameters, ("top_k",))
    top_k = parameters.get("top_k")
    if top_k is None:
        return min(TOP_K, labels)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise UserError("parameters.top_k: a whole number from 1 up is needed")
    return min(top_k, labels)
