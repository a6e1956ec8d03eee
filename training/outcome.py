"""What came of a run: measured next to its baselines, kept as a bundle, shown in a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml
from safetensors.torch import load_file

from cluster.progress import say
from cluster.storage import building, home, read_json, write_json
from training import outputs
from training.bundle import MOST_HELD_OUT, Bundle, write_bundle
from training.data.fuse import Fused
from training.encode import SPLITS, Encoded, located_rows
from training.evaluation.baselines import learned_from, measure
from training.evaluation.report import ReportData, write_report
from training.journal import Record, entries
from training.models import adapter
from training.recipe import Recipe
from training.tasks.task import Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASELINES = 6
"""Raised whenever the same data and base would give other measurements of the baselines."""


def finish(
    recipe: Recipe,
    public: dict[str, Any],
    fused: Fused,
    encoded: Encoded,
    folder: Path,
    bundle_folder: Path,
) -> dict[str, float]:
    """Measures what was trained next to its baselines and writes the bundle; returns the metrics."""
    task = encoded.task
    if recipe.model.bundle == "adapter":
        weights = load_file(folder / "model" / adapter.WEIGHTS)
        model = adapter.put_together(task, encoded.base, recipe.model.adapt, weights).eval()
    else:
        model = task.open(folder / "model")
    temperature = calibrate(task, model, encoded, folder)
    metrics = {
        f"{name}/{metric}": value
        for name in SPLITS[1:]
        if len(encoded.split(name))
        for metric, value in task.metrics(said(folder, name, temperature), encoded.split(name).targets).items()
    }
    baselines = measured_baselines(recipe, fused, encoded)
    data = {
        "rows": sum(len(encoded.split(name)) for name in SPLITS),
        "splits": {name: len(encoded.split(name)) for name in SPLITS},
        "fingerprint": fused.fingerprint,
        "baselines_learned_from": baselines["learned_from"],
        "headline": "/".join(judged_by(encoded)),
        "direction": direction(task),
    }
    with building(bundle_folder) as unfinished:
        write_bundle(
            unfinished,
            model=model,
            task=task.settle(model),
            name=recipe.name,
            recipe=public,
            metrics=metrics,
            baselines=baselines["metrics"],
            data=data,
            base=adapter.describe(recipe, encoded.base) if recipe.model.bundle == "adapter" else None,
            held_out=encoded.held_out(MOST_HELD_OUT),
            temperature=temperature,
        )
    return metrics


def calibrate(task: Task, model: "PreTrainedModel", encoded: Encoded, folder: Path) -> float:
    """Has the model say probabilities that are right on average of the validation rows; returns what it is cooled by.

    These rows chose the epoch that is kept, so that what they tell is a little rosy; the test rows stay untouched.
    """
    rows = encoded.split("validation")
    temperature = task.temperature(said(folder, "validation"), rows.targets) if len(rows) else 1.0
    if temperature != 1.0:
        task.cool(model, temperature)
    return temperature


def said(folder: Path, split: str, temperature: float = 1.0) -> Outputs:
    """What the run's model said of a split's rows, divided by a temperature."""
    raw = outputs.load(folder / "outputs" / f"{split}.safetensors")
    return raw if temperature == 1.0 else [one / np.float32(temperature) for one in raw]


def write(
    report: Path, bundle: Bundle, version: int, recipe: Recipe, fused: Fused, encoded: Encoded, folder: Path
) -> None:
    """Writes the HTML report of a run."""
    data = report_data(bundle, version, recipe, fused, encoded, folder)
    write_report(report, data, encoded.task.report_sections)


def report_data(
    bundle: Bundle, version: int, recipe: Recipe, fused: Fused, encoded: Encoded, folder: Path
) -> ReportData:
    """What the report shows of a run: the test split's answers, or the validation split's where there is no test."""
    judged, headline = judged_by(encoded)
    history = entries(folder / "metrics.jsonl")
    rows = asked(recipe, fused, encoded)[judged].to_pylist()
    return ReportData(
        name=recipe.name,
        description=bundle.info["recipe"].get("description", ""),  # as written: the recipe's may hold a secret
        version=version,
        created=bundle.info["created"],
        task=bundle.info["task"],
        metrics=bundle.info["metrics"],
        baselines=bundle.info["baselines"],
        judged=judged,
        headline=headline,
        direction=direction(encoded.task),
        titles={name: baseline.title for name, baseline in encoded.task.baselines.items()},
        labels=encoded.task.labels,
        outputs=said(folder, judged, bundle.info["temperature"]),
        temperature=bundle.info["temperature"],
        targets=encoded.split(judged).targets,
        texts=[encoded.task.text(row) for row in rows],
        shown=lambda index: encoded.task.shown(encoded.split(judged).examples([index])[0]),
        importance=lambda: bundle.task().importance(bundle.model(), rows),
        history=[record | {"validation": of_validation(record)} for record in history],
        data=fused.report,
        learned_from=bundle.info["data"]["baselines_learned_from"],
        recipe=yaml.safe_dump(bundle.info["recipe"], sort_keys=False, allow_unicode=True),
        versions=bundle.info["versions"],
        seconds=sum(record["seconds"] for record in history),
        memory=max((record.get("memory", 0) for record in history), default=0),
    )


def judged_by(encoded: Encoded) -> tuple[str, str]:
    """The split and the metric by which a model is judged in the end."""
    split = "test" if len(encoded.split("test")) else "validation"
    return split, encoded.task.final_headline or encoded.task.headline


def direction(task: Task) -> str:
    """Whether more (``max``) or less (``min``) of that metric is better."""
    return (task.metrics_known | task.metrics_of_answers)[task.final_headline or task.headline]


def measured_baselines(recipe: Recipe, fused: Fused, encoded: Encoded) -> dict[str, Any]:
    """The baselines' ``metrics`` on the same splits, and how many training rows those of texts ``learned_from``.

    They are kept, since they depend on the data and the base alone.
    """
    kept = home() / "baselines" / f"{encoded.fingerprint}-{BASELINES}.json"
    if not kept.exists():
        tables = asked(recipe, fused, encoded)
        rows, seen = tables["train"].num_rows, len(learned_from(encoded.task, tables["train"]))
        say("measuring the baselines" + (f"; those of texts learn from {seen:,} of {rows:,} rows" * (seen < rows)))
        write_json(kept, {"learned_from": seen, "metrics": measure(encoded.task, encoded.base, tables)})
    measured: dict[str, Any] = read_json(kept)
    return measured


def asked(recipe: Recipe, fused: Fused, encoded: Encoded) -> Mapping[str, pa.Table]:
    """What the model is asked about the rows of each split, row by row what it has examples of."""
    return encoded.kept(encoded.task.questions(located_rows(recipe, fused.tables())))


def of_validation(record: Record) -> dict[str, float]:
    """The validation metrics of a record; only those of an epoch's end have any."""
    return {name.removeprefix("validation/"): value for name, value in record.items() if name.startswith("validation/")}
