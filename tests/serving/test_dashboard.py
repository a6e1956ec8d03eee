"""The Grafana dashboard against the metrics that a server really shows."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import metrics
from serving.metrics import Metrics
from serving.outcomes import Batch
from tests.serving.conftest import entry
from tests.serving.test_edge import ask
from training.bundle import Bundle

DASHBOARD = json.loads((Path(metrics.__file__).parent / "dashboard.json").read_text(encoding="utf-8"))
OURS = re.compile(r"headrace_\w+")
SELECTOR = re.compile(r"(headrace_\w+)\{([^}]*)\}")
GROUPED = re.compile(r"by \(([^)]*)\)")


@pytest.fixture(scope="module")
def page() -> str:
    """The metrics page of a server that has seen one of everything."""
    seen = Metrics()
    seen.engine("intent", "3", "torch-fp32")
    seen.request("intent", "3", "ok", 0.01)
    seen.batch("intent", "3", Batch(items=2, tokens=10, padded_tokens=12, seconds=0.01, oldest_waited=0.001))
    seen.swap("intent", "done")
    seen.shadow("intent", "4", "same", 1)
    seen.rollback("intent", "3", "errors")
    seen.memory("intent", "3", 1000)
    seen.wake("intent", "3")
    return seen.page().decode()


def samples(page: str) -> dict[str, set[str]]:
    """The labels of each metric of a page."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(headrace_\w+)\{(.*)\} ", page, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_query_asks_for_a_metric_and_labels_that_there_are(page: str) -> None:
    there = samples(page)
    queries = [*expressions(), *(one["definition"] for one in DASHBOARD["templating"]["list"] if "definition" in one)]
    assert {name for query in queries for name in OURS.findall(query)} <= there.keys()
    for query in expressions():
        asked = SELECTOR.findall(query)
        assert len(asked) == len(OURS.findall(query)), query  # each of them chooses model and version
        for name, chosen in asked:
            assert set(re.findall(r"(\w+)[=!]", chosen)) <= there[name], query
            for labels in GROUPED.findall(query):
                assert set(labels.split(", ")) <= there[name], query


def test_every_metric_is_in_some_panel(page: str) -> None:
    drawn = {name for query in expressions() for name in OURS.findall(query)}
    families = {name.removesuffix(end) for name in drawn for end in ("_bucket", "_sum", "_count", "_total")}
    shown = {
        name for name in re.findall(r"^# TYPE (headrace_\w+)", page, re.MULTILINE) if not name.endswith("_created")
    }
    assert {name.removesuffix("_total") for name in shown} <= families


def test_it_is_what_grafana_imports() -> None:
    assert DASHBOARD["id"] is None and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    source = DASHBOARD["templating"]["list"][0]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    for panel in DASHBOARD["panels"]:
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            for opening, closing in ("()", "{}", "[]"):
                assert target["expr"].count(opening) == target["expr"].count(closing)


def test_a_server_hands_it_out(edge_of: Callable[..., Any], bundle: Bundle) -> None:
    with edge_of({"intent": entry(bundle)}) as running:
        assert ask(running, None, "/dashboard.json", "GET")[:2] == (200, DASHBOARD)
