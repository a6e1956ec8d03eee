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

import headrace
from training.tasks.task import Task, task_class, task_names

DOCS = Path(__file__).parent
PEERS = {"litserve": "LitServe", "bentoml": "BentoML", "fastapi": "FastAPI", "ray-serve": "Ray Serve as documented"}


def recipe_page() -> str:
    """The reference of the recipe: a table for each section, in the order in which they are met."""
    parts = [
        "# The recipe\n\nEvery key of a recipe, made from the program itself (`make docs`). Required keys have no "
        "default. `${env:NAME}` reads the environment; relative paths are relative to the recipe; any key can be set "
        "on the command line by its dotted name, as in `headrace train recipe.yaml train.epochs=1`.\n"
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
    return with_table(DOCS.parent / "README.md", "| | |\n|---|---|\n", numbers())


def serving_page() -> str:
    """The page on serving with the table of what was measured of it."""
    return with_table(DOCS / "serving.md", "| measured | |\n|---|---|\n", measured_of_serving())


def with_table(path: Path, mark: str, lines: list[tuple[str, str]]) -> str:
    """A page whose table below the heading ``mark`` has these lines."""
    head, mark, rest = path.read_text(encoding="utf-8").partition(mark)
    _, end, tail = rest.partition("\n\n")
    return head + mark + "\n".join(f"| {what} | {figure} |" for what, figure in lines) + end + tail


def numbers() -> list[tuple[str, str]]:
    """What the README tells of the results."""
    training, trials, overhead, serving = map(kept, ("training", "trials", "overhead", "serving"))
    times, ratios = training["times the rows a second"], serving["ratios"]
    each = [line["times the rows a second"] for line in kept("tasks")["table"]]
    return [
        (
            "training, against Hugging Face Trainer with its defaults: same base, rows, epochs, batch size, fp32",
            f"{times['headrace over trainer']:.1f} times the rows a second",
        ),
        (
            "… as both come out of the box (headrace takes bf16 where the processor computes it)",
            f"{times['headrace-auto over trainer']:.1f} times",
        ),
        ("… against Trainer grouped by length, fp32", f"{times['headrace over trainer-grouped']:.1f} times"),
        (
            f"… on {len(each)} examples of all kinds, against Trainer, and sentence-transformers' for pairs",
            f"{min(each):.2f} to {max(each):.1f} times",
        ),
        (
            "what a trial of a sweep adds to its own training, after the first",
            f"{trials['function_trainable']['each_adds_seconds']:.1f} s; "
            f"{trials['torch_trainer']['each_adds_seconds']:.0f} s where each is a Ray Train run of its own",
        ),
        (
            "what Ray adds to a run",
            f"{overhead['ray_adds_seconds']:.0f} s, for starting it, its workers, and ending them",
        ),
        (
            "served, 32 and 128 connections, against the bare forward pass on the same cores",
            f"{ratios['served_over_bare_32']:.2f} and {ratios['served_over_bare_128']:.2f}",
        ),
        (
            "… against Ray Serve as its documentation sets it up, 32 connections",
            f"{ratios['served_over_pattern_32']:.1f} times",
        ),
        ("`headrace --help`", f"{overhead['help_seconds']:.2f} s"),
    ]


def over_peers(peers: Any) -> list[tuple[str, str]]:
    """How many times as fast each engine answers as each of the others."""
    engines = {name: one["engine"]["name"] for name, one in peers["rounds"][0].items() if "engine" in one}
    return [
        (
            f"`{engine}` over {title}, 1, 32 and 128 connections",
            ", ".join(f"{peers['ratios'][ratio(name, other, count)]:.2f}" for count in (1, 32, 128)) + " times",
        )
        for name, engine in engines.items()
        for other, title in PEERS.items()
    ]


def measured_of_serving() -> list[tuple[str, str]]:
    """What the page on serving tells of the results."""
    ratios, outside = kept("serving")["ratios"], kept("serving-openvino-fp32")["ratios"]
    lengths, pace, over, apart, soak = map(kept_of_load, ("lengths", "pace", "overload", "elsewhere", "soak"))
    return [
        (
            "requests a second over texts a second of the bare forward pass, 32 and 128 connections",
            f"{ratios['served_over_bare_32']:.2f}, {ratios['served_over_bare_128']:.2f}",
        ),
        (
            "one request at a time: its median over that of the bare pass of one text",
            f"{ratios['served_minus_bare_p50_ms_1']:.1f} ms more",
        ),
        (
            "the same two with `openvino-fp32`, against its own forward pass",
            f"{outside['served_over_bare_32']:.2f}, {outside['served_over_bare_128']:.2f}; "
            f"{outside['served_minus_bare_p50_ms_1']:.1f} ms more",
        ),
        (
            "a model that computes nothing, over the same in Ray Serve's documented pattern, 1 and 32 connections",
            f"{ratios['noop_over_pattern_1']:.0f}, {ratios['noop_over_pattern_32']:.0f} times",
        ),
        *over_peers(kept("peers")),
        (
            "texts of 8 to 256 tokens: share of padding; tokens a second over those of texts of one length",
            f"{lengths['mixed']['padding_share']:.1%}; {lengths['mixed_over_even']:.2f}",
        ),
        (
            "500 requests a second at random moments, a pass that takes 14 ms and 0.05 ms an input: p50, p99",
            f"{pace['served']['p50_ms']:.0f}, {pace['served']['p99_ms']:.0f} ms",
        ),
        (
            "three times what it bears, from the same cores: answered in time over capacity; refusals, p50 and p99",
            f"{over['answered_in_time_over_capacity']:.2f}; {over['refused']['p50_ms']:.0f}, "
            f"{over['refused']['p99_ms']:.0f} ms",
        ),
        (
            "… where a device computes (40 ms and 2.5 ms an input) and those cores only refuse",
            f"{apart['answered_in_time_over_capacity']:.2f}; {apart['refused']['p50_ms']:.0f}, "
            f"{apart['refused']['p99_ms']:.0f} ms",
        ),
        (
            "half of what it bears for long: resident memory of a replica, first and last; files it holds open",
            f"{soak['replica_mb']['first']:.0f}, {soak['replica_mb']['last']:.0f} MB; "
            f"{soak['replica_files']['first']:.0f}, {soak['replica_files']['last']:.0f}",
        ),
    ]


def ratio(ours: str, other: str, connections: int) -> str:
    """The name of a ratio of ``benchmarks/peers.py``."""
    return f"{ours}_over_{other}_{connections}".replace("-", "_")


def kept_of_load(part: str) -> Any:
    """What ``benchmarks/load.py`` kept of one part."""
    return kept(f"load-{part}")["medians"]


def kept(name: str) -> Any:
    """What a benchmark kept."""
    return json.loads((DOCS.parent / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


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
