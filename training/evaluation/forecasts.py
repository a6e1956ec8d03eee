"""What a forecast must beat, and what its report shows."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from sklearn.ensemble import HistGradientBoostingRegressor

from training.evaluation import charts, sections
from training.evaluation.page import Fragment, fragment
from training.evaluation.sections import ReportData, Section
from training.tasks.task import Example, Outputs, Task
from training.tasks.time_series_forecasting import TimeSeriesForecasting

SEED = 7
CHUNK = 1_000
"""Windows that are taken from their table at once, so that a long context does not fill the memory."""

MOST_PAIRS = 200_000
"""Pairs of a window and a step that the trees learn from; beyond it, every so many-th."""

LAGS = 24
SHOWN = 3

Floats = npt.NDArray[np.float64]


def seasonal_naive(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Each step as the one a season before it, or the newest one that is known."""
    own = cast(TimeSeriesForecasting, task)
    return [
        _as_outputs(own, [_repeated(own, _past(own, one)[:, 0]) for one in _examples(own, table)]) for table in others
    ]


def trees(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Histogram gradient boosting of the absolute error, on lags, the seasonal-naive forecast, covariates and calendar.

    One model for all steps, which it is told; it reads and says values relative to each window's level and spread.
    """
    own = cast(TimeSeriesForecasting, task)
    rows, targets = _learnable(own, train)
    model = HistGradientBoostingRegressor(loss="absolute_error", random_state=SEED).fit(rows, targets)
    said = []
    for table in others:
        forecasts = []
        for example in _examples(own, table):
            level, spread = _scale(own, example)
            forecasts.append(model.predict(_steps(own, example)) * spread + level)
        said.append(_as_outputs(own, forecasts))
    return said


def _learnable(task: TimeSeriesForecasting, train: pa.Table) -> tuple[Floats, Floats]:
    every = -(-train.num_rows * task.shape.horizon // MOST_PAIRS)
    rows, targets = [], []
    chosen = train.take(pa.array(range(0, train.num_rows, max(1, every))))
    truths = (truth for batch in chosen.to_batches(CHUNK) for truth in batch[task.shape.target].to_pylist())
    for example, truth in zip(_examples(task, chosen), truths, strict=True):
        level, spread = _scale(task, example)
        known = np.array([np.nan if value is None else float(value) for value in truth])
        rows.append(_steps(task, example)[~np.isnan(known)])
        targets.append((known[~np.isnan(known)] - level) / spread)
    return np.concatenate(rows), np.concatenate(targets)


def _steps(task: TimeSeriesForecasting, example: Example) -> Floats:
    """What the trees know of each step to come: ``[horizon, features]``."""
    level, spread = _scale(task, example)
    values = (_past(task, example)[:, 0] - level) / spread
    lags = np.full(min(LAGS, len(values)), np.nan)
    lags[:] = values[-len(lags) :]
    horizon = task.shape.horizon
    future = np.frombuffer(example["future"], dtype=np.float32).reshape(horizon, -1)
    before = (_repeated(task, _past(task, example)[:, 0]) - level) / spread
    numbers = [np.arange(horizon), before, np.full(horizon, example["series"]), np.full(horizon, level)]
    return np.concatenate([np.stack(numbers, axis=1), np.tile(lags, (horizon, 1)), future], axis=1)


def _examples(task: TimeSeriesForecasting, table: pa.Table) -> Any:
    for batch in table.to_batches(CHUNK):
        yield from task.encode(batch.to_pylist())


def _past(task: TimeSeriesForecasting, example: Example) -> Floats:
    past = np.frombuffer(example["past"], dtype=np.float32).reshape(task.shape.context, -1)
    return past.astype(np.float64)


def _scale(task: TimeSeriesForecasting, example: Example) -> tuple[float, float]:
    values = _past(task, example)[:, 0]
    level = float(np.nanmean(values))
    return level, max(float(np.nanstd(values)), 0.05 * abs(level), 1e-6)


def _repeated(task: TimeSeriesForecasting, values: Floats) -> Floats:
    """The newest known value that lies whole seasons before each step; where there is none, the newest of all."""
    known = np.flatnonzero(~np.isnan(values))
    said = np.full(task.shape.horizon, values[known[-1]])
    for step in range(task.shape.horizon):
        places = np.arange(len(values) + step - task.season, -1, -task.season)
        places = places[places < len(values)]
        there = places[~np.isnan(values[places])]
        if len(there):
            said[step] = values[there[0]]
    return said


def _as_outputs(task: TimeSeriesForecasting, forecasts: Sequence[Floats]) -> Outputs:
    """One number for a step as all its quantiles."""
    return [np.repeat(one[:, None], len(task.quantiles), axis=1).astype(np.float32) for one in forecasts]


def examples_drawn(data: ReportData, quantiles: Sequence[float]) -> Fragment | None:
    """Some forecasts beside what came, and how the error grows with the distance."""
    if data.outputs is None or not data.rows:
        return None
    said, truth = np.asarray(data.outputs, dtype=np.float64), np.asarray(data.targets, dtype=np.float64)[:, :-1]
    middle = list(quantiles).index(0.5)
    known = ~np.isnan(truth)
    errors = np.full(truth.shape[1], np.nan)
    steps = np.flatnonzero(known.any(axis=0))
    errors[steps] = np.nanmean(np.abs(said[:, steps, middle] - truth[:, steps]), axis=0)
    first, last = steps[[0, -1]].tolist()
    chosen = np.linspace(0, len(said) - 1, min(SHOWN, len(said))).astype(int)
    drawn = [
        _forecast(said[place], truth[place], middle, data.texts[place] if data.texts else "")
        for place in chosen.tolist()
    ]
    told = f"Mean absolute error from {errors[first]:.3g} at step {first + 1} to {errors[last]:.3g} at step {last + 1}."
    drawn.append(_line(errors, "mean absolute error, step by step", told))
    coverage = ((said[:, :, 0] <= truth) & (truth <= said[:, :, -1]))[known].mean()
    return fragment(
        "What it forecasts",
        "forecasts",
        charts=drawn,
        promised=quantiles[-1] - quantiles[0],
        coverage=float(coverage),
        first={"step": first + 1, "error": charts.compact(errors[first])},
        last={"step": last + 1, "error": charts.compact(errors[last])},
    )


def _forecast(said: Floats, truth: Floats, middle: int, title: str) -> Markup:
    steps = np.arange(1, len(said) + 1)
    with matplotlib.rc_context(charts.STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(steps, said[:, 0], said[:, -1], color=charts.SOFT, linewidth=0)
        axes.plot(steps, said[:, middle], color=charts.ACCENT, linewidth=1.8)
        axes.plot(steps, truth, color=charts.INK, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.set_title(charts.clipped(title, 44))
        return _framed(figure, f"Forecast {title}: {said[0, middle]:.3g} to {said[-1, middle]:.3g}.")


def _line(values: Floats, title: str, alt: str) -> Markup:
    with matplotlib.rc_context(charts.STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(np.arange(1, len(values) + 1), values, color=charts.ACCENT, linewidth=1.8)
        axes.set_title(title)
        axes.set_ylim(bottom=0)
        return _framed(figure, alt)


def _framed(figure: Figure, alt: str) -> Markup:
    axes = figure.axes[0]
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: charts.compact(value)))
    return charts.svg(figure, alt)


def sections_for(quantiles: Sequence[float]) -> tuple[Section, ...]:
    """The sections of a model that forecasts."""
    own: Section = partial(examples_drawn, quantiles=list(quantiles))
    before = (sections.verdict, sections.comparison, own, sections.learning)
    return (*before, sections.sources, sections.recipe, sections.making)
