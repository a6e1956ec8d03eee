"""What serving costs: requests a second through HTTP, against the bare forward pass and the documented Serve pattern.

    python benchmarks/serving.py [--rounds 3] [--slices 2] [--seconds 3] [--engine NAME]

One 20-token text a request, MiniLM with a classifier of 77 labels, one replica that computes on all cores, `wrk` on the
same machine. Each round starts every server anew and asks it with every number of connections, in slices between which
the bare forward pass is timed (`yardstick.py`); servers are compared through what each makes of the machine of its own
moments. Figures are medians over the rounds, the rounds themselves are kept. Writes benchmarks/results/serving.json.
With another engine than the default, headrace alone is asked, against the bare forward pass of that engine, and the
result is named after it. Needs `wrk` on the path.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from servers import LABELS, TEXT, announce, free_port, make_bundle, medians, require_wrk, running, wrk
from yardstick import Yardstick

DEFAULT = "torch-fp32"
CONNECTIONS = {"served": (1, 32, 128), "served-noop": (1, 32), "pattern": (1, 32, 128), "pattern-noop": (1, 32)}


def main() -> None:
    """Runs every server in turn, or one of them where the parent asks for it."""
    options = arguments()
    if options.serve:
        SERVERS[options.serve](options)
        return
    require_wrk()
    from record import keep

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bundle"
        make_bundle(folder)
        os.environ["HEADRACE_HOME"] = str(Path(place) / "home")
        with Yardstick(folder, options.engine) as bare:
            rounds = [one_round(folder, bare, options) for _ in range(options.rounds)]
    figures = medians(rounds)
    settings = {
        **{name: getattr(options, name) for name in ("rounds", "slices", "seconds")},
        "text": TEXT,
        "labels": LABELS,
        "load_before": load,
    }
    found = {"ratios": medians([ratios(one) for one in rounds]), "medians": figures, "rounds": rounds}
    name = "serving" if options.engine == DEFAULT else f"serving-{options.engine}"
    keep(name, {"settings": {**settings, "engine": options.engine}, **found})


def arguments() -> argparse.Namespace:
    """The command line; --serve, --bundle and --port are for the parent's own children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--engine", default=DEFAULT)
    parser.add_argument("--serve", choices=SERVERS)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--port", type=int)
    return parser.parse_args()


def one_round(folder: Path, bare: Yardstick, options: argparse.Namespace) -> dict[str, Any]:
    """Every figure once: requests a second and latencies by server and connections."""
    figures: dict[str, Any] = {}
    for kind in CONNECTIONS if options.engine == DEFAULT else ["served"]:
        figures[kind] = measured(kind, folder, bare, options)
        print(kind, {count: row["requests_per_second"] for count, row in figures[kind].items()}, file=sys.stderr)
    return figures


def measured(kind: str, folder: Path, bare: Yardstick, options: argparse.Namespace) -> dict[str, Any]:
    """Starts one server, warms it, asks it with each number of connections, and ends it."""
    environment = {"RAY_SERVE_ENABLE_HA_PROXY": "0"} if kind.startswith("pattern") else {}
    with running(child(kind, folder, free_port(), options.engine), environment, folder.parent / "log") as address:
        wrk(address, 8, 2)
        counts = CONNECTIONS[kind]
        return {str(count): bare.beside(address, count, options.slices, options.seconds) for count in counts}


def child(kind: str, folder: Path, port: int, engine: str) -> list[str]:
    """The command of this script as one server."""
    words = ["--serve", kind, "--bundle", str(folder), "--port", str(port), "--engine", engine]
    return [sys.executable, __file__, *words]


# --- the servers ------------------------------------------------------------------------------------------------------


def served(options: argparse.Namespace) -> None:
    """headrace itself."""
    from serving.host import serve
    from serving.recipe import Serve

    wanted = Serve.model_validate({"engine": options.engine})
    serve([str(options.bundle)], wanted, port=options.port, announce=announce("/models/bench"))


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


SERVERS = {"served": served, "served-noop": served_noop, "pattern": pattern, "pattern-noop": pattern_noop}


# --- the report -------------------------------------------------------------------------------------------------------


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """The numbers that the design asks for."""

    def pace(kind: str, connections: int) -> float:
        """Requests a second for each text a second of the bare pass in the same moments."""
        row = figures[kind][str(connections)]
        return float(row["requests_per_second"] / row["bare_texts_per_second"])

    alone = {
        "served_over_bare_32": pace("served", 32),
        "served_over_bare_128": pace("served", 128),
        "served_minus_bare_p50_ms_1": figures["served"]["1"]["minus_bare_p50_ms"],
    }
    if "pattern" not in figures:
        return alone
    return alone | {
        "served_over_pattern_1": pace("served", 1) / pace("pattern", 1),
        "served_over_pattern_32": pace("served", 32) / pace("pattern", 32),
        "served_over_pattern_128": pace("served", 128) / pace("pattern", 128),
        "noop_over_pattern_1": pace("served-noop", 1) / pace("pattern-noop", 1),
        "noop_over_pattern_32": pace("served-noop", 32) / pace("pattern-noop", 32),
    }


if __name__ == "__main__":
    main()
