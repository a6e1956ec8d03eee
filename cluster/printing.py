"""What a command leaves on stdout: its result, and nothing else."""

import gc
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO


def carry_out(command: Callable[[], Any]) -> None:
    """Runs a command line; what went wrong becomes a plain message and an exit code."""
    from cluster.errors import HeadraceError

    sys.excepthook = show_defect
    try:
        command()
    except HeadraceError as error:
        from cluster.settings import placed  # here, for `--help` is to be quick

        _tell(placed(str(error)), "ERROR")
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001  the front door's library puts a hook of its own in place of ours
        show_defect(type(error), error, error.__traceback__)
        sys.exit(1)
    finally:
        gc.freeze()  # else the interpreter looks for garbage among all that was imported before it ends


@contextmanager
def working(*, prepared: bool = True) -> Iterator[TextIO]:
    """Sends to stderr whatever anybody prints meanwhile, libraries and worker processes included, so that stdout
    holds results only. Yields the real stdout.

    Args:
        prepared: set the environment that our parts need.
    """
    from cluster.environment import prepare_environment  # here, for `--help` is to be quick
    from cluster.progress import configure_logging

    if prepared:  # before any library is imported that reads its variables only then
        prepare_environment()
    configure_logging()
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(stdout), "w", encoding="utf-8") as out, redirect_stdout(sys.stderr):
            yield out
    except KeyboardInterrupt:
        _tell("interrupted; the same command continues where it can")
        raise
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def answer(result: Any, lines: Sequence[str], as_json: bool, out: TextIO | None = None) -> None:
    """Prints a result: as one JSON object, or as lines for a person."""
    text = json.dumps(finite(result), ensure_ascii=False, default=str) if as_json else "\n".join(lines)
    print(text, file=out or sys.stdout, flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of equal keys as aligned columns under their names."""
    if not rows:
        return []
    cells = [list(rows[0]), *([short(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def outline(value: Any, indent: str = "") -> list[str]:
    """Nested mappings and lists as indented lines."""
    lines = []
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value, 1):
        if inner and (isinstance(inner, Mapping) or (isinstance(inner, list) and isinstance(inner[0], Mapping))):
            lines += [f"{indent}{key}:", *outline(inner, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {short(inner)}")
    return lines


def measured(result: Mapping[str, Any]) -> list[str]:
    """A model's metrics next to those of its baselines, what they come to, and where its parts lie."""
    columns = {"model": result["metrics"], **result.get("baselines", {})}
    rows = [
        {"": metric} | {name: f"{values[metric]:.4f}" if metric in values else "" for name, values in columns.items()}
        for metric in result["metrics"]
    ]
    places = {key: result[key] for key in ("model", "version", "bundle", "report") if result.get(key) is not None}
    following = [f"next: headrace serve {result['model']}"] if result.get("version") else []
    return [*table(rows), "", *_verdict(result), *outline(places), *following]


def _verdict(result: Mapping[str, Any]) -> list[str]:
    """How the model does by its headline metric, next to the best baseline."""
    headline, sign = result["data"].get("headline"), -1 if result["data"].get("direction") == "min" else 1
    value = result["metrics"].get(headline)
    rivals = {name: one[headline] for name, one in result.get("baselines", {}).items() if headline in one}
    if value is None or not rivals:
        return []
    best = max(rivals, key=lambda name: sign * rivals[name])
    gain = sign * (value - rivals[best])
    way = "better than" if gain > 0 else "worse than" if gain < 0 else "the same as"
    by = f"{abs(gain):.4f} " if gain else ""
    return [f"verdict: {headline} {value:.4f}, {by}{way} {best}, the best baseline", ""]


def short(value: Any) -> str:
    """One value as a person reads it; a list on one line."""
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(short, value))
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def finite(value: Any) -> Any:
    """The value with null for what JSON has no word for: a number that is none."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_defect(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The traceback of a defect of headrace itself, without secrets; for ``sys.excepthook``."""
    import traceback

    _tell("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), "CRITICAL")


def _tell(text: str, level: str = "INFO") -> None:
    from cluster.progress import say  # here, for `--help` is to be quick

    say(text, level)
