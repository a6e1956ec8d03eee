"""Tabular classification: one label, several, or a label of an order for a row of numbers, categories, dates, texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from cluster.errors import UserError
from cluster.settings import Strict
from training.evaluation import metrics
from training.evaluation.metrics import Floats
from training.families.tabular import TableOptions, TabularTask
from training.inputs.cells import read_label
from training.inputs.text import in_form
from training.targets import KINDS, Kinds, LabelOptions, OneLabel, every_metric

if TYPE_CHECKING:
    from training.evaluation.sections import Section


class Options(TableOptions, LabelOptions):
    """What is predicted of a row, how its columns are read, and how large the network is."""

    problem: Literal["single-label", "multi-label", "ordinal"] = Field(
        "single-label", description="One label, several, or one of an ordered set."
    )
    positive: str | None = Field(
        None, description="Of two labels the one that is looked for; by default the one that sorts last, as in No, Yes."
    )


class Ranked(OneLabel):
    """One label of a fixed set, where what matters is how well rows are ranked by its probability.

    Of two labels the last is the one that is looked for.
    """

    metrics_known: ClassVar[dict[str, str]] = metrics.RANKED
    headline: ClassVar[str] = "auc"
    of_probabilities: ClassVar[frozenset[str]] = OneLabel.of_probabilities | {"brier"}

    @classmethod
    def learn(cls, column: str, cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any], unicode: str) -> Self:
        found = super().learn(column, cells, options, unicode)
        if options.get("positive") is None:
            return found
        positive = in_form(read_label(options["positive"]), unicode)
        if positive not in found.labels or len(found.labels) > 2:
            raise UserError(
                f"model.options.positive: must be one of two labels; '{column}' has {', '.join(found.labels)}"
            )
        return cls(column, sorted(found.labels, key=lambda label: label == positive), unicode)

    def metrics(self, outputs: Floats, targets: Sequence[Any]) -> dict[str, float]:
        return metrics.ranked(outputs, np.asarray(targets, dtype=np.int64), self.labels)

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import ranking  # it draws, and a replica does not

        return ranking.RANKED


class TabularClassification(TabularTask):
    """Reads a row of a table and answers with labels and their probabilities."""

    name: ClassVar[str] = "tabular-classification"
    options_known: ClassVar[type[Strict]] = Options
    table_answer: ClassVar[str | None] = "label"
    targets: ClassVar[Kinds] = {
        "single-label": Ranked,
        "multi-label": KINDS["multi-label"],
        "ordinal": KINDS["ordinal"],
    }
    metrics_known: dict[str, str] = every_metric(targets)
    headline: str = Ranked.headline
