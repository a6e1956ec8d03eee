"""How a server bears what users do: texts of all lengths, requests at random moments, three times too many, for long.

    python benchmarks/load.py [--only lengths pace overload elsewhere soak] [--seconds 60] [--minutes 20] [--rounds 3]

lengths: texts of 8 to 256 tokens by 64 connections, beside texts that all have their mean length; the server's own
metrics say how many tokens it computed and how much padding. pace: an executor that sleeps 14 ms and 0.05 ms for each
input, asked 500 times a second at random moments, through the scheduler alone and through HTTP. overload: capacity in a
closed loop, then three times that at random moments, each request with 2 s to be answered, then capacity again.
elsewhere: the same with an executor that sleeps 40 ms and 2.5 ms for each input, as where a device computes and not the
cores that refuse. soak: half of capacity for some minutes, and how memory and open files move meanwhile. Where nothing
else is said it is MiniLM in fp32 on all cores of this machine, of which the client takes its share. A wait counts from
the moment when a request was due. Writes benchmarks/results/load-PART.json. Needs `wrk` on the path.
"""

import argparse
import asyncio
import functools
import json
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from open_loop import Asked, ask, ask_in_turn, moments
from scipy.stats import linregress
from servers import TEXT, announce, free_port, headrace, make_bundle, medians, minilm, require_wrk, running, wrk

SHORTEST, LONGEST, TEXTS = 8, 256, 256
CONNECTIONS = 64
RATE = 500
QUICK, SLOW = (0.014, 0.00005), (0.04, 0.0025)
"""Seconds that an executor which sleeps takes for each batch, and for each input of it."""

DEADLINE_SECONDS = 2.0
WARM_SECONDS = 3.0
LEAST_SECONDS = 5.0
"""For which capacity is measured: less finds a server that is still getting warm."""

SAMPLE_SECONDS = 5.0
SETTLED = 0.2
"""The share of a soak after which memory that is only filled once has been filled."""

BODIES = [json.dumps({"inputs": TEXT}).encode()]


def main() -> None:
    """Measures what is asked for, one part after the other."""
    options = arguments()
    if options.sleeper:
        serve_sleeper(options.bundle, options.port, *options.sleeper)
        return
    require_wrk()
    from record import keep

    for part in options.only:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as place:
            os.environ["HEADRACE_HOME"] = str(Path(place) / "home")
            make_bundle(Path(place) / "bundle")
            rounds = [PARTS[part](Path(place) / "bundle", options) for _ in range(rounds_of(part, options))]
        settings = {"seconds": options.seconds, "rounds": len(rounds), "load_before": load}
        settings |= {"minutes": options.minutes} if part == "soak" else {}
        keep(f"load-{part}", {"settings": settings, "medians": medians(rounds), "rounds": rounds})


def arguments() -> argparse.Namespace:
    """The command line; --sleeper, --bundle and --port are for the parent's own child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sleeper", nargs=2, type=float)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--port", type=int)
    return parser.parse_args()


def rounds_of(part: str, options: argparse.Namespace) -> int:
    """How often a part is measured; a soak once."""
    return 1 if part == "soak" else int(options.rounds)


@contextmanager
def served(bundle: Path, sleeps: tuple[float, float] | None = None, **options: Any) -> Iterator["Watched"]:
    """headrace with a bundle, warm; its model sleeps where it is said how long."""
    port = free_port()
    command = sleeper(bundle, port, sleeps) if sleeps else headrace(bundle, port, **options)
    with running(command, {}, bundle.parent / "log") as address:
        ask_in_turn(address, BODIES, 8, WARM_SECONDS)
        yield Watched(address, port)


class Watched:
    """A running server of ours: its address, its processes, its own counts."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self._port = address, port
        self.replica, self.proxy = self._replica(), self._proxy()

    def _replica(self) -> psutil.Process:
        title = f"ray::ServeReplica:headrace-{self._port}-"
        (found,) = [
            one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [""])[0].startswith(title)
        ]
        return found

    def _proxy(self) -> psutil.Process:
        listening = psutil.net_connections("tcp")
        (found,) = {one.pid for one in listening if one.laddr.port == self._port and one.status == psutil.CONN_LISTEN}
        return psutil.Process(found)

    def count(self, name: str) -> float:
        """A count of the server's own."""
        with urllib.request.urlopen(self.address.partition("/models/")[0] + "/metrics", timeout=60) as answer:
            page = answer.read().decode()
        return sum(map(float, re.findall(rf"^{name}_total{{.*}} (\S+)$", page, re.MULTILINE)))


# --- texts of all lengths ---------------------------------------------------------------------------------------------


def lengths(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second and the share of padding, mixed and even."""
    draw = random.Random(3)
    drawn = [draw.randint(SHORTEST, LONGEST) for _ in range(TEXTS)]
    kinds = {"mixed": drawn, "even": [round(statistics.mean(drawn))] * TEXTS}
    with served(bundle) as server:
        found = {kind: asked_in(server, texts_of(sizes), options.seconds) for kind, sizes in kinds.items()}
    return {**found, "mixed_over_even": found["mixed"]["tokens_per_second"] / found["even"]["tokens_per_second"]}


def asked_in(server: Watched, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """What a server computes for these texts."""
    before, started = [server.count(name) for name in COUNTS], time.perf_counter()
    asked = wrk(server.address, CONNECTIONS, round(seconds), [{"inputs": text} for text in texts])
    took, after = time.perf_counter() - started, [server.count(name) for name in COUNTS]
    tokens, padding = (late - early for late, early in zip(after, before, strict=True))
    return {"tokens_per_second": tokens / took, "padding_share": padding / (tokens + padding), **asked}


COUNTS = ("headrace_tokens", "headrace_padding_tokens")


def texts_of(sizes: Sequence[int]) -> list[str]:
    """A text for each number of tokens, the two special ones included; no two alike."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 3)
    draw = random.Random(5)
    texts = [" ".join(draw.choices(words, k=size - 2)) for size in sizes]
    assert [len(ids) for ids in tokenizer(texts)["input_ids"]] == list(sizes)
    return texts


# --- at random moments ------------------------------------------------------------------------------------------------


def pace(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Waits at a rate that the executor bears only in batches."""
    due = moments(RATE, options.seconds)
    found = {"scheduler": waits(asyncio.run(through_scheduler(due)), due[-1])}
    port = free_port()
    with running(sleeper(bundle, port, QUICK), {}, bundle.parent / "log") as address:
        ask_in_turn(address, BODIES, 8, WARM_SECONDS)
        found["served"] = waits(ask(address, BODIES, due), due[-1])
    return found


def sleeper(bundle: Path, port: int, seconds: tuple[float, float]) -> list[str]:
    """The command of this script as a server whose model sleeps."""
    times = list(map(str, seconds))
    return [sys.executable, __file__, "--sleeper", *times, "--bundle", str(bundle), "--port", str(port)]


def execute(items: Sequence[Any]) -> None:
    """Takes the time of a forward pass, and none of the processor's."""
    fixed, each = QUICK
    time.sleep(fixed + each * len(items))


async def through_scheduler(due: Sequence[float]) -> list[Asked]:
    """Asks the scheduler itself, without HTTP."""
    from serving.scheduler import Scheduler

    def run(items: list[Any]) -> list[Any]:
        execute(items)
        return items

    scheduler = Scheduler(lambda values: [(value, 20) for value in values], run)
    asked, started = [Asked(moment) for moment in due], time.perf_counter()

    async def one(request: Asked) -> None:
        request.sent = time.perf_counter() - started
        await scheduler.submit([0], time.monotonic() + 60)
        request.done, request.status = time.perf_counter() - started, 200

    tasks = []
    for request in asked:
        await asyncio.sleep(max(0.0, started + request.due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one(request)))
    await asyncio.gather(*tasks)
    scheduler.close()
    return asked


def serve_sleeper(bundle: Path, port: int, fixed: float, each: float) -> None:
    """headrace whose model sleeps."""
    from serving import host
    from serving.recipe import Serve

    host.Replica = sleeping_replica(fixed, each)  # type: ignore[misc]
    options = Serve(timeout_seconds=DEADLINE_SECONDS)
    host.serve([str(bundle)], options, port=port, announce=announce("/models/bench"))


def sleeping_replica(fixed: float, each: float) -> Any:
    """A replica like ours, whose model takes the executor's time for each batch."""
    from serving.host import Replica

    class Sleeping(Replica):
        def __init__(self, *given: Any) -> None:
            import time

            from serving.predictor import Predictor

            begin = Predictor.__init__

            def with_one_lane(self: Any, *given: Any, **named: Any) -> None:
                begin(self, *given, **named)
                self.lanes = 1  # there is one executor

            def answer(self: Any, questions: list[Any]) -> list[Any]:
                time.sleep(fixed + each * len(questions))
                return [[{"label": "a", "score": 1.0}]] * len(questions)

            Predictor.prepare = lambda self, questions: [(one, 20) for one in questions]  # type: ignore[assignment,method-assign]
            Predictor.__init__, Predictor.answer = with_one_lane, answer  # type: ignore[method-assign]
            super().__init__(*given)

    return Sleeping


def waits(asked: Sequence[Asked], end: float) -> dict[str, Any]:
    """Waits in milliseconds from the moments that were due, and how many still waited when the last one was."""
    answered = [one for one in asked if one.status == 200]
    assert len(answered) == len(asked), Counter(one.status for one in asked)
    times = [1000 * (one.done - one.due) for one in answered if one.done is not None]
    late = [1000 * (one.sent - one.due) for one in asked]
    waiting = sum(one.done is None or one.done > end for one in asked)
    return {**percentiles(times), "left_late_p99_ms": float(np.percentile(late, 99)), "waiting_at_the_end": waiting}


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """The usual ones of some milliseconds."""
    return {f"p{share}_ms": float(np.percentile(times, share)) for share in (50, 99) if len(times)}


# --- three times too many ---------------------------------------------------------------------------------------------


def overload(bundle: Path, options: argparse.Namespace, sleeps: tuple[float, float] | None = None) -> dict[str, Any]:
    """What is answered in time of three times what can be, how quickly the rest is refused, and what it costs."""
    with served(bundle, sleeps, timeout_seconds=DEADLINE_SECONDS) as server:
        early = capacity_of(server.address, options.seconds / 4)
        before = server.replica.memory_info().rss
        asked = ask(server.address, BODIES, moments(3 * early, options.seconds))
        after = server.replica.memory_info().rss
        late = capacity_of(server.address, options.seconds / 4)
    capacity = (early + late) / 2  # what the machine can do moves by a tenth within minutes
    done = [one for one in asked if one.done is not None]
    answered = [one for one in done if one.status == 200 and one.done - one.due <= DEADLINE_SECONDS]
    refused = [1000 * (one.done - one.sent) for one in done if one.status == 429]
    return {
        "capacity_per_second": capacity,
        "capacity_before_and_after": {"before": early, "after": late},
        "asked_per_second": len(asked) / options.seconds,
        "answered_in_time_per_second": len(answered) / options.seconds,
        "answered_in_time_over_capacity": len(answered) / options.seconds / capacity,
        "statuses": {str(status): count for status, count in sorted(Counter(one.status for one in asked).items())},
        "answered": percentiles([1000 * (one.done - one.due) for one in answered]),
        "refused": {**percentiles(refused), "within_5_ms": float(np.mean(np.array(refused) < 5)) if refused else 0.0},
        "left_late_p99_ms": float(np.percentile([1000 * (one.sent - one.due) for one in asked], 99)),
        "resident_mb_before": before / 2**20,
        "resident_mb_after": after / 2**20,
    }


def capacity_of(address: str, seconds: float) -> float:
    """Answers a second in a closed loop, by the same client; too few connections for one to be refused."""
    asked = ask_in_turn(address, BODIES, CONNECTIONS, max(seconds, LEAST_SECONDS))
    answered = [one for one in asked if one.status == 200]
    if not answered:
        sys.exit(f"{address} answered nothing in {seconds} s: {Counter(one.status for one in asked)}")
    return len(answered) / max(one.done or 0.0 for one in asked)


# --- for long ---------------------------------------------------------------------------------------------------------


def soak(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Half of capacity for some minutes: what memory and open files do meanwhile, as a line through the samples."""
    with served(bundle) as server:
        capacity = capacity_of(server.address, 10)
        due = moments(capacity / 2, 60 * options.minutes)
        with sampled(server) as samples:
            asked = ask(server.address, BODIES, due)
    kept = [sample for sample in samples if sample["second"] >= SETTLED * samples[-1]["second"]]
    names = [name for name in samples[0] if name != "second"]
    statuses = Counter(one.status for one in asked)
    return {
        "asked_per_second": capacity / 2,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        **percentiles([1000 * (one.done - one.due) for one in asked if one.done is not None]),
        **{name: trend(kept, name) for name in names},
    }


@contextmanager
def sampled(server: Watched) -> Iterator[list[dict[str, float]]]:
    """Resident megabytes and open files of replica and proxy, every few seconds until the block ends."""
    over, started, samples = threading.Event(), time.perf_counter(), []
    look: dict[str, Callable[[], float]] = {
        "replica_mb": lambda: server.replica.memory_info().rss / 2**20,
        "replica_files": server.replica.num_fds,
        "proxy_mb": lambda: server.proxy.memory_info().rss / 2**20,
        "proxy_files": server.proxy.num_fds,
    }

    def forever() -> None:
        while True:
            samples.append({"second": time.perf_counter() - started, **{name: see() for name, see in look.items()}})
            if over.wait(SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=forever)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def trend(samples: Sequence[dict[str, float]], name: str) -> dict[str, float]:
    """A straight line through samples by least squares: its slope by the hour, and that slope's standard error."""
    values = [sample[name] for sample in samples]
    found = {"first": values[0], "last": values[-1], "highest": max(values)}
    if len(values) > 2:
        line = linregress([sample["second"] / 3600 for sample in samples], values)
        found |= {"by_the_hour": float(line.slope), "standard_error": float(line.stderr)}
    return found


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "lengths": lengths,
    "pace": pace,
    "overload": overload,
    "elsewhere": functools.partial(overload, sleeps=SLOW),
    "soak": soak,
}

if __name__ == "__main__":
    main()
