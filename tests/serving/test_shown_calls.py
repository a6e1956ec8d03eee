"""What the README and ``docs/serving.md`` show of asking a model, done as it stands there against a server."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.conftest import LABELS, MakeBundle, Running, entry
from tests.serving.test_completions import writers
from tests.serving.test_search import written
from training.tasks.sentence_similarity import SentenceSimilarity
from training.tasks.text_ranking import TextRanking

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/serving.md")
ADDRESS = "127.0.0.1:8000"
INTENT, SEARCH, RANKING, WRITER = "support-intent", "help-search", "help-ranking", "reply-writer"


@pytest.fixture(scope="module")
def edge(
    edge_of: Callable[..., Any], make_bundle: MakeBundle, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("shown")
    bundles = [
        make_bundle(folder / INTENT, name=INTENT),
        written(folder / SEARCH, SentenceSimilarity, tiny_base, SEARCH),
        written(folder / RANKING, TextRanking, tiny_base, RANKING),
        writers(folder, {WRITER: "prompt"})[WRITER],
    ]
    with edge_of({bundle.info["name"]: entry(bundle) for bundle in bundles}) as running:
        yield running


def blocks(page: str, language: str) -> list[str]:
    """A page's blocks in a language."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found


def shown(language: str) -> list[Any]:
    """The blocks of all pages; of shell blocks each call of ``curl``."""
    pairs = [(page, block) for page in PAGES for block in blocks(page, language)]
    if language == "sh":
        joined = [(page, line) for page, block in pairs for line in block.replace("\\\n", " ").splitlines()]
        pairs = [(page, line) for page, line in joined if line.startswith("curl ")]
    assert {page for page, _ in pairs} == set(PAGES)
    return [pytest.param(text, id=f"{page}-{index}") for index, (page, text) in enumerate(pairs)]


def at(edge: Running, text: str) -> str:
    return text.replace(ADDRESS, edge.address.removeprefix("http://"))


@pytest.mark.usefixtures("clients_allowed")
@pytest.mark.parametrize("block", shown("python"))
def test_the_python_that_is_shown_gets_an_answer(edge: Running, block: str) -> None:
    *statements, last = ast.parse(at(edge, block)).body
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(ast.Module(statements, []), "shown", "exec"), names)
    answer = eval(compile(ast.Expression(last.value), "shown", "eval"), names)
    if "text_classification" in block:
        assert len(answer) == 5 and {one.label for one in answer} <= set(LABELS)
    elif "embeddings" in block:
        assert [len(one.embedding) for one in answer.data] == [16, 16]
    elif "completions" in block:
        assert isinstance(answer, str) and answer
    else:
        assert isinstance(answer, np.ndarray) and answer[0] in LABELS


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("line", shown("sh"))
def test_every_curl_that_is_shown_gets_an_answer(edge: Running, line: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{at(edge, line)} --silent --fail-with-body"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    answer = json.loads(done.stdout)
    first = answer[0][0] if isinstance(answer[0], list) else answer[0]
    if INTENT in line:
        assert first["label"] in LABELS
    elif SEARCH in line:
        assert isinstance(first, float)
    else:
        assert first.keys() == {"index", "score"}
