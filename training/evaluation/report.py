"""The report of a run: one HTML file that stands alone, for a person who wants to see whether the model is any good."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from cluster.storage import write_text
from training.evaluation.page import Fragment, environment
from training.evaluation.sections import ReportData, Section

__all__ = ["Fragment", "ReportData", "Section", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(path: Path, data: ReportData, sections: Sequence[Section]) -> None:
    """Writes the report atomically. It loads nothing from anywhere and runs no script but its own.

    Args:
        sections: what it shows, in order, as the task chose them; one that returns nothing is left out.
    """
    fragments = [fragment for fragment in (section(data) for section in sections) if fragment]
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    page = environment().get_template("report.html")
    html = page.render(data=data, fragments=fragments, style=style, script=script, script_hash=_hash(script))
    write_text(path, html)


def _hash(script: str) -> str:
    """The script's digest for the page's security policy: the browser runs this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
