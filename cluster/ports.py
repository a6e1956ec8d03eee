"""Ports of this machine."""

import random
import socket

QUIET = range(20_000, 30_000)
"""Above what Ray gives its workers (10002 to 19999), below what Serve gives replicas (30000 to 31000), and below what
Linux gives connections that go out (from 32768)."""


def free_port() -> int:
    """A port that nothing listens on, and that no connection is given by chance before somebody does.

    The port that a system chooses by itself is one of those it also gives to connections that go out: on a machine with
    many of them it may be taken a moment later.
    """
    for port in random.Random().sample(QUIET, 100):
        if _free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
