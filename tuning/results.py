"""What a sweep found: a table of its trials, a picture, and the best combination as overrides."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cluster.progress import duration
from tuning.ledger import FAILED, FINISHED, Trial, better
from tuning.recipe import Tune
from tuning.space import Dimension, Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BEST, OTHER, WEAK, BROKEN = "#0b7a75", "#3d7ea6", "#b8c4ce", "#c0392b"
COLUMNS = 3
"""The most panels of the picture in one row."""

Cells = list[str]


def overrides(best: dict[str, Any]) -> list[str]:
    """``best`` as the arguments that override a recipe: ``["train.learning_rate=0.0002", "model.adapt=full"]``."""
    return [f"{name}={_inline(value)}" for name, value in best.items()]


def typed(best: dict[str, Any]) -> str:
    """``best`` as one line for a shell."""
    return shlex.join(overrides(best))


def best_yaml(best: Trial, metric: str) -> str:
    """The best combination as a part of a recipe, with the line that overrides the same."""
    tree: dict[str, Any] = {}
    for name, value in best.params.items():
        *parents, last = name.split(".")
        inner = tree
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
    head = f"# Trial {best.number}: {metric} {best.value:.4f} on validation. The same on a command line:\n"
    return f"{head}#   {typed(best.params)}\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}"


def text(trials: Sequence[Trial], metric: str, mode: str) -> str:
    """The trials as lines, the best first and those that failed last."""
    head, rows = _cells(trials, metric, mode)
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def draw(trials: Sequence[Trial], tune: Tune, mode: str, path: Path) -> None:
    """Draws the sweep as a PNG: the metric over the epochs of each trial, and over each searched field."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fields = Space.of(tune).dimensions
    rows = math.ceil((len(fields) + 1) / COLUMNS)
    columns = math.ceil((len(fields) + 1) / rows)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.9), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    best = better(list(trials), mode)[0]
    _draw_epochs(panels[0], trials, best, tune.judge)
    for panel, field in zip(panels[1:], fields, strict=False):
        _draw_field(panel, trials, best, field)
    for panel in panels[len(fields) + 1 :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel(f"validation {tune.judge.replace('_', ' ')}", color=INK)
    figure.suptitle(_title(trials, best, tune.judge), x=0.01, ha="left", fontsize=13, color=INK, fontweight="bold")
    _draw_legend(figure, trials)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png")
    beside.replace(path)


def _ordered(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """The best first, the others by value whether they ran to their end or not, those without a value last."""
    ranked = better(list(trials), mode)
    sign = -1 if mode == "max" else 1
    others = sorted(ranked[1:], key=lambda trial: sign * (trial.value or 0.0))
    return [*ranked[:1], *others, *(trial for trial in trials if trial not in ranked)]


def _params(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _cells(trials: Sequence[Trial], metric: str, mode: str) -> tuple[Cells, list[Cells]]:
    """The head and the rows of the table; the errors have a column only where there are some."""
    names = _params(trials)
    failed = any(trial.error for trial in trials)
    head = ["trial", "status", metric, "epochs", *names, "time", *(["error"] if failed else [])]
    rows = []
    for trial in _ordered(trials, mode):
        value = "" if trial.value is None else f"{trial.value:.4f}"
        params = [_inline(trial.params.get(name)) for name in names]
        error = [trial.error or ""] if failed else []
        rows.append(
            [str(trial.number), trial.status, value, str(len(trial.epochs)), *params, duration(trial.seconds), *error]
        )
    return head, rows


def _inline(value: Any) -> str:
    """A value as YAML on one line, which reads back as the same value."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()


def _title(trials: Sequence[Trial], best: Trial, metric: str) -> str:
    counts = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", FAILED)}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"Trial {best.number} is the best of {len(trials)}: {metric.replace('_', ' ')} {best.value:.4f}   ({told})"


def _colour(trial: Trial, best: Trial) -> str:
    if trial.number == best.number:
        return BEST
    return {FINISHED: OTHER, FAILED: BROKEN}.get(trial.status, WEAK)


def _back_to_front(trials: Sequence[Trial], best: Trial) -> list[Trial]:
    return sorted(trials, key=lambda trial: (trial.number == best.number, trial.status == FINISHED))


def _draw_epochs(panel: "Axes", trials: Sequence[Trial], best: Trial, metric: str) -> None:
    for trial in _back_to_front(trials, best):
        epochs = [epoch["epoch"] for epoch in trial.epochs]
        values = [epoch["value"] for epoch in trial.epochs]
        if not epochs:
            continue
        width = 2.6 if trial.number == best.number else 1.4
        panel.plot(epochs, values, color=_colour(trial, best), linewidth=width, marker="o", markersize=width * 1.8)
    last = max((len(trial.epochs) for trial in trials), default=1)
    panel.set_xticks(range(1, last + 1))
    panel.set_xlim(0.8, last + 0.2 + (last == 1))
    _finish(panel, "epoch")


def _draw_field(panel: "Axes", trials: Sequence[Trial], best: Trial, field: Dimension) -> None:
    labels = [_inline(value) for value in field.values]
    for trial in _back_to_front(trials, best):
        value = trial.params[field.name]
        place = labels.index(_inline(value)) if labels else value
        chosen = trial.number == best.number
        if trial.value is None:
            panel.plot(
                place, 0.02, "x", color=BROKEN, markersize=7, transform=panel.get_xaxis_transform(), clip_on=False
            )
            continue
        panel.plot(
            place,
            trial.value,
            "o",
            color=_colour(trial, best),
            markersize=11 if chosen else 7,
            markeredgecolor="white",
            markeredgewidth=1.2,
            zorder=3 if chosen else 2,
        )
    if field.kind == "log_uniform":
        panel.set_xscale("log")
    if labels:
        panel.set_xticks(range(len(labels)), labels)
        panel.set_xlim(-0.6, len(labels) - 0.4)
    _finish(panel, field.name)


def _finish(panel: "Axes", title: str) -> None:
    panel.set_title(title, loc="left", fontsize=10.5, color=INK)
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=MUTED, labelsize=9)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(GRID)


def _draw_legend(figure: Any, trials: Sequence[Trial]) -> None:
    from matplotlib.lines import Line2D

    kinds = [("best", BEST, "o", True), ("finished", OTHER, "o", any(trial.status == FINISHED for trial in trials))]
    kinds += [("stopped as too weak", WEAK, "o", any(trial.status == "stopped" for trial in trials))]
    kinds += [("failed", BROKEN, "x", any(trial.status == FAILED for trial in trials))]
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7, label=label)
        for label, colour, marker, present in kinds
        if present
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9, labelcolor=INK
    )
