"""The documentation says what is: every name it mentions exists, every recipe in it loads, no page is stale."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import headrace

ROOT = Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
REFERENCE = re.compile(r"`((?:[\w-]+/)*[\w-]+\.py)(?::([A-Za-z_][\w.]*))?")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)")
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
CODE_BLOCK = re.compile(r"```(?:bash|sh|shell|console)?\n(.*?)```", re.DOTALL)
SHELL_LINE = re.compile(r"^\s*(?:\$ )?headrace ([a-z]+.*)", re.MULTILINE)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["../README.md", "recipe.md", "tasks.md", "commands.md", "benchmarks.md"])
def test_generated_pages_are_not_stale(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == generator().pages()[name], "run `make docs`"


def defined(file: Path) -> set[str]:
    """The functions, classes, methods (as ``Class.method``) and constants of a module."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{one.name}" for one in inner}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_that_is_named_exists(page: Path) -> None:
    missing = []
    for path, name in REFERENCE.findall(page.read_text(encoding="utf-8")):
        file = ROOT / path
        if not file.is_file() or (name and name.rstrip(".") not in defined(file)):
            missing.append(f"{path}:{name}" if name else path)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link.strip()).exists()] == []


def shown_commands() -> list[Any]:
    """Every command line of the pages, without its comment: what follows ``headrace``."""
    found = []
    for page in PAGES:
        blocks = "\n".join(CODE_BLOCK.findall(page.read_text(encoding="utf-8")))
        for line in SHELL_LINE.findall(blocks.replace("\\\n", " ")):
            found.append(pytest.param(shlex.split(line, comments=True), id=f"{page.name}-{line.split('#')[0].strip()}"))
    return found


@pytest.mark.parametrize("words", shown_commands())
def test_every_command_that_is_shown_is_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in words:
        if Path(word).suffix in {".yaml", ".csv", ".jsonl", ".parquet"}:
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    understood(words)


def understood(words: Sequence[str]) -> None:
    """Has the command line read its arguments, without carrying anything out; it raises what a user would be told."""
    front: Any = typer.main.get_command(headrace.app)
    name, *arguments = words
    assert name in front.commands
    context = front.commands[name].make_context(name, arguments)
    if name == "submit":  # which carries a whole command line to a cluster
        carried = next(value for value in context.params.values() if isinstance(value, list | tuple))
        understood([*carried, *context.args])


def test_a_command_that_is_not_understood_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="--top"):
        understood(["predict", "support-intent", "tickets.csv", "--top", "3"])
    with pytest.raises(AssertionError):
        understood(["submit", "--address", "http://HEAD:8265", "rnu", "recipe.yaml"])


PATHS = re.compile(r"^## From (.*?): four hops, three files\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
HOP = re.compile(r"^\| *(\d?) *\|.*?`([\w/]+\.py):([\w.]+)` *\|", re.MULTILINE)


def ways() -> list[Any]:
    """The tables of hops in the architecture's page: rows of number ('' where it is no hop), file and function."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return [pytest.param(HOP.findall(table), id=title) for title, table in PATHS.findall(text)]


def handled(file: str, name: str) -> set[str]:
    """What a function calls, and what it passes on."""
    owner, _, method = name.rpartition(".")
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    if owner:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == owner)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    function = next(node for node in body if isinstance(node, kinds) and node.name == method)
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    parts = [part for call in calls for part in (call.func, *call.args, *(keyword.value for keyword in call.keywords))]
    return {ast.unparse(part).rpartition(".")[2] for part in parts if isinstance(part, ast.Name | ast.Attribute)}


@pytest.mark.parametrize("way", ways())
def test_the_way_is_as_short_as_it_is_drawn(way: list[tuple[str, str, str]]) -> None:
    hops = [(file, name) for number, file, name in way if number]
    assert [number for number, _, _ in way if number] == ["1", "2", "3", "4"]
    assert len({file for file, _ in hops} | {way[0][1]} - {"headrace.py"}) == 3
    for (_, file, name), (_, next_file, next_name) in pairwise(way):
        takes_over = {next_name.rpartition(".")[2]} & handled(file, name)
        made_by_the_next = {name.partition(".")[0]} & handled(next_file, next_name)
        assert takes_over or made_by_the_next, f"{file}:{name} does not lead to {next_file}:{next_name}"


def test_both_ways_are_drawn() -> None:
    assert [way.id for way in ways()] == ["the command to the step", "the request to the forward pass"]


def whole_recipes() -> list[Any]:
    blocks = [(page, block) for page in PAGES for block in YAML_BLOCK.findall(page.read_text(encoding="utf-8"))]
    files = [(path, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "examples").rglob("*.yaml"))]
    found = [(origin, text) for origin, text in [*blocks, *files] if {"name", "data", "model"} <= keys(text)]
    return [pytest.param(text, id=f"{origin.name}-{index}") for index, (origin, text) in enumerate(found)]


def keys(text: str) -> set[str]:
    tree = yaml.safe_load(text)
    return set(tree) if isinstance(tree, dict) else set()


@pytest.mark.parametrize("text", whole_recipes())
def test_every_recipe_that_is_shown_loads(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r"\$\{env:(\w+)\}", text):
        monkeypatch.setenv(variable, "value")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    headrace.load_recipe(recipe)
