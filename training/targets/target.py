"""What every kind of target does: a cell to a tensor, outputs to answers and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field

from cluster.errors import UserError
from cluster.settings import Strict
from training.evaluation.metrics import Floats

if TYPE_CHECKING:
    from training.evaluation.sections import Section

Problem = Literal["single-label", "multi-label", "ordinal", "regression"]

TOP_K = 5
"""Labels in an answer where the request does not say, as the Hugging Face Inference API answers."""


class LabelOptions(Strict):
    """How labels stand in the cells of the target column."""

    separator: str = Field(",", min_length=1, description="What stands between the labels of a multi-label cell.")
    order: list[str] = Field(
        default_factory=list, description="The labels of an ordinal target from least to most; numbers need no order."
    )


class TargetOptions(LabelOptions):
    """What is predicted of a row."""

    problem: Problem = Field("single-label", description="One label, several, one of an ordered set, or a number.")


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

    def temperature(self, outputs: Floats, targets: Sequence[Any]) -> float:
        """What outputs are to be divided by so that their probabilities are right on average.

        Args:
            outputs: of rows that the model did not learn from.
            targets: of these rows, encoded.
        """
        return 1.0

    @property
    @abstractmethod
    def report_sections(self) -> Sequence["Section"]:
        """What the report shows of a model with this target."""

    def parameters_schema(self) -> dict[str, Any]:
        """The JSON Schema of what a request may ask for besides."""
        properties: dict[str, Any] = {}
        if self.labels:
            properties["top_k"] = {"type": ["integer", "null"], "minimum": 1, "default": TOP_K}
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


def refuse_missing(column: str, cells: Mapping[str, Sequence[Any]]) -> None:
    """Raises a UserError where a cell is empty that must not be."""
    for split, one in cells.items():
        missing = sum(cell is None for cell in one)
        if missing:
            raise UserError(
                f"model.target: {missing} of {len(one)} {split} rows have no '{column}'; "
                f"add it to data.clean.drop_empty to leave them out"
            )


def refuse_unknown(parameters: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises a UserError where a request asks for what there is not."""
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        takes = f"this task takes {', '.join(known)}" if known else "this task takes none"
        raise UserError(f"parameters.{unknown[0]}: unknown; {takes}")
