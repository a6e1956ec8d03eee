"""How many requests a second headrace answers beside others, each as its own documentation sets it up.

    python benchmarks/peers.py [--rounds 3] [--slices 1] [--seconds 3] [--bundle FOLDER] [--only NAME …]

One 20-token text a request, one fine-tuned MiniLM, one process that computes with all cores, `wrk` on the same machine
with 1, 32 and 128 connections. Each round starts every server anew, in an order that moves on from round to round, and
takes its own ratios, through what each makes of the machine of its own moments (`yardstick.py`); figures are medians
over the rounds, and the rounds are kept. The others live in `.venv-peers`,
which this script makes from `benchmarks/peers.txt`; Ray Serve's documented pattern is that of `benchmarks/serving.py`.
headrace takes part with its default engine, with ONNX Runtime and OpenVINO in fp32, and with `fast`, which takes one of
lower precision if its answers agree on the rows that training held back: so the model is trained, on the sample of
`headrace new`, unless --bundle names another. Writes benchmarks/results/peers.json. Needs `wrk` on the path.

infinity-emb is missing: its newest release wants click<8.2, which no huggingface_hub takes that transformers 5 takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servers import ROOT, TEXT, free_port, headrace, medians, require_wrk, running, wrk
from yardstick import Yardstick

HERE = Path(__file__).parent
PINS, PLACE = HERE / "peers.txt", ROOT / ".venv-peers"
CONNECTIONS = (1, 32, 128)
WARM_SECONDS = 3


RATE = "requests_per_second"


@dataclass(frozen=True)
class Contender:
    """One server.

    Attributes:
        command: that starts it with a bundle, on a port.
        path: where it is asked; None where it prints its address as soon as it answers.
        body: what it is asked.
        environment: what it finds there besides.
        ours: it is headrace.
    """

    command: Callable[[Path, int], list[str]]
    path: str | None = None
    body: Mapping[str, Any] = field(default_factory=lambda: {"inputs": TEXT})
    environment: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False


def own(**options: Any) -> Contender:
    """headrace with these options of a recipe's ``serve``."""
    return Contender(lambda bundle, port: headrace(bundle, port, **options), ours=True)


def script(name: str, path: str) -> Contender:
    """A script in the contenders' environment."""
    return Contender(lambda bundle, port: [PYTHON, str(SCRIPTS / name), str(port)], path)


def bentoml(bundle: Path, port: int) -> list[str]:
    """BentoML's own command."""
    words = ["serve", "on_bentoml:Classifier", "--working-dir", str(SCRIPTS)]
    return [PYTHON, "-m", "bentoml", *words, "--host", "127.0.0.1", "--port", str(port)]


def pattern(bundle: Path, port: int) -> list[str]:
    """What Ray Serve's documentation shows."""
    words = ["--serve", "pattern", "--bundle", str(bundle), "--port", str(port)]
    return [sys.executable, str(HERE / "serving.py"), *words]


PYTHON = str(PLACE / "bin" / "python")
SCRIPTS = HERE / "contenders"
CONTENDERS = {
    "headrace": own(),
    "headrace-onnx": own(engine="onnx-fp32"),
    "headrace-openvino": own(engine="openvino-fp32"),
    "headrace-fast": own(engine="fast"),
    "litserve": script("on_litserve.py", "/predict"),
    "bentoml": Contender(bentoml, "/classify", {"texts": [TEXT]}),
    "fastapi": script("on_fastapi.py", "/"),
    "ray-serve": Contender(pattern, environment={"RAY_SERVE_ENABLE_HA_PROXY": "0"}),
}


def main() -> None:
    """Runs every round and keeps what came of it."""
    options = arguments()
    require_wrk()
    make_environment()
    from record import keep

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        os.environ["HEADRACE_HOME"] = str(Path(place) / "home")
        bundle = options.bundle or trained(Path(place))
        with Yardstick(bundle) as bare:
            rounds = [one_round(turn, options, bundle, Path(place), bare) for turn in range(options.rounds)]
    figures = medians(rounds)
    settings = {name: getattr(options, name) for name in ("rounds", "slices", "seconds")}
    settings |= {"text": TEXT, "load_before": load}
    versions = dict(line.split("==") for line in PINS.read_text().splitlines() if "==" in line)
    found = {"ratios": medians([ratios(one) for one in rounds]), "medians": figures, "rounds": rounds}
    keep("peers", {"settings": settings, "peers": versions, **found})


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    return parser.parse_args()


def make_environment() -> None:
    """``.venv-peers`` with exactly the pinned contenders; made once."""
    made = PLACE / "pins"
    if made.exists() and made.read_text() == PINS.read_text():
        return
    print("making .venv-peers", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "-q", "-r", str(PINS)], check=True)
    made.write_text(PINS.read_text())


def trained(place: Path) -> Path:
    """MiniLM fine-tuned on the sample of ``headrace new``: it knows its labels, and has rows to judge an engine by."""
    project = place / "project"
    subprocess.run([sys.executable, "-m", "headrace", "new", str(project)], cwd=ROOT, check=True, stdout=sys.stderr)
    command = [sys.executable, "-m", "headrace", "train", str(project / "recipe.yaml"), "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return Path(json.loads(done.stdout)["bundle"])


def one_round(turn: int, options: argparse.Namespace, bundle: Path, place: Path, bare: Yardstick) -> dict[str, Any]:
    """Every figure once, by contender and connections."""
    names = [name for name in CONTENDERS if name in options.only]
    start = turn % len(names)
    figures = {}
    for name in names[start:] + names[:start]:
        figures[name] = measured(CONTENDERS[name], options, bundle, place, bare)
        print(name, {count: figures[name][str(count)][RATE] for count in CONNECTIONS}, file=sys.stderr)
    return {name: figures[name] for name in names}


def measured(
    contender: Contender, options: argparse.Namespace, bundle: Path, place: Path, bare: Yardstick
) -> dict[str, Any]:
    """Starts one server, warms it, asks it with each number of connections, and ends it."""
    port = free_port()
    known = None if contender.path is None else f"http://127.0.0.1:{port}{contender.path}"
    environment = {"BUNDLE": str(bundle), "BENTOML_HOME": str(place / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}
    environment |= contender.environment
    with running(contender.command(bundle, port), environment, place / "log", known) as address:
        await_answer(address, contender.body)
        wrk(address, 8, WARM_SECONDS, [contender.body])
        slices = (options.slices, options.seconds, contender.body)
        figures: dict[str, Any] = {str(count): bare.beside(address, count, *slices) for count in CONNECTIONS}
        return figures | ({"engine": engine_of(address)} if contender.ours else {})


def await_answer(address: str, body: Mapping[str, Any], seconds: float = 300) -> None:
    """Returns when a question is answered with five labels, the likeliest first; nobody is measured who says less."""
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                (labels,) = json.load(answer)
                assert len(labels) == 5 and labels[0]["score"] >= labels[4]["score"], labels
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def engine_of(address: str) -> Any:
    """What computes in a server of ours, and the table by which it was chosen."""
    with urllib.request.urlopen(address, timeout=60) as told:
        return json.load(told)["engine"]


def ratios(figures: Mapping[str, Any]) -> dict[str, float]:
    """Requests a second of each way of ours over those of each other, within one round."""

    def pace(name: str, count: int) -> float:
        row = figures[name][str(count)]
        return float(row[RATE] / row["bare_texts_per_second"])

    ours = [name for name in figures if CONTENDERS[name].ours]
    return {
        f"{one}_over_{other}_{count}".replace("-", "_"): pace(one, count) / pace(other, count)
        for one in ours
        for other in figures
        if other not in ours
        for count in CONNECTIONS
    }


if __name__ == "__main__":
    main()
