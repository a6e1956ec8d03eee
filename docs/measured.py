"""What benchmarks measured, as lines of the tables that the README and the page on serving have."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
PEERS = {"litserve": "LitServe", "bentoml": "BentoML", "fastapi": "FastAPI", "ray-serve": "Ray Serve as documented"}
GOALS = {("litserve", True): 1.5, ("litserve", False): 2.2, ("ray-serve", True): 2.5, ("ray-serve", False): 2.5}
"""How many times as fast an engine is to be, by the other and whether it is exact; as fast as the rest."""


@dataclass(frozen=True)
class Line:
    """What was measured, and what it is to be.

    Attributes:
        what: was measured.
        figure: what was found.
        goal: what is wanted of it; nothing where it is told for itself.
        reached: whether the figure is that good.
    """

    what: str
    figure: str
    goal: str = ""
    reached: bool = True

    def row(self) -> str:
        """As a row of a table, the figure in bold where it falls short."""
        return f"| {self.what} | {self.figure if self.reached else f'**{self.figure}**'} | {self.goal} |"


def numbers() -> list[Line]:
    """What the README tells of the results."""
    trials, overhead, ratios = kept("trials"), kept("overhead"), kept("serving")["ratios"]
    adds, nested = (trials[name]["each_adds_seconds"] for name in ("function_trainable", "torch_trainer"))
    ray = overhead["ray_adds_seconds"]
    few, many = ratios["served_over_bare_32"], ratios["served_over_bare_128"]
    pattern, helped = ratios["served_over_pattern_32"], overhead["help_seconds"]
    return [
        *of_training(),
        Line(
            "what a trial of a sweep adds to its own training, after the first",
            f"{adds:.1f} s; {nested:.0f} s where each is a Ray Train run of its own",
            "1 s",
            adds <= 1,
        ),
        Line("what Ray adds to a run: starting it, its workers, ending them", f"{ray:.0f} s", "15 s", ray <= 15),
        Line(
            "served, 32 and 128 connections, against the bare forward pass on the same cores",
            f"{few:.2f} and {many:.2f}",
            "0.85",
            min(few, many) >= 0.85,
        ),
        Line(
            "… against Ray Serve as its documentation sets it up, 32 connections",
            f"{pattern:.1f} times",
            "2.5 times",
            pattern >= 2.5,
        ),
        Line("`headrace --help`", f"{helped:.2f} s", "0.3 s", helped <= 0.3),
    ]


def of_training() -> list[Line]:
    """The part of :func:`numbers` that is about training."""
    times, each = (
        kept("training")["times the rows a second"],
        [one["times the rows a second"] for one in kept("tasks")["table"]],
    )
    exact, both, grouped = (
        times[name] for name in ("headrace over trainer", "headrace-auto over trainer", "headrace over trainer-grouped")
    )
    two, right = kept("workers")["two_workers_over_one"], kept("training-full")["accuracy"]
    return [
        Line(
            "training, against Hugging Face Trainer with its defaults: same base, rows, epochs, batch size, fp32",
            f"{exact:.1f} times the rows a second",
            "2.5 times",
            exact >= 2.5,
        ),
        Line(
            "… as both come out of the box (headrace takes bf16 where the processor computes it)",
            f"{both:.1f} times",
            "2.5 times",
            both >= 2.5,
        ),
        Line(
            "… accuracy on the whole of Banking77 after four epochs, out of the box, Trainer's in brackets",
            f"{right['headrace-auto']:.3f} ({right['trainer']:.3f})",
            "0.925, and no lower",
            right["headrace-auto"] >= max(0.925, right["trainer"]),
        ),
        Line("… against Trainer grouped by length, fp32", f"{grouped:.1f} times", "1.05 times", grouped >= 1.05),
        Line(
            f"… on {len(each)} examples of all kinds, against Trainer, and sentence-transformers' for pairs",
            f"{min(each):.2f} to {max(each):.1f} times",
        ),
        Line("two workers of one core against one of two cores", f"{two:.2f} times", "0.9 times", two >= 0.9),
    ]


def over_peers(peers: Any) -> list[Line]:
    """How many times as fast each engine answers as each of the others."""
    engines = {name: one["engine"]["name"] for name, one in peers["rounds"][0].items() if "engine" in one}
    return [
        over_peer(f"`{engine}`", title, [peers["ratios"][ratio(name, other, count)] for count in (1, 32, 128)], goal)
        for name, engine in engines.items()
        for other, title in PEERS.items()
        for goal in [GOALS.get((other, "fp32" in engine), 1.0)]
    ]


def over_peer(engine: str, title: str, times: list[float], goal: float) -> Line:
    """The same of one of them."""
    figure = ", ".join(f"{one:.2f}" for one in times) + " times"
    wanted = "faster" if goal == 1 else f"{goal:g} times"
    return Line(f"{engine} over {title}, 1, 32 and 128 connections", figure, wanted, min(times) >= goal)


def of_serving() -> list[Line]:
    """What the page on serving tells of the results."""
    ratios = kept("serving")["ratios"]
    nothing = [ratios[f"noop_over_pattern_{count}"] for count in (1, 32)]
    return [
        *near_bare("", ratios),
        *near_bare(", `openvino-fp32`", kept("serving-openvino-fp32")["ratios"]),
        Line(
            "a model that computes nothing, over the same in Ray Serve's documented pattern, 1 and 32 connections",
            f"{nothing[0]:.0f}, {nothing[1]:.0f} times",
            "7 times",
            min(nothing) >= 7,
        ),
        *over_peers(kept("peers")),
        *of_load(),
    ]


def near_bare(engine: str, ratios: Any) -> list[Line]:
    """How near an engine that is served comes to its own forward pass."""
    few, many, late = (
        ratios[name] for name in ("served_over_bare_32", "served_over_bare_128", "served_minus_bare_p50_ms_1")
    )
    return [
        Line(
            f"requests a second over texts a second of the bare forward pass, 32 and 128 connections{engine}",
            f"{few:.2f}, {many:.2f}",
            "0.85",
            min(few, many) >= 0.85,
        ),
        Line(
            f"one request at a time: its median over that of the bare pass of one text{engine}",
            f"{late:.1f} ms more",
            "1.5 ms",
            late <= 1.5,
        ),
    ]


def of_load() -> list[Line]:
    """What users do: lengths, moments, too much, for long."""
    lengths, pace, soak, apart = map(kept_of_load, ("lengths", "pace", "soak", "elsewhere"))
    waste, even, late = lengths["mixed"]["padding_share"], lengths["mixed_over_even"], pace["served"]["p99_ms"]
    return [
        Line(
            "texts of 8 to 256 tokens: share of padding; tokens a second over those of texts of one length",
            f"{waste:.1%}; {even:.2f}",
            "5 %; 0.9",
            waste <= 0.05 and even >= 0.9,
        ),
        Line(
            "500 requests a second at random moments, a pass that takes 14 ms and 0.05 ms an input: p50, p99",
            f"{pace['served']['p50_ms']:.0f}, {late:.0f} ms",
            "p99 35 ms",
            late <= 35,
        ),
        overload("three times what it bears, from the same cores", kept_of_load("overload")),
        overload("… where a device computes (40 ms and 2.5 ms an input) and those cores only refuse", apart),
        Line(
            "half of what it bears for long: resident memory of a replica, first and last; files it holds open",
            f"{soak['replica_mb']['first']:.0f}, {soak['replica_mb']['last']:.0f} MB; "
            f"{soak['replica_files']['first']:.0f}, {soak['replica_files']['last']:.0f}",
        ),
    ]


def overload(what: str, found: Any) -> Line:
    """What becomes of three times too many requests."""
    share, refused = found["answered_in_time_over_capacity"], found["refused"]
    return Line(
        f"{what}: answered in time over capacity; refusals, p50 and p99",
        f"{share:.2f}; {refused['p50_ms']:.0f}, {refused['p99_ms']:.0f} ms",
        "0.95; 5 ms",
        share >= 0.95 and refused["p99_ms"] <= 5,
    )


def ratio(ours: str, other: str, connections: int) -> str:
    """The name of a ratio of ``benchmarks/peers.py``."""
    return f"{ours}_over_{other}_{connections}".replace("-", "_")


def kept_of_load(part: str) -> Any:
    """What ``benchmarks/load.py`` kept of one part."""
    return kept(f"load-{part}")["medians"]


def kept(name: str) -> Any:
    """What a benchmark kept."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
