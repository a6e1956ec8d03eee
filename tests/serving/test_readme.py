"""What the README says of asking a model, done as it says: its blocks run against a real server."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import LABELS, MakeBundle, Running, entry

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NAME, ADDRESS = "support-intent", "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def edge(
    edge_of: Callable[..., Any], make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / NAME, name=NAME)
    with edge_of({NAME: entry(bundle)}) as running:
        yield running


def blocks(language: str, edge: Running) -> list[str]:
    """The README's blocks in a language, with the address of the server that runs."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block.replace(ADDRESS, edge.address) for block in found]


@pytest.mark.usefixtures("clients_allowed")
def test_the_python_that_is_shown_gets_an_answer(edge: Running) -> None:
    found = blocks("python", edge)
    assert found
    for block in found:
        *statements, last = ast.parse(block).body
        assert isinstance(last, ast.Expr)
        names: dict[str, Any] = {}
        exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
        answer = eval(compile(ast.Expression(last.value), "README.md", "eval"), names)
        assert {one.label for one in answer} <= set(LABELS)
        assert len(answer) == 5


def test_every_curl_that_is_shown_gets_an_answer(edge: Running) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    lines = [line for block in blocks("sh", edge) for line in block.replace("\\\n", " ").splitlines()]
    shown = [line for line in lines if line.startswith("curl ")]
    assert shown
    for line in shown:
        done = subprocess.run(["bash", "-c", f"{line} --silent --fail-with-body"], capture_output=True, check=False)
        assert done.returncode == 0, done.stdout
        (answer,) = json.loads(done.stdout)
        assert {one["label"] for one in answer} <= set(LABELS)
