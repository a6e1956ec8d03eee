"""The public port, held open by the process that serves and handed to each HAProxy that starts.

What a killed process had open the kernel closes one by one, the last opened first: clients' connections go before the
port that HAProxy listened on, which it opened early. A client that connects again as soon as it is cut off still finds
that port, is let in by nobody, and loses a second request when the port goes too. Here the port outlives each HAProxy:
whoever comes while there is none waits in its queue, and the next one answers.

No HAProxy outlives the process of Serve's that started it: where all of Serve is killed at once that process need not
come to end its child, which would keep the port from the next server and hand requests to replicas that are gone.

The program that becomes HAProxy runs this file by its path, with nothing but the standard library.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
DESCRIPTOR = 10
"""What the port is to the HAProxy that it is handed to: ``fd@10`` in its configuration."""


class Door:
    """Hands a bound socket to whoever asks at ``place``, which only this user must be able to reach.

    The first HAProxy that it is handed to begins to listen on it.
    """

    def __init__(self, public: socket.socket, place: Path) -> None:
        self._public = public
        self._asked = socket.socket(socket.AF_UNIX)
        self._asked.bind(str(place))
        self._asked.listen()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._hand_out, name="door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leaves the port to the HAProxy that has it, and hands it to nobody any more."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._asked.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._asked.close()
        self._public.close()

    def _hand_out(self) -> None:
        while not self._closed.is_set():
            try:
                with self._asked.accept()[0] as asker:
                    socket.send_fds(asker, [b"\n"], [self._public.fileno()])
            except OSError:  # closed, or who asked has gone, or too many files are open: another may ask later
                self._closed.wait(0.1)


def become(place: str, program: str, *words: str) -> None:
    """Turns into ``program``, which ends with the process that started this one.

    Args:
        place: where to ask for the port, which ``program`` then has as ``DESCRIPTOR``; it has none where this is empty.
        program: the path of what to become.
        words: its arguments.
    """
    _end_with(os.getppid())
    if place:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(place)
            _, (public, *_), _, _ = socket.recv_fds(asking, 1, 1)
        os.dup2(public, DESCRIPTOR)
        if public != DESCRIPTOR:
            os.close(public)  # HAProxy would keep it open when it has left the port that it knows of
    os.execv(program, [program, *words])


def _end_with(parent: int) -> None:
    """Has the kernel kill this process, also as another program, when the thread that started it ends."""
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot ask to be ended with the process that started this one")
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(1)


if __name__ == "__main__":
    become(*sys.argv[1:])
