"""Writes what can go stale in the pages: from the program's own descriptions, ``--help``, and what benchmarks measured.

``make docs`` runs it; a test fails where the pages are stale.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parent
sys.path.append(str(DOCS))

import measured  # type: ignore[import-not-found,unused-ignore]  # noqa: E402

import headrace  # noqa: E402
from training.tasks.task import Task, task_class, task_names  # noqa: E402


def recipe_page() -> str:
    """The reference of the recipe: a table for each section, in the order in which they are met."""
    parts = [
        "# The recipe\n\nEvery key of a recipe, made from the program itself (`make docs`). Required keys have no "
        "default. `${env:NAME}` reads the environment; relative paths are relative to the recipe; any key can be set "
        "on the command line by its dotted name, as in `headrace train recipe.yaml train.epochs=1`. What SQL "
        "`data.fuse` understands: [sql.md](sql.md).\n"
    ]
    waiting: list[tuple[str, type[BaseModel]]] = [("", headrace.recipe_model())]
    while waiting:
        name, model = waiting.pop(0)
        parts.append(section(name, model))
        below = [
            (dotted(name, key, field), inner) for key, field in model.model_fields.items() for inner in models(field)
        ]
        waiting = below + waiting
    return "\n".join(parts)


def section(name: str, model: type[BaseModel]) -> str:
    """One section's heading, its purpose and the table of its keys."""
    title = f"## `{name}`" if name else "## The whole"
    purpose = re.sub(r"\s+", " ", (model.__doc__ or "").replace("``", "`")) if name else "One file is one model."
    rows = [
        f"| `{key}` | {kind(field)} | {default(field)} | {(field.description or '').replace('|', chr(92) + '|')} |"
        for key, field in model.model_fields.items()
    ]
    return "\n".join(
        [title, "", purpose.strip(), "", "| key | type | default | what it is |", "|---|---|---|---|", *rows, ""]
    )


def models(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that may stand under a field."""
    found: list[type[BaseModel]] = []
    waiting: list[Any] = [field.annotation]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, type) and issubclass(one, BaseModel):
            found.append(one)
        waiting += get_args(one)
    return found


def dotted(name: str, key: str, field: FieldInfo) -> str:
    """A field's dotted name; ``NAME`` stands for a key that the user chooses."""
    chosen = ".NAME" if "dict[" in str(field.annotation) else ""
    return f"{name}.{key}{chosen}".lstrip(".")


def kind(field: FieldInfo) -> str:
    """A field's type as a person reads it."""
    return "`" + " | ".join(dict.fromkeys(kinds(field.annotation))).replace("|", "\\|") + "`"


def kinds(annotation: Any) -> list[str]:
    """What may stand for a type, each alternative by itself; that it may be left out is not said."""
    origin, within = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds(within[0])
    if origin is Literal:
        return [repr(one) for one in within]
    if origin in (Union, UnionType):
        return [kind for one in within for kind in kinds(one)]
    if origin in (dict, list, tuple):
        return [f"{origin.__name__}[{', '.join(' | '.join(kinds(one)) for one in within)}]"]
    if annotation is NoneType:
        return []
    return ["section" if annotation is not Any and issubclass(annotation, BaseModel) else annotation.__name__]


def default(field: FieldInfo) -> str:
    """A field's default, empty where it is required."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "see below"
    return "" if value in (None, "", [], {}) else f"`{value}`"


def tasks_page() -> str:
    """What each task takes, is told, measures and answers."""
    parts = [
        "# The tasks\n\nWhat a model can learn to do, made from the files of `training/tasks/` (`make docs`). "
        "`model.task` names one, `model.inputs` fills its roles, `model.options` says the rest.\n"
    ]
    return "\n".join([*parts, *(task_section(task_class(name)) for name in task_names())])


def task_section(task: type[Task]) -> str:
    """One task's heading, purpose, roles, options and metrics."""
    purpose = re.sub(r"\s+", " ", (task.__doc__ or "").split("Attributes:")[0].replace("``", "`")).strip()
    roles = [f"| `{role}` | {what} |" for role, what in task.roles.items()]
    roles += [f"| `{role}` (may be left out) | {what} |" for role, what in task.optional_roles.items()]
    lines = [f"## `{task.name}`", "", purpose, "", "| role | what fills it |", "|---|---|", *roles, ""]
    if task.options_known.model_fields:
        lines.append(section("model.options", task.options_known).replace("## ", "### ", 1))
    metrics = ", ".join(f"`{name}`" for name in task.metrics_known | task.metrics_of_answers)
    return "\n".join([*lines, f"Metrics: {metrics}.", ""])


def commands_page() -> str:
    """The help of every command, as the program prints it."""
    parts = ["# The commands\n\nWhat `--help` says, made from the program itself (`make docs`).\n", block()]
    names = re.findall(r"^  (\w+)  ", block().split("Commands:")[1], re.MULTILINE)
    return "\n".join([*parts, *(f"## {name}\n\n{block(name)}" for name in names)])


def block(*words: str) -> str:
    """What ``headrace WORD… --help`` prints, as a code block."""
    code = "import sys, headrace; sys.argv[0] = 'headrace'; headrace.main()"
    command = [sys.executable, "-c", code, *words, "--help"]
    environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "PATH": "", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=DOCS.parent)
    return f"```\n{done.stdout.strip()}\n```\n"


def benchmarks_page() -> str:
    """What the scripts of ``benchmarks/`` measured, from the results they kept."""
    parts = [
        "# Benchmarks\n\nWhat the scripts in `benchmarks/` measured, made from `benchmarks/results/` (`make docs`). "
        "Ratios travel from one machine to another, absolute times do not; the single rounds are in the results.\n"
    ]
    for path in sorted((DOCS.parent / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        command, where = result.pop("command"), result.pop("measured")
        purpose = purpose_of(DOCS.parent / command.split()[1])
        versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        parts.append(f"## {path.stem}\n\n{purpose}\n\n`{command}`, commit {where['commit']}, {where['date']}: ")
        parts.append(f"{where['cores']} cores of {where['processor']}; Python {where['python']}, {versions}.\n")
        parts.append(as_table(result["table"]) if "table" in result else as_list(result))
    return "\n".join(parts)


def as_list(result: Any) -> str:
    """The single figures of a result, a line each."""
    rows = [f"| {name} | {value} |" for name, value in figures(result)]
    return "\n".join(["| figure | value |", "|---|---|", *rows, ""])


def as_table(lines: list[dict[str, Any]]) -> str:
    """A result that is a table of its own: alike lines, each from column to value."""
    rows = [f"| {' | '.join(map(shown, line.values()))} |" for line in lines]
    return "\n".join([f"| {' | '.join(lines[0])} |", "|---" * len(lines[0]) + "|", *rows, ""])


def shown(value: Any) -> str:
    """A cell of a table; of several named values each by its name."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def purpose_of(script: Path) -> str:
    """The first paragraph of a script's docstring."""
    told = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return " ".join(told.split("\n\n")[0].split())


def figures(result: Any, name: str = "") -> list[tuple[str, Any]]:
    """The single values of a result by their path; what each round brought is left out."""
    if isinstance(result, dict):
        return [
            one
            for key, value in result.items()
            if key != "rounds"
            for one in figures(value, f"{name} / {key}".strip(" /"))
        ]
    if isinstance(result, list):
        return []
    return [(name, f"{result:.4g}" if isinstance(result, float) else result)]


def readme_page() -> str:
    """The README with the table of numbers that the results give."""
    return with_table(DOCS.parent / "README.md", measured.numbers())


def serving_page() -> str:
    """The page on serving with the table of what was measured of it."""
    return with_table(DOCS / "serving.md", measured.of_serving())


def with_table(path: Path, lines: list[Any]) -> str:
    """A page whose table of figures has these lines of ``measured.py``."""
    head, mark, rest = path.read_text(encoding="utf-8").partition("| measured | | goal |\n|---|---|---|\n")
    _, end, tail = rest.partition("\n\n")
    return head + mark + "\n".join(line.row() for line in lines) + end + tail


def pages() -> dict[str, str]:
    """Every page that is generated, or holds what is: its file name and its text."""
    return {
        "../README.md": readme_page(),
        "serving.md": serving_page(),
        "recipe.md": recipe_page(),
        "tasks.md": tasks_page(),
        "commands.md": commands_page(),
        "benchmarks.md": benchmarks_page(),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}")
