"""What a model of a table must beat: boosted trees without the texts, and the texts without the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from training.evaluation import baselines, metrics
from training.families.tabular import TabularTask
from training.targets import ManyLabels, Number, Target
from training.tasks.task import Outputs, Row, Task

SEED = 7
MOST_NATIVE = 254
"""Categories of one column that scikit-learn's trees take as such; a column of more is read as a number."""

LEAST = 1e-7
"""The least probability that a baseline says, so that its loss is finite."""

Table = npt.NDArray[np.float64]


def trees(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Histogram gradient boosting as scikit-learn sets it up, on all columns but the texts; categories as such."""
    tabular = cast(TabularTask, task)
    native = [column.size <= MOST_NATIVE for column in tabular.columns.categories]
    seen, *unseen = [features(tabular, table.to_pylist()) for table in (train, *others)]
    width = seen.shape[1] if len(seen) else 0
    categorical = np.array([*native, *([False] * (width - len(native)))])
    targets = [tabular.encode_target(row) for row in train.to_pylist()]
    say = _boosted(tabular.target, seen, targets, categorical)
    return [say(one) if len(one) else [] for one in unseen]


def features(task: TabularTask, rows: Sequence[Row]) -> Table:
    """Codes of categories, then numbers and dates, of shape ``[rows, features]``; what is missing is not a number."""
    examples = task.columns.encode(rows)
    names = ("categories", "numbers", "dates")
    return np.array([[value for name in names for value in one.get(name, ())] for one in examples], dtype=np.float64)


def _boosted(
    target: Target, seen: Table, targets: Sequence[Any], categorical: npt.NDArray[np.bool_]
) -> Callable[[Table], Outputs]:
    settings = {"categorical_features": categorical, "random_state": SEED}
    if isinstance(target, Number):
        standard = (np.asarray(targets) - target.mean) / target.spread
        regressor = HistGradientBoostingRegressor(**settings).fit(seen, standard)
        return lambda rows: list(regressor.predict(rows).astype(np.float32)[:, None])
    if isinstance(target, ManyLabels):
        each = [_shares(seen, has, 2, settings) for has in metrics.indicators(targets, target.width).T.astype(np.int64)]
        return lambda rows: list(np.stack([np.subtract(*say(rows).T[::-1]) for say in each], axis=1))
    say = _shares(seen, np.asarray(targets), target.width, settings)
    return lambda rows: list(say(rows))


def _shares(
    seen: Table, labels: npt.NDArray[np.int64], width: int, settings: dict[str, Any]
) -> Callable[[Table], npt.NDArray[np.float32]]:
    """What says the log-probabilities of ``width`` labels, those that were never seen among them."""
    known = np.unique(labels)
    model = HistGradientBoostingClassifier(**settings).fit(seen, labels) if len(known) > 1 else None

    def say(rows: Table) -> npt.NDArray[np.float32]:
        shares = np.zeros((len(rows), width))
        shares[:, known] = model.predict_proba(rows) if model else 1.0
        return np.log(np.clip(shares, LEAST, 1.0)).astype(np.float32)

    return say


@dataclass(frozen=True)
class _Prose:
    """The task as one who reads its texts alone would have it."""

    task: TabularTask

    @property
    def target(self) -> Target:
        return self.task.target

    def text(self, row: Row) -> str:
        return self.task.prose(row)

    def encode_target(self, row: Row) -> Any:
        return self.task.encode_target(row)


def text(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """A linear model on TF-IDF of the texts, as for a task that reads nothing else."""
    return baselines.tfidf(cast(Task, _Prose(cast(TabularTask, task))), base, train, others)
