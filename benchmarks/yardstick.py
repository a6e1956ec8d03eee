"""The bare forward pass as a yardstick, laid beside every measurement of a server.

The speed of a shared machine changes by half within minutes. A server is therefore asked in slices of seconds. Before
and after each slice a process without a server computes the same text on the same cores, while the server and all that
it has started stand still (SIGSTOP). Each slice is compared with its own two neighbours.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from servers import TEXT, wrk

BATCH = 32
SETTLE_SECONDS = 0.5
"""Before a server stands still, and after. One that is stopped while it computes takes that for its own pace, and waits
long for whoever comes next."""


class Yardstick:
    """A child that computes the forward pass of a bundle whenever it is told to, and sleeps in between.

    Args:
        engine: what computes, as a recipe's ``serve.engine``.
    """

    def __init__(self, bundle: Path, engine: str = "torch-fp32") -> None:
        # Without our own setting of OpenMP: the limit is what PyTorch does when left alone.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
        self._child = subprocess.Popen(
            [sys.executable, __file__, str(bundle), engine],
            env=inherited,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self) -> "Yardstick":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._child.terminate()
        self._child.wait()

    def measure(self, batch: int, seconds: float) -> dict[str, float]:
        """Texts a second and the median time of a pass, with all else that this process has started standing still."""
        assert self._child.stdin
        time.sleep(SETTLE_SECONDS)
        with _standing_still(self._child.pid):
            self._child.stdin.write(f"{batch} {seconds}\n")
            self._child.stdin.flush()
            found: dict[str, float] = self._answer()
        time.sleep(SETTLE_SECONDS)
        return found

    def _answer(self) -> Any:
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            sys.exit("the bare forward pass ended by itself")
        return json.loads(line)

    def beside(self, address: str, connections: int, slices: int, seconds: int, body: Any = None) -> dict[str, Any]:
        """What ``wrk`` finds of a server, slice by slice, each against the bare pass before and after it.

        Returns:
            Medians over the slices; ``over_bare`` is requests a second over the texts a second of the bare pass in
            batches of 32, ``minus_bare_p50_ms`` the median answer less the median pass of one text.
        """
        bodies = [body or {"inputs": TEXT}]
        batch = 1 if connections == 1 else BATCH
        rows, before = [], self.measure(batch, seconds)
        for _ in range(slices):
            asked, after = wrk(address, connections, seconds, bodies), self.measure(batch, seconds)
            bare = {name: statistics.mean([before[name], after[name]]) for name in before}
            against = (
                {"minus_bare_p50_ms": asked["p50_ms"] - bare["p50_ms"]}
                if batch == 1
                else {"over_bare": asked["requests_per_second"] / bare["texts_per_second"]}
            )
            rows.append({**asked, **{f"bare_{name}": value for name, value in bare.items()}, **against})
            before = after
        return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


@contextmanager
def _standing_still(but: int) -> Iterator[None]:
    """Stops every process below this one until the block ends."""
    others = [one for one in psutil.Process().children(recursive=True) if one.pid != but]
    try:
        _send(others, signal.SIGSTOP)
        yield
    finally:
        _send(others, signal.SIGCONT)


def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _compute(bundle: Path, engine: Any) -> None:
    """The child: a line with a batch size and seconds in, a line with figures out."""
    import torch

    from cluster.session import usable_cores
    from serving.predictor import Predictor
    from training.bundle import open_bundle

    torch.set_num_threads(usable_cores())
    predictor = Predictor(open_bundle(bundle), engine=engine)
    (example,) = predictor.task.encode(predictor.rows([TEXT]))
    print("{}", flush=True)
    for line in sys.stdin:
        batch, seconds = int(line.split()[0]), float(line.split()[1])
        times, started = [], time.perf_counter()
        while time.perf_counter() - started < seconds:
            began = time.perf_counter()
            predictor.forward([example] * batch)
            times.append(time.perf_counter() - began)
        pace = batch * len(times) / sum(times)
        print(json.dumps({"texts_per_second": pace, "p50_ms": 1000 * statistics.median(times)}), flush=True)


if __name__ == "__main__":
    _compute(Path(sys.argv[1]), sys.argv[2])
