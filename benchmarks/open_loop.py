"""A client that asks at given moments, whether or not those before were answered, and costs a server's cores little.

`headrace bench` asks through aiohttp, which is right for a client on a machine of its own. Here client and server share
their cores, so this one writes each request's bytes, made beforehand, to an idle connection, and reads of an answer no
more than its status and its length. ``python benchmarks/open_loop.py`` compares what both cost.
"""

import asyncio
import random
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SEED = 7
PATIENCE = 60.0
"""Seconds after the last request was due in which answers are waited for."""


@dataclass
class Asked:
    """What became of one request; moments are seconds from the start.

    Attributes:
        due: when it should leave.
        sent: when it left.
        done: when it was answered; None when it was not.
        status: HTTP's; 0 where the connection was lost or nothing came.
    """

    due: float
    sent: float = 0.0
    done: float | None = None
    status: int = 0


def moments(rate: float, seconds: float) -> list[float]:
    """Moments of a Poisson process of ``rate`` a second, in seconds from the start; the same ones in each run."""
    draw, found, now = random.Random(SEED), [], 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        found.append(now)
    return found


def ask(address: str, bodies: Sequence[bytes], due: Sequence[float]) -> list[Asked]:
    """Asks at the moments that are due; the bodies in turn, over and over."""
    return asyncio.run(_open(address, bodies, due))


def ask_in_turn(address: str, bodies: Sequence[bytes], connections: int, seconds: float) -> list[Asked]:
    """A closed loop: each connection asks again as soon as it is answered."""
    return asyncio.run(_closed(address, bodies, connections, seconds))


async def _open(address: str, bodies: Sequence[bytes], due: Sequence[float]) -> list[Asked]:
    requests, place = _requests(address, bodies)
    idle: list[_Connection] = []
    asked = [Asked(moment) for moment in due]
    waiting: set[asyncio.Future[None]] = set()
    started = time.perf_counter()
    for turn, one in enumerate(asked):
        await asyncio.sleep(max(0.0, started + one.due - time.perf_counter()))
        connection = idle.pop() if idle else None
        if connection is None or connection.lost:
            connection = await _connect(place)
        answered = connection.ask(requests[turn % len(requests)], one, started)
        waiting.add(answered)
        answered.add_done_callback(lambda done, free=connection: (waiting.discard(done), idle.append(free)))
    if waiting:
        await asyncio.wait(waiting, timeout=PATIENCE)
    return asked


async def _closed(address: str, bodies: Sequence[bytes], connections: int, seconds: float) -> list[Asked]:
    requests, place = _requests(address, bodies)
    asked: list[Asked] = []
    started = time.perf_counter()

    async def forever() -> None:
        connection = await _connect(place)
        while (now := time.perf_counter() - started) < seconds:
            one = Asked(now)
            asked.append(one)
            await connection.ask(requests[len(asked) % len(requests)], one, started)
            if connection.lost:
                connection = await _connect(place)

    await asyncio.gather(*(forever() for _ in range(connections)))
    return asked


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self) -> None:
        self.lost = False
        self._came = b""
        self._one: Asked | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes, one: Asked, started: float) -> "asyncio.Future[None]":
        """Sends a request; the future is done when it is answered or lost."""
        self._one, self._started, self._came = one, started, b""
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one.sent = time.perf_counter() - started
        if self.lost:
            self._end()
        else:
            self._transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, mark, body = self._came.partition(b"\r\n\r\n")
        if not mark or self._one is None:
            return
        fields = dict(line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:])
        if len(body) < int(fields[b"content-length"]):
            return
        self._one.status = int(head[9:12])
        self._one.done = time.perf_counter() - self._started
        if fields.get(b"connection", b"").strip() == b"close":
            self.lost = True
            self._transport.close()
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._end()

    def _end(self) -> None:
        if self._one is not None:
            self._one = None
            self._answered.set_result(None)


async def _connect(place: tuple[str, int]) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, *place)
    return connection


def _requests(address: str, bodies: Sequence[bytes]) -> tuple[list[bytes], tuple[str, int]]:
    parts = urlsplit(address)
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    requests = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    return requests, (parts.hostname or "", parts.port or 80)


# --- what it costs ----------------------------------------------------------------------------------------------------


@contextmanager
def _answering() -> Iterator[str]:
    """The address of a server in a thread that answers each request at once."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Server, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _compare(rate: float = 500, seconds: float = 3) -> None:
    """Milliseconds of processor time for each request, of this client and of the command's, the server's included."""
    from servers import ROOT

    sys.path.insert(0, str(ROOT))
    from serving import bench

    due, body = moments(rate, seconds), b'{"inputs": "a"}'
    with _answering() as address:
        for name, run in (
            ("open_loop", lambda: ask(address, [body], due)),
            ("headrace bench", lambda: asyncio.run(bench._ask(address, [body] * len(due), due))),
        ):
            before = resource.getrusage(resource.RUSAGE_SELF)
            run()
            after = resource.getrusage(resource.RUSAGE_SELF)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{name}: {1000 * spent / len(due):.3f} ms a request")


if __name__ == "__main__":
    _compare()
