"""The public port that outlives whoever it is handed to."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import RunError
from cluster.ports import free_port
from serving import door, proxy
from tests.serving.served import described

# Listens on what it is handed, says so, and answers one connection for each line that it reads.
ANSWERING = f"""
import socket, sys
public = socket.socket(fileno={door.DESCRIPTOR})
public.listen()
print("listens", flush=True)
for line in sys.stdin:
    with public.accept()[0] as client:
        client.sendall(client.recv(99).upper())
"""


@contextlib.contextmanager
def answering(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has come by the port as HAProxy does."""
    command = [sys.executable, "-IS", door.__file__, str(folder / proxy.DOOR), sys.executable, "-c", ANSWERING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        yield process
        process.kill()


@contextlib.contextmanager
def starting(folder: Path, place: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A process, and the process id of what it has started as Serve starts HAProxy."""
    become = [sys.executable, "-IS", door.__file__, place, sys.executable, "-c", "print(flush=True); input()"]
    program = f"import subprocess; of = subprocess.Popen({become!r}); print(of.pid, flush=True); of.wait()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = int(process.stdout.readline())
        assert process.stdout.readline() == "\n"
        yield process, started
        process.kill()


def answer(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    print(file=process.stdin, flush=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_whoever_comes_while_nobody_answers_waits_for_the_next(tmp_path: Path, host: str) -> None:
    port = free_port()
    reached = ("::1" if host == "::1" else "127.0.0.1", port)
    with contextlib.closing(proxy.opened(tmp_path, host, port)):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(reached, 10)
        with answering(tmp_path) as killed, socket.create_connection(reached, 10) as first:
            first.sendall(b"first")
            answer(killed)
            assert first.recv(99) == b"FIRST"
            waiting = socket.create_connection(reached, 10)
            waiting.sendall(b"came before it was killed")
        with waiting, socket.create_connection(reached, 10) as later:
            later.sendall(b"came after")
            with answering(tmp_path) as following:
                for client, expected in ((waiting, b"CAME BEFORE IT WAS KILLED"), (later, b"CAME AFTER")):
                    answer(following)
                    assert client.recv(99) == expected
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(reached, 10)


def test_a_closed_door_leaves_the_port_to_who_has_it_and_hands_it_to_nobody(tmp_path: Path) -> None:
    port = free_port()
    opened = proxy.opened(tmp_path, "127.0.0.1", port)
    with answering(tmp_path) as process:
        opened.close()
        opened.close()
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"still")
            answer(process)
            assert client.recv(99) == b"STILL"
        with pytest.raises(ConnectionRefusedError):
            door.become(str(tmp_path / proxy.DOOR), "/bin/false")


def test_two_cannot_hold_one_port(tmp_path: Path) -> None:
    port = free_port()
    with (
        contextlib.closing(proxy.opened(tmp_path, "127.0.0.1", port)),
        answering(tmp_path),
        pytest.raises(RunError, match="Address already in use"),
    ):
        proxy.opened(tmp_path, "127.0.0.1", port)


@pytest.mark.parametrize("place", ["", proxy.DOOR])
def test_who_started_it_cannot_go_and_leave_it_behind(
    tmp_path: Path, place: str, wait_until: Callable[..., None]
) -> None:
    with contextlib.closing(proxy.opened(tmp_path, "127.0.0.1", 0)), starting(tmp_path, place) as (process, started):
        assert described(started, "cmdline").startswith(sys.executable.encode() + b"\0-c\0")
        process.kill()
        wait_until(lambda: b"State:\tZ" in described(started, "status") or not described(started, "status"))


def test_the_port_is_open_once_in_what_it_is_handed_to(tmp_path: Path) -> None:
    with contextlib.closing(proxy.opened(tmp_path, "127.0.0.1", 0)), answering(tmp_path) as process:
        opened = [str(file.readlink()) for file in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert len([name for name in opened if name.startswith("socket:")]) == 1
