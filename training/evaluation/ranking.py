"""Parts of the report of a model of tables: how well it ranks rows, and how far its numbers lie from the truth."""

from collections.abc import Callable, Sequence
from functools import partial

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.evaluation import charts, metrics, sections
from training.evaluation.page import Fragment, fragment, measure, metric_title, points
from training.evaluation.sections import ReportData, Section
from training.targets import Number

MOST_DOTS, MOST_COLUMNS = 2_000, 20
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f}%")

Values = npt.NDArray[np.float64]


def curves(data: ReportData) -> Fragment | None:
    """What each threshold on the probability of the label that is looked for would bring."""
    if data.outputs is None or len(data.labels) != 2 or len(set(data.targets)) != 2:
        return None
    from sklearn.metrics import precision_recall_curve, roc_curve

    wanted = data.labels[1]
    truth = np.asarray(data.targets) == 1
    shares = np.exp(metrics.log_probabilities(np.asarray(data.outputs)))[:, 1]
    false, true, _ = roc_curve(truth, shares)
    precision, recall, _ = precision_recall_curve(truth, shares)
    area, average = data.measured("auc") or 0.0, data.measured("average_precision") or 0.0
    rank = f"Receiver operating characteristic of {wanted}: area {area:.3f}."
    found = (
        f"Precision over recall of {wanted}: average precision {average:.3f}, where {truth.mean():.1%} of rows have it."
    )
    drawn = [
        _curve(false, true, ("false alarms", "found"), rank, by_chance=([0, 1], [0, 1])),
        _curve(
            recall[:-1], precision[:-1], ("found", "right when raised"), found, by_chance=([0, 1], [truth.mean()] * 2)
        ),
    ]
    told = {"wanted": wanted, "area": area, "average": average, "share": float(truth.mean())}
    return fragment("How well it ranks", "ranking", charts=drawn, **told)


def importance(data: ReportData) -> Fragment | None:
    """How much each column matters to it."""
    found = sorted(data.importance().items(), key=lambda item: -item[1])[:MOST_COLUMNS]
    if not found:
        return None
    most = max(found[0][1], 1e-12)
    rows = [
        {"name": name, "value": bar, "said": _said(value, data.headline), "low": bar, "high": bar, "ours": False}
        for name, value in found
        for bar in [max(value, 0.0) / most]
    ]
    alt = "Columns by importance: " + ", ".join(f"{row['name']} {row['said']}" for row in rows)
    worse = metric_title(data.headline)
    return fragment("What it goes by", "importance", chart=charts.bars(rows, alt), worse=worse)


def _said(value: float, headline: str) -> str:
    return measure(value, headline) if headline in metrics.NUMBERS else f"{points(value)} points"


def spread(data: ReportData, target: Number) -> Fragment | None:
    """What it says against what is, and how far off it is."""
    if data.outputs is None or not data.rows:
        return None
    truth, said = np.asarray(data.targets, dtype=np.float64), target.values(np.asarray(data.outputs))
    off = said - truth
    half, most = np.quantile(np.abs(off), [0.5, 0.9])
    shown = np.linspace(0, len(truth) - 1, min(len(truth), MOST_DOTS)).astype(int)
    alt = f"Said against true: half of the rows are off by less than {half:.3g}, nine in ten by less than {most:.3g}."
    drawn = [_dots(truth[shown], said[shown], alt), _histogram(off, f"Errors: mean {off.mean():.3g}.")]
    told = {"half": charts.compact(half), "most": charts.compact(most), "mean": charts.compact(off.mean())}
    return fragment("How far off it is", "spread", charts=drawn, **told)


def _curve(
    across: Values, up: Values, names: tuple[str, str], alt: str, by_chance: tuple[Sequence[float], Sequence[float]]
) -> Markup:
    with matplotlib.rc_context(charts.STYLE):
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*by_chance, color=charts.MUTED, linewidth=1, linestyle=(0, (4, 4)))
        points = charts.thinned(np.stack([across, up], axis=1))
        axes.plot(points[:, 0], points[:, 1], color=charts.ACCENT, linewidth=1.8)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.set_xlabel(names[0])
        axes.set_title(names[1])
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_formatter(PERCENT)
        return charts.svg(figure, alt)


def _dots(truth: Values, said: Values, alt: str) -> Markup:
    low, high = float(min(truth.min(), said.min())), float(max(truth.max(), said.max()))
    with matplotlib.rc_context(charts.STYLE):
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color=charts.MUTED, linewidth=1, linestyle=(0, (4, 4)))
        axes.plot(truth, said, color=charts.ACCENT, linestyle="none", marker="o", markersize=2.5, alpha=0.5)
        axes.set_xlabel("true")
        axes.set_title("said")
        return _numbered(figure, alt)


def _histogram(values: Values, alt: str) -> Markup:
    low, high = np.quantile(values, [0.005, 0.995])
    with matplotlib.rc_context(charts.STYLE):
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        shares, edges = np.histogram(np.clip(values, low, high), bins=40)
        axes.bar(edges[:-1], shares / max(1, len(values)), np.diff(edges) * 0.9, align="edge", color=charts.SOFT)
        axes.axvline(0, color=charts.MUTED, linewidth=1)
        axes.set_xlabel("said − true")
        axes.set_title("share of the rows")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        return _numbered(figure, alt, up=False)


def _numbered(figure: Figure, alt: str, *, up: bool = True) -> Markup:
    axes = figure.axes[0]
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis) if up else (axes.xaxis,):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: charts.compact(value)))
    return charts.svg(figure, alt)


RANKED: tuple[Section, ...] = (
    sections.verdict,
    sections.comparison,
    sections.learning,
    importance,
    curves,
    sections.confidence,
    sections.confusion,
    sections.errors,
    sections.labels,
    sections.sources,
    sections.recipe,
    sections.making,
)
"""The sections of a model that ranks rows by the probability of a label."""


def regression(target: Number) -> tuple[Section, ...]:
    """The sections of a model that says a number."""
    own: Callable[[ReportData], Fragment | None] = partial(spread, target=target)
    shown = list(sections.REGRESSION)
    return (*shown[: shown.index(sections.learning) + 1], importance, own, *shown[shown.index(sections.learning) + 1 :])
