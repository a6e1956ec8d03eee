"""What a job says, over connections that break."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace

import aiohttp
import pytest

from cluster.following import MOST_FAILURES, stream


class Server:
    """A job server that gives, connection by connection, what is written down: pieces of a log, or how it breaks."""

    def __init__(self, connections: Sequence[Sequence[str | Exception]], statuses: Sequence[str | Exception]) -> None:
        self._connections, self._statuses = list(connections), list(statuses)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        """The pieces of one connection."""
        for piece in self._connections.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_status(self, job: str) -> SimpleNamespace:
        """The next status."""
        status = self._statuses.pop(0)
        if isinstance(status, Exception):
            raise status
        return SimpleNamespace(value=status)


async def at_once(seconds: float) -> None:
    """Waits for nothing."""


def shown(server: Server) -> list[str]:
    """Every line that whoever looks on sees."""
    lines: list[str] = []
    asyncio.run(stream(server, "job", lines.append, at_once))
    return lines


CUT = [aiohttp.ServerDisconnectedError(), RuntimeError("closed"), ConnectionResetError(), TimeoutError()]


@pytest.mark.parametrize("cut", CUT, ids=lambda error: type(error).__name__)
def test_what_was_said_while_the_connection_was_away_is_shown_though_the_job_has_ended(cut: Exception) -> None:
    server = Server([["one\ntw", cut], ["one\ntwo\n", "the result\n"]], ["SUCCEEDED"])
    assert shown(server) == ["one", "two", "the result"]


def test_half_a_line_waits_for_its_other_half() -> None:
    server = Server([['{"a": '], ['{"a": 1}\nand no newline']], ["RUNNING", "SUCCEEDED"])
    assert shown(server) == ['{"a": 1}', "and no newline"]


def test_a_server_that_is_away_for_a_while_is_waited_for() -> None:
    away: list[Sequence[str | Exception]] = [[aiohttp.ClientError()]] * (MOST_FAILURES - 1)
    statuses: list[str | Exception] = [ConnectionError(), "FAILED"]
    assert shown(Server([*away, ["one\n"], ["one\ntwo\n"]], statuses)) == ["one", "two"]


def test_one_that_stays_away_is_given_up() -> None:
    with pytest.raises(aiohttp.ClientError):
        shown(Server([[aiohttp.ClientError()]] * (MOST_FAILURES + 1), []))
