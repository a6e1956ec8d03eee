"""The documentation says what is: every name it mentions exists, every recipe in it loads, no page is stale."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import headrace

ROOT = Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
REFERENCE = re.compile(r"`((?:[\w-]+/)*[\w-]+\.py)(?::([A-Za-z_][\w.]*))?")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)")
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
CODE_BLOCK = re.compile(r"```(?:bash|sh|shell|console)?\n(.*?)```", re.DOTALL)
SHELL_LINE = re.compile(r"^\s*(?:\$ )?headrace ([a-z]+)", re.MULTILINE)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipe.md", "commands.md", "benchmarks.md"])
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    blocks = "\n".join(CODE_BLOCK.findall(page.read_text(encoding="utf-8")))
    known = {one.name or getattr(one.callback, "__name__", "") for one in headrace.app.registered_commands}
    assert set(SHELL_LINE.findall(blocks)) - known == set()


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
