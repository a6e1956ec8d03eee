"""The pieces of a report's page, and how numbers, names and times are written on it."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from training.evaluation import metrics


@dataclass(frozen=True)
class Fragment:
    """A piece of the page; without a title it opens the page."""

    title: str
    html: Markup


def environment() -> jinja2.Environment:
    """Templates in which every text is escaped: texts and labels come from anybody."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "percent": percent,
        "points": points,
        "measure": measure,
        "metric_title": metric_title,
        "duration": duration,
        "moment": moment,
        "breakable": breakable,
    }
    return templates


def percent(share: float | None) -> str:
    """``92.5%``; a dash for nothing."""
    return "–" if share is None else f"{share:.1%}"


def points(difference: float) -> str:
    """``+1.5``: percentage points, with a real minus sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def measure(value: float | None, name: str) -> str:
    """A metric as it is read: shares in percent, a loss or a distance as a number."""
    if value is None:
        return "–"
    if name not in metrics.NUMBERS:
        return f"{value:.1%}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def metric_title(name: str) -> str:
    """``macro_f1`` as ``Macro F1``."""
    if name in ("mae", "rmse", "mase", "auc"):
        return name.upper()
    if ranked := re.fullmatch(r"(ndcg|mrr|recall)_at_(\d+)", name):
        titles = {"ndcg": "nDCG", "mrr": "MRR", "recall": "Recall"}
        return f"{titles[ranked[1]]}@{ranked[2]}"
    title = name.replace("_", " ").capitalize().replace("f1", "F1").replace("R2", "R²")
    return title.replace("Rouge l", "ROUGE-L")


def breakable(name: str) -> Markup:
    """A name that may be broken after its underscores and slashes, where a narrow column needs it."""
    return Markup(re.sub(r"([_/.:]+)", r"\1<wbr>", str(escape(name))))


def moment(text: str) -> str:
    """An ISO time as ``21 November 2026, 22:41 UTC``; what is none stays as it is."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time.day} {time:%B %Y, %H:%M %Z}".strip()


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def fragment(title: str, template: str, **values: Any) -> Fragment:
    """A part of the page from ``templates/<template>.html``."""
    return Fragment(title, Markup(environment().get_template(f"{template}.html").render(values)))


def rates(what: str, counted: str, lead: str, rows: list[dict[str, Any]]) -> Fragment:
    """A table of precision, recall and F1, a line for each ``what``; the weakest first.

    Args:
        counted: what a line's ``rows`` are.
    """
    rows = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"]))
    return fragment(f"{what} by {what.lower()}", "rates", rows=rows, what=what, counted=counted, lead=lead)
