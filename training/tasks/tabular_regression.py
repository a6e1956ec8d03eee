"""Tabular regression: a number for a row of numbers, categories, dates and texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from cluster.settings import Strict
from training.families.tabular import TableOptions, TabularTask
from training.targets import Kinds, Number

if TYPE_CHECKING:
    from training.evaluation.sections import Section


class TabularRegression(TabularTask):
    """Reads a row of a table and answers with a number."""

    name: ClassVar[str] = "tabular-regression"
    options_known: ClassVar[type[Strict]] = TableOptions
    table_answer: ClassVar[str | None] = "score"
    targets: ClassVar[Kinds] = {"regression": Number}
    metrics_known: dict[str, str] = Number.metrics_known
    headline: str = Number.headline

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import ranking  # it draws, and a replica does not

        assert isinstance(self.target, Number)
        return ranking.regression(self.target)
