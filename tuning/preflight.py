"""What can be known of a recipe and its sweep before anything is trained: all that `check` tells."""

from typing import Any

from cluster.errors import UserError
from training.data.fuse import inspect
from training.preflight import plan, rehearse
from training.recipe import Recipe
from training.tasks.task import Task
from tuning.recipe import Tune
from tuning.space import Space, apply


def foresee(recipe: Recipe, tune: Tune | None, sample_rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What would run where and what it will take, and the report of the data's first rows.

    Args:
        tune: checked by ``tuning.space.check_search``.

    Raises:
        UserError: what the stages themselves would end with: the data, training or the sweep.
        RunError: a source cannot be reached.
    """
    planned = plan(recipe)  # before the data is read: a base that is missing is said at once
    for params in Space.of(tune).encodings() if tune else []:
        plan(apply(recipe, params))
    sample = inspect(recipe, sample_rows)
    rehearsal = rehearse(recipe, sample, planned["workers"])
    if tune:
        judged(tune, rehearsal.task)
        check_rows(rehearsal.validation_rows)
    return planned | rehearsal.needs, sample.report


def judged(tune: Tune, task: Task | type[Task]) -> Tune:
    """The sweep's settings with its metric named.

    Raises:
        UserError: the task does not have it.
    """
    metric = tune.metric or task.headline
    if metric not in task.metrics_known:
        known = ", ".join(task.metrics_known)
        raise UserError(f"tune.metric: {task.name} has no '{metric}'; it has {known}")
    return tune.model_copy(update={"metric": metric})


def check_rows(validation_rows: int) -> None:
    """Raises a UserError where trials could not be compared."""
    if not validation_rows:
        raise UserError("tune: trials are compared on validation rows and there are none; set data.split.validation")
