"""A target that is a number."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from cluster.errors import UserError
from training.evaluation import metrics
from training.evaluation.metrics import Floats
from training.targets.target import Problem, Target, refuse_missing, refuse_unknown

if TYPE_CHECKING:
    from training.evaluation.sections import Section


class Number(Target):
    """A number. The model learns it standardised; :meth:`settle` brings it to the number's own scale where it can.

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
        refuse_missing(column, cells)
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
        refuse_unknown(parameters, ())
        return [[{"label": self.column, "score": float(value)}] for value in self.values(outputs)]

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.regression(self.values(outputs), np.asarray(targets, dtype=np.float64), self.spread)

    def settle(self, last: torch.nn.Linear) -> "Number":
        """Brings the last layer of a trained model to the number's scale, so that whoever opens it gets the number.

        Returns:
            The target that goes with the changed model. A decoder's last layer has no bias that the mean could be added
            to: it stays as it is, and what it says standardised.
        """
        settled = last.bias is not None
        if settled:
            with torch.no_grad():
                last.weight.mul_(self.spread)
                last.bias.mul_(self.spread).add_(self.mean)
        return Number(self.column, self.mean, self.spread, settled, self.unicode)

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # as above

        return sections.REGRESSION
