"""Ports that stay free until somebody listens."""

import socket
from collections.abc import Iterable

import pytest

from cluster import ports


def test_a_port_can_be_listened_on_and_is_given_to_no_connection() -> None:
    for _ in range(20):
        port = ports.free_port()
        assert port in ports.QUIET
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
        other.close()
        order = [taken.getsockname()[1], free]

        class InOrder:
            def sample(self, among: Iterable[int], count: int) -> list[int]:
                return order

        monkeypatch.setattr("random.Random", InOrder)
        assert ports.free_port() == free
        order.pop()
        assert ports.free_port() not in order, "where all are taken, the system chooses"
