"""Charts as inline SVG: drawn by matplotlib, coloured by the page's own variables, read aloud by a sentence each.

Text stays text, so that the reader's fonts show it (Chinese too), and every colour is a CSS variable, so that one
drawing serves light, dark and print.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.evaluation.metrics import Integers

# Stand-ins that no drawing uses otherwise: in the SVG each becomes the variable of the page.
INK, MUTED, LINE, ACCENT, SOFT, PAPER = (f"#0102{shade:02x}" for shade in range(1, 7))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    SOFT: "var(--soft)",
    PAPER: "var(--paper)",
}
PIXELS_PER_INCH = 96  # of CSS
MOST_POINTS = 800
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def bars(rows: Sequence[Mapping[str, Any]], alt: str) -> Markup:
    """Horizontal bars; of each row ``name``, ``value``, how it is ``said``, interval ``low`` to ``high``, ``ours``."""
    top = max(1.0 if all(row["value"] <= 1 for row in rows) else 0.0, *(row["high"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.62 * len(rows) + 0.1), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            weight = "bold" if row["ours"] else "normal"
            axes.barh(place, row["value"], height=0.34, color=ACCENT if row["ours"] else SOFT)
            axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
            axes.text(0, place - 0.26, clipped(row["name"], 48), va="bottom", fontweight=weight)
            axes.text(row["high"] + 0.015 * top, place, row["said"], va="center", fontweight=weight)
        axes.set(xlim=(0, 1.12 * top), ylim=(len(rows) - 0.75, -0.68), yticks=[], xticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(figure, alt, grow=1.12)


def curve(
    points: Sequence[tuple[float, float]],
    title: str,
    alt: str,
    *,
    dots: bool = False,
    best: bool = False,
    percent: bool = False,
    smooth: bool = True,
) -> Markup:
    """One measure over the steps. Many noisy points are drawn faint, with their running mean over them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.subplots()
        steps, values = thinned(np.array(points, dtype=float).reshape(-1, 2)).T
        if dots or not smooth or len(points) < 30:
            axes.plot(steps, values, color=ACCENT, linewidth=1.8, marker="o" if dots else None, markersize=5)
        else:
            axes.plot(steps, values, color=SOFT, linewidth=0.8)
            axes.plot(steps, running_mean(values), color=ACCENT, linewidth=1.8)
        if best:
            top = int(values.argmax())
            axes.annotate(
                f"{values[top]:.1%}", (steps[top], values[top]), xytext=(0, 7), textcoords="offset points", ha="center"
            )
        axes.set_title(title)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.margins(y=0.18)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        if percent:
            low, high = axes.get_ylim()
            ticks = MaxNLocator(4).tick_values(low, high)
            axes.set_yticks(
                [tick for tick in ticks if max(low, 0) <= tick <= min(high, 1)]
            )  # room is left, no share is
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        return svg(figure, alt)


def reliability_diagram(bins: Sequence[Mapping[str, Any]], alt: str) -> Markup:
    """Accuracy against confidence, the diagonal for perfect calibration, and below it how many rows each bin has."""
    filled = [one for one in bins if one["rows"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        most = sum(one["rows"] for one in filled)
        telling = [one for one in filled if one["rows"] >= max(5, most / 500)]  # a bin of two rows says nothing
        for one in telling:
            width = one["high"] - one["low"]
            upper.bar(one["low"], one["accuracy"], width * 0.9, align="edge", color=SOFT)
        upper.plot(
            [one["confidence"] for one in telling],
            [one["accuracy"] for one in telling],
            color=ACCENT,
            linewidth=1.8,
            marker="o",
            markersize=4.5,
        )
        for one in filled:
            width = one["high"] - one["low"]
            lower.bar(one["low"], one["rows"] / most, width * 0.9, align="edge", color=SOFT)
        upper.set_title("share that is right")
        lower.set_title("share of the rows", pad=6)
        lower.set_xlabel("confidence")
        upper.set(xlim=(0, 1), ylim=(0, 1.02))
        percent = FuncFormatter(lambda value, _: f"{100 * value:.0f}%")
        for axes in (upper, lower):
            axes.grid(axis="y")
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_formatter(percent)
            axes.yaxis.set_major_formatter(percent)
        lower.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
        return svg(figure, alt)


def confusion_map(matrix: Integers, rows: Integers, names: Sequence[str], alt: str) -> Markup:
    """Targets down, predictions across, shaded by share of the target's ``rows``; columns bear the rows' numbers."""
    size = len(names)
    shares = matrix / np.maximum(rows, 1)[:, None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.32 * size + 1.9, 0.29 * size + 0.4), layout="constrained")
        axes = figure.subplots()
        for row, column in np.ndindex(matrix.shape):
            _cell(axes, row, column, int(matrix[row, column]), float(shares[row, column]))
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xticks=range(size), yticks=range(size))
        axes.set_xticklabels([str(place + 1) for place in range(size)])
        axes.set_yticklabels([f"{clipped(name, 22)}  {place + 1}" for place, name in enumerate(names)])
        axes.xaxis.tick_top()
        axes.tick_params(labelsize=9.5, labelcolor=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(figure, alt)


def _cell(axes: Axes, row: int, column: int, count: int, share: float) -> None:
    right = row == column
    if count:
        color, strength = (SOFT, 1.0) if right else (ACCENT, min(1.0, 0.15 + 2.5 * share))
        axes.fill(
            [column - 0.46, column + 0.46, column + 0.46, column - 0.46],
            [row - 0.44, row - 0.44, row + 0.44, row + 0.44],
            color=color,
            alpha=strength,
            linewidth=0,
        )
        strong = not right and strength > 0.6
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=9, color=PAPER if strong else INK)
    else:
        axes.text(column, row, "·", ha="center", va="center", fontsize=9, color=LINE)


def thinned(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """At most ``MOST_POINTS`` points, each the mean of as many neighbours: a long run must not make a heavy page."""
    parts = np.array_split(points, min(len(points), MOST_POINTS))
    return np.array([part.mean(axis=0) for part in parts])


def running_mean(values: Sequence[float] | Any) -> Any:
    """The mean of each value and its neighbours, over about a twentieth of them; the ends use what there is."""
    window = max(3, len(values) // 20)
    weights = np.ones(window)
    return np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")


def compact(value: float) -> str:
    """``0.25`` or ``1.6e-4``: the shorter way to write a number of two or three digits."""
    if value and abs(value) < 1e-3:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def clipped(text: str, most: int) -> str:
    """At most ``most`` characters, with an ellipsis for the rest."""
    return text if len(text) <= most else text[: most - 1] + "…"


def svg(figure: Figure, alt: str, grow: float = 1.0) -> Markup:
    """The figure as an ``<svg>`` element of the page, as wide as its place but at most ``grow`` times its own width.

    It has no ids that could clash with another drawing's and names no foreign address.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": alt}):  # equal input, equal file
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw it, not ours
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    drawing = re.sub(r"font: ([^;\"]*?)'[^\"]*?sans-serif", r"font: \1var(--font)", drawing)
    for stand_in, variable in VARIABLES.items():
        drawing = drawing.replace(stand_in, variable)
    drawing = _own_ids(drawing)
    width = figure.get_figwidth() * PIXELS_PER_INCH * grow
    view = re.search(r'viewBox="[^"]*"', drawing)
    assert view, "matplotlib writes a viewBox"
    opening = f'<svg role="img" aria-label="{escape(alt)}" style="max-width:{width:.0f}px" {view.group()}>'
    return Markup(opening + drawing[drawing.index(">") + 1 :])  # matplotlib escapes the texts it draws


def _own_ids(drawing: str) -> str:
    """Keeps the ids that the drawing itself refers to and drops the rest."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing))
    return re.sub(r' id="([^"]*)"', lambda match: match.group() if match.group(1) in used else "", drawing)
