"""Which engine computes a model: the fastest one that says the same, found by measuring and kept for the next start.

Every candidate answers the rows that training held back. One is taken only where its answers agree with PyTorch's in
fp32 and it is clearly faster here, with the threads that the server has.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cluster.errors import UserError
from cluster.machine import processor
from cluster.progress import say
from cluster.storage import fingerprint, only_one, read_json, write_json
from serving.agreement import agreement
from serving.engines import onnx, openvino, pytorch
from serving.engines.engine import Forward, Make, Subject, UnavailableError, checked
from serving.engines.size import own_bytes
from serving.recipe import EngineName, Wanted
from training.tasks.task import Batch, Outputs

FORMAT = 3
"""Raised whenever the same model on the same machine would be measured, or written as a graph, in another way."""

ENGINES: Mapping[EngineName, Make] = {
    "torch-fp32": pytorch.fp32,
    "torch-bf16": pytorch.bf16,
    "torch-int8": pytorch.int8,
    "onnx-fp32": onnx.fp32,
    "onnx-int8": onnx.int8,
    "openvino-fp32": openvino.fp32,
    "openvino-bf16": openvino.bf16,
}
REFERENCE: EngineName = "torch-fp32"

LEAST_AGREEMENT = 0.995
LEAST_GAIN = 1.15
"""Times as fast as the reference; less is not worth other roundings."""

ROUNDS = 5
MOST_SECONDS = 10.0
"""Of the reference in all rounds; a slow model is measured on fewer batches."""

ALONE = 4
"""Rows that are also asked one by one, since some graphs take a batch of one for something else."""

LIBRARIES = ("torch", "transformers", "onnxruntime", "openvino")
TABLE = "table.json"


@dataclass(frozen=True)
class Choice:
    """The engine of a model.

    Attributes:
        name: of the engine.
        forward: computes.
        table: a line for each candidate: ``engine``, ``agreement`` and ``speed`` (times the reference's), or why it was
            ``unavailable``; empty where nothing was measured.
        bytes: what it holds in memory beside the model.
    """

    name: EngineName
    forward: Forward
    table: Sequence[Mapping[str, Any]] = ()
    bytes: int = 0


def choose(wanted: Wanted, subject: Subject, batches: Sequence[Sequence[int]], identity: Sequence[str]) -> Choice:
    """The engine that a recipe wants: one by its name, or ``fast``.

    Args:
        subject: its folder is where tables and graphs are kept, each below a name of its own.
        batches: places of the subject's examples, as a server would batch them.
        identity: what identifies the model and how it is asked.

    Raises:
        UserError: the one that is named cannot compute this model here.
    """
    if wanted == REFERENCE or (wanted == "fast" and not subject.examples):
        return _made(REFERENCE, subject)  # where no row was held back there is nothing to judge another one by
    if wanted != "fast":
        folder = subject.folder / fingerprint(FORMAT, *identity)
        with only_one(folder, wait=True):
            return _made(wanted, _kept_in(folder, subject))
    libraries = [_version(name) for name in LIBRARIES]
    threads, device = torch.get_num_threads(), str(subject.device)
    folder = subject.folder / fingerprint(FORMAT, list(identity), libraries, processor(), threads, device)
    subject = _kept_in(folder, subject)
    with only_one(folder, wait=True):
        if not (folder / TABLE).exists():
            say("measuring which engine computes the model fastest here; the next start knows")
            write_json(folder / TABLE, _measured(subject, batches))
        table = read_json(folder / TABLE)
        return _made(best_of(table), subject, table)


def _made(name: EngineName, subject: Subject, table: Sequence[Mapping[str, Any]] = ()) -> Choice:
    try:
        return Choice(name, checked(ENGINES[name](subject)), table, own_bytes(name, subject))
    except UnavailableError as error:
        raise UserError(f"serve.engine: {name} cannot compute this model here: {error}") from None


def best_of(table: Sequence[Mapping[str, Any]]) -> EngineName:
    """The fastest of those that agree and are worth it; the reference where there is none."""
    able = [line for line in table if line.get("agreement", 0) >= LEAST_AGREEMENT and line["speed"] >= LEAST_GAIN]
    return max(able, key=lambda line: line["speed"])["engine"] if able else REFERENCE


def _measured(subject: Subject, batches: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """A line for each engine: they take turns, so that whatever else the machine does slows all of them."""
    made: dict[EngineName, Forward] = {}
    lines: dict[EngineName, dict[str, Any]] = {}
    answers: dict[EngineName, list[Any]] = {}
    for name, make in ENGINES.items():
        try:
            forward = checked(make(subject))
            answers[name] = _answers(forward, subject, batches)
            made[name] = forward
        except UnavailableError as error:
            lines[name] = {"engine": name, "unavailable": str(error)}
        except Exception as error:
            if name == REFERENCE:
                raise
            lines[name] = {"engine": name, "unavailable": f"it fails ({type(error).__name__})"}
    collated = [subject.task.collate([subject.examples[place] for place in batch]) for batch in batches]
    seconds: dict[EngineName, list[float]] = {name: [] for name in made}
    few = _bearable(made[REFERENCE], collated)
    for _ in range(ROUNDS):
        for name, forward in made.items():
            seconds[name].append(_seconds(forward, few))
    for name in made:
        rounds = zip(seconds[REFERENCE], seconds[name], strict=True)
        lines[name] = {
            "engine": name,
            "agreement": round(agreement(answers[REFERENCE], answers[name]), 4),
            "speed": round(statistics.median(theirs / ours for theirs, ours in rounds), 3),
        }
    return [lines[name] for name in ENGINES]


def _answers(forward: Forward, subject: Subject, batches: Sequence[Sequence[int]]) -> list[Any]:
    """The answers to all examples in batches, and to the first of each of some batches alone."""
    task, answers = subject.task, []
    for places in [*batches, *([batch[0]] for batch in batches[:ALONE])]:
        asked = [subject.examples[place] for place in places]
        outputs: Outputs = task.keep(forward(task.collate(asked)), asked)
        answers += task.decode(outputs, asked, {})
    return answers


def _bearable(forward: Forward, batches: Sequence[Batch]) -> Sequence[Batch]:
    """As many of the batches as the reference computes in the time that a round may take."""
    started = time.perf_counter()
    for count, batch in enumerate(batches, 1):
        forward(batch)
        if time.perf_counter() - started > MOST_SECONDS / ROUNDS:
            return batches[:count]
    return batches


def _seconds(forward: Forward, batches: Sequence[Batch]) -> float:
    started = time.perf_counter()
    for batch in batches:
        forward(batch)
    return time.perf_counter() - started


def _kept_in(folder: Path, subject: Subject) -> Subject:
    folder.mkdir(parents=True, exist_ok=True)
    return replace(subject, folder=folder)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
