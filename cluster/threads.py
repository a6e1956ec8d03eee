"""Waiting for other threads without going deaf."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

AWAKE_SECONDS = 0.5
"""Between two looks: the system may give Ctrl-C to any thread, and one that waits would sleep through it."""


def beside_main_thread(work: Callable[[], Result]) -> Callable[[], Result]:
    """Starts ``work`` in a thread of its own; what is returned waits for it and returns or raises what it did.

    Ray Train takes Ctrl-C over where it is called from the main thread, and ends the process with code 1 and no word.
    Elsewhere it leaves it alone: the main thread gets its KeyboardInterrupt, and the session's end stops the work.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Result:
        join(thread)
        return outcome.result()

    return result


def apart(work: Callable[[], Result]) -> Result:
    """Does ``work`` in a thread that ends with it, and with the thread the helpers that PyTorch gave it.

    The helpers of a thread that stays keep those of every other from waiting awake; see :class:`serving.lanes.Lanes`.
    """
    return beside_main_thread(work)()


def join(thread: threading.Thread) -> None:
    """Waits for a thread, and hears Ctrl-C meanwhile."""
    while thread.is_alive():
        thread.join(timeout=AWAKE_SECONDS)
