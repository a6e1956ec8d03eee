"""What a person sees while work goes on: one line of progress, plain sentences, and the set-up of logging.

All of it goes to stderr, for stdout holds results, and through ``redact``, for a secret is never shown. Where
``HEADRACE_LOG=json`` says so, each line is an object for machines (``logs.py``).
"""

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from cluster.logs import START, Structured, as_json, json_line, require_known_form
from cluster.masking import redact

OURS = ("headrace", "cluster", "training", "tuning", "serving")
PLAIN_SECONDS = 5.0  # the least time between two plain lines…
PLAIN_SHARE = 0.1  # …unless a tenth of the work was done meanwhile
REFRESH_SECONDS = 0.1


def say(text: str, level: str = "INFO") -> None:
    """One line to stderr.

    Args:
        level: of the line, where lines are for machines.
    """
    _write(sys.stderr, text, level)


def relay(line: str) -> None:
    """A line that another process of ours wrote: as it is where it is an object already, else as by :func:`say`."""
    if line.startswith(START):
        _put(sys.stderr, line)
    else:
        say(line)


def configure_logging(stream: TextIO | None = None) -> None:
    """Our loggers speak at INFO, everyone else's at WARNING, all to stderr and redacted.

    Args:
        stream: what takes the place of stderr.

    Raises:
        UserError: ``HEADRACE_LOG`` names no form there is.
    """
    require_known_form()
    handler = _Saying(stream)
    if as_json():
        handler = _Structuring(stream)
        handler.setFormatter(Structured())
    root = logging.getLogger()
    root.handlers = [*(other for other in root.handlers if not isinstance(other, _Saying)), handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


class Progress:
    """The progress of one piece of work: a live line on a terminal, now and then a plain line elsewhere.

    >>> with Progress("training", total=3000, unit="rows") as bar:
    ...     bar.update(done=32, loss=4.31)

    Shows the share done, the rate over the whole piece, the time left, and each value given by its name.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int | None = None,
        unit: str = "",
        start: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        """``start`` is what was done before this process began: it counts for the share and not for the rate."""
        self.title, self.total, self.unit = title, total, unit
        self.done, self._start = start, start
        self.values: dict[str, Any] = {}
        self._rate: float | None = None
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._shown_at, self._shown_done = -math.inf, start
        self._shown: tuple[Any, ...] = ()
        self._live: _LiveLine | None = None

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        if self._stream.isatty() and not as_json():
            self._live = _LiveLine(self._stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        line = self.line(time.monotonic())
        if self._live:
            self._live.close(line)
        elif self.done > self._start and self._state() != self._shown:
            self._print(line)  # the last state is always shown, also that of work that failed

    def advance(self, amount: int = 1, **values: Any) -> None:
        """``amount`` more is done."""
        self.update(done=self.done + amount, **values)

    def update(
        self, done: int | None = None, *, total: int | None = None, rate: float | None = None, **values: Any
    ) -> None:
        """So much is done in all; ``values`` (loss, …) are shown beside it.

        ``rate`` is given, in units a second, by work that knows its own pace better than the clock since it began.
        """
        self._rate = rate if rate is not None else self._rate
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self.values.update(values)
        at = time.monotonic()
        if self._live:
            if at - self._shown_at >= REFRESH_SECONDS:
                self._shown_at = at
                self._live.show(self.line(at))
        elif self._due(at):
            self._print(self.line(at))
            self._shown_at, self._shown_done = at, self.done

    def line(self, at: float) -> str:
        """The state as one line, e.g. ``training 40 % · 1,280/3,200 rows · 105 rows/s · loss 0.412 · 18 s left``."""
        parts = [self.title]
        rate = self._rate or (self.done - self._start) / max(at - self._began, 1e-9)
        if self.total:
            parts[0] = f"{self.title} {min(100, 100 * self.done // self.total)} %"
            parts.append(f"{self.done:,}/{self.total:,} {self.unit}".rstrip())
        elif self.done:
            parts.append(f"{self.done:,} {self.unit}".rstrip())
        if self.unit and self.done > self._start:
            parts.append(f"{_number(rate)} {self.unit}/s")
        parts += [f"{name.replace('_', ' ')} {_number(value)}" for name, value in self.values.items()]
        if self.total and self._start < self.done < self.total and rate > 0:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        elif self.total and self.done >= self.total:
            parts.append(f"took {duration(at - self._began)}")
        return redact(" · ".join(parts))

    def _due(self, at: float) -> bool:
        share = (self.done - self._shown_done) / self.total if self.total else 0
        waited = at - self._shown_at
        return waited >= PLAIN_SECONDS or (share >= PLAIN_SHARE and waited >= PLAIN_SECONDS / 5)

    def _state(self) -> tuple[Any, ...]:
        """What a line tells, but for the time."""
        return self.done, self.total, dict(self.values)

    def _print(self, line: str) -> None:
        self._shown = self._state()
        _write(self._stream, line)


@contextmanager
def heartbeat(title: str, every: float = 10.0) -> Iterator[None]:
    """Says now and then that work goes on which cannot tell how far it has come.

    Args:
        every: seconds between two lines; work that takes less is not spoken of.
    """
    began, over = time.monotonic(), threading.Event()

    def beat() -> None:
        while not over.wait(every):
            say(f"{title} · {duration(time.monotonic() - began)}")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


progress = Progress  # `with progress("training", total=n) as bar:` reads as what it does


def duration(seconds: float) -> str:
    """A time for people: ``8 s``, ``2 min 05 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _write(stream: TextIO, line: str, level: str = "INFO") -> None:
    _put(stream, json_line(time.time(), level, "headrace", line) if as_json() else redact(line))


def _put(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def _number(value: Any) -> str:
    """Three or four digits that count, whatever the size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}"


class _LiveLine:
    """One line of a terminal that rich keeps redrawing, under whatever else is printed meanwhile."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live("", console=Console(file=stream), refresh_per_second=8, transient=True)
        self._live.start()

    def show(self, line: str) -> None:
        from rich.text import Text

        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def close(self, line: str) -> None:
        self._live.stop()
        self._live.console.print(line, markup=False, highlight=False)


class _Saying(logging.Handler):
    """Says each record, tracebacks included, on whatever is stderr then: a live line puts its own there."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        _write(self._stream or sys.stderr, self.format(record))


class _Structuring(_Saying):
    """The same for records that are formatted as objects."""

    def emit(self, record: logging.LogRecord) -> None:
        _put(self._stream or sys.stderr, self.format(record))
