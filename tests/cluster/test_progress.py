"""Progress: what people see on a terminal and what a pipe gets."""

import contextlib
import io
import os
import pty
import re
from collections.abc import Callable

from cluster.progress import Progress, duration, heartbeat


def test_a_line_says_share_rate_values_and_time_left() -> None:
    bar = Progress("training", total=1000, unit="rows")
    bar.done, bar.values = 400, {"loss": 0.41234, "learning_rate": 2e-4}
    expected = "training 40 % · 400/1,000 rows · 100 rows/s · loss 0.412 · learning rate 0.0002 · 6 s left"
    assert bar.line(bar._began + 4) == expected


def test_what_was_done_before_counts_for_the_share_and_not_for_the_rate() -> None:
    bar = Progress("training", total=1000, unit="rows", start=900)
    bar.done = 950
    assert bar.line(bar._began + 5) == "training 95 % · 950/1,000 rows · 10 rows/s · 5 s left"


def test_without_a_total_there_is_no_share_and_no_time_left() -> None:
    bar = Progress("reading tickets", unit="rows")
    bar.done = 5000
    assert bar.line(bar._began + 2) == "reading tickets · 5,000 rows · 2,500 rows/s"


def test_a_pipe_gets_a_few_lines_and_the_last() -> None:
    stream = io.StringIO()
    with Progress("encoding", total=100_000, unit="rows", stream=stream) as bar:
        for done in range(0, 100_001, 10):
            bar.update(done=done)
    lines = stream.getvalue().splitlines()
    assert 1 <= len(lines) < 20
    assert lines[-1].startswith("encoding 100 % · 100,000/100,000 rows")
    assert "\x1b" not in stream.getvalue()


def test_work_that_fails_still_shows_how_far_it_came() -> None:
    stream = io.StringIO()
    try:
        with Progress("training", total=10, unit="rows", stream=stream) as bar:
            bar.update(done=1)
            bar.update(done=7)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert stream.getvalue().splitlines()[-1].startswith("training 70 % · 7/10 rows")


def test_a_terminal_gets_one_line_that_is_redrawn() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        with Progress("training", total=3, unit="rows", stream=terminal) as bar:
            for done in (1, 2, 3):
                bar.update(done=done, loss=1 / done)
        shown = b""
        while "training 100 % · 3/3 rows".encode() not in shown:
            shown += os.read(ours, 100_000)
    os.close(ours)
    assert b"\x1b[" in shown


def test_nothing_goes_to_stdout() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as stdout, Progress("training", total=2) as bar:
        bar.update(done=2)
    assert stdout.getvalue() == ""


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 59, 125, 12_000)] == ["0 s", "59 s", "2 min 05 s", "3 h 20 min"]


def test_work_that_cannot_tell_how_far_it_has_come_says_that_it_goes_on(wait_until: Callable[..., None]) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        with heartbeat("fusing 7 rows", every=0.01):
            wait_until(lambda: told.getvalue().count("\n") >= 2)
        lines = told.getvalue().splitlines()
        assert all(re.fullmatch(r"fusing 7 rows · \d+ s", line) for line in lines)
        with heartbeat("fusing 8 rows"):
            pass
        assert told.getvalue().splitlines() == lines, "of what is done at once nothing is said"


def test_the_last_state_is_told_once() -> None:
    stream = io.StringIO()
    with Progress("predicting", total=2, unit="rows", stream=stream) as bar:
        bar.update(done=2)
    assert stream.getvalue().count("predicting 100 %") == 1
