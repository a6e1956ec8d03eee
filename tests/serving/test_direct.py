"""The short way in: what goes to the edge, and what passes on to Serve."""

import asyncio
from collections.abc import Iterator

import pytest

from serving import direct
from serving.exchange import Receive, Scope, Send


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(direct, "_edges", [])
    yield


def reached(kind: str, path: str) -> str:
    """Who answers."""
    came: list[str] = []

    def app(name: str) -> object:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            came.append(name)

        return answer

    (middleware,) = direct.middlewares()
    door = middleware.cls(app("serve"))
    asyncio.run(door({"type": kind, "path": path}, None, None))
    direct.open_way(app("edge"))
    asyncio.run(door({"type": kind, "path": path}, None, None))
    direct._edges.clear()
    assert came[0] == "serve", "without an edge everything passes on"
    return came[1]


def test_requests_go_to_the_edge_and_what_is_serves_to_serve() -> None:
    assert reached("http", "/models/intent") == "edge"
    assert reached("http", "/-/healthz") == "serve"
    assert reached("http", "/-/routes") == "serve"
    assert reached("lifespan", "") == "serve"
