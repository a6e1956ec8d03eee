"""What the loop is worth for each kind of task: rows a second, and what was learned, against the trainer of its field.

    python examples/prepare.py FOLDER && python benchmarks/tasks.py [--rows 1600] [--rounds 3] [--whole] [wnut17 …]

Every contender trains one epoch on the first rows of an example's training split, from one base with one new head, with
the same batch size, learning rates, schedule and fp32, on all cores, in a process of its own; the rounds take turns and
figures are medians. Theirs is Hugging Face's Trainer with the collator that its documentation names for the task, and
sentence-transformers' trainer for pairs (`pip install sentence-transformers`). Both are measured by the same metric on
the same rows of the test split, by our evaluation. ``--whole`` instead trains once on all rows, for as many epochs as
the recipe says, and compares what was learned. Writes benchmarks/results/tasks.json, or tasks-whole.json, in which the
examples that are not named keep their lines.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

CONTENDERS = ("headrace", "theirs")
NOT_LEARNED = -100


def main() -> None:
    """Takes turns between the contenders, example after example; or is one of them where the parent asks for it."""
    options = arguments()
    if options.one:
        print(json.dumps(contend(options)))
        return
    from record import keep_line

    for name in options.names or THEIRS:
        with tempfile.TemporaryDirectory() as home:  # what is fused and encoded once is there for all
            os.environ["HEADRACE_HOME"] = home
            rounds = [{one: child(one, name, options) for one in CONTENDERS} for _ in range(options.rounds)]
        ours, theirs = (rounds[0][one] for one in CONTENDERS)
        line = {"example": name, "task": ours["task"], "against": THEIRS[name][0], "rows": ours["rows"]}
        if options.whole:
            learned = {"headrace": round(ours["quality"], 4), "theirs": round(theirs["quality"], 4)}
            keep_line("tasks-whole", line | {"epochs": ours["epochs"], "metric": ours["metric"]} | learned, THEIRS)
        else:
            keep_line("tasks", line | pace(rounds) | {"padding": round(ours["padding"], 4)}, THEIRS)


def pace(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times the rows a second there were: the median of the rounds' own ratios, and these."""
    ratios = [round(one["headrace"]["rows_per_second"] / one["theirs"]["rows_per_second"], 3) for one in rounds]
    return {"times the rows a second": statistics.median(ratios), "single rounds": ", ".join(map(str, ratios))}


def arguments() -> argparse.Namespace:
    """The command line; --one is for the parent's own children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--one", choices=CONTENDERS)
    options = parser.parse_args()
    if options.whole:
        options.rows, options.rounds = 10**9, 1
    return options


def child(contender: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contender in a fresh process, so that none profits from what another warmed."""
    command = [sys.executable, __file__, name, "--one", contender, "--rows", str(options.rows)]
    command += ["--whole"] if options.whole else []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    print(name, contender, result, file=sys.stderr)
    return result


def contend(options: argparse.Namespace) -> dict[str, Any]:
    """Trains as one contender does and measures the time from the first step to the last; then what was learned."""
    import torch

    from training.loop import make_trainee, predict, train

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    (name,) = options.names
    with tempfile.TemporaryDirectory() as place:
        encoded, recipe, lengths = some_rows(name, options)
        trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, torch.device("cpu"))
        rows = encoded.split("train")
        started = time.perf_counter()
        if options.one == "headrace":
            for _ in train(trainee, encoded):
                pass
            seconds = time.perf_counter() - started
        else:
            seconds = THEIRS[name][1](trainee, encoded, place)
        test = encoded.split("test")
        metric = encoded.task.headline
        quality = encoded.task.metrics(predict(trainee, test), test.targets)[metric]
    return {
        "task": encoded.task.name,
        "rows": len(rows),
        "epochs": recipe.train.epochs,
        "rows_per_second": len(rows) * recipe.train.epochs / seconds,
        "padding": padding(lengths, recipe.train),
        "metric": metric,
        "quality": quality,
    }


class First:
    """The first rows of a split, read as the whole of it is."""

    def __init__(self, split: Any, most: int) -> None:
        self.lengths, self.targets, self.examples = split.lengths[:most], split.targets[:most], split.examples

    def __len__(self) -> int:
        return len(self.lengths)


def some_rows(name: str, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """An example's recipe, its encoded data, and the lengths of all that there is to train on.

    Of the data the first rows of training are kept, and nothing to validate on.
    """
    import headrace
    from training.data.fuse import fuse
    from training.encode import encode

    words = ["train.precision=fp32", "train.early_stopping=null", *([] if options.whole else ["train.epochs=1"])]
    recipe, _ = headrace.load_recipe(ROOT / "examples" / f"{name}.yaml", words)
    encoded = encode(recipe, fuse(recipe))
    splits = {
        "train": First(encoded.split("train"), options.rows),
        "validation": First(encoded.split("validation"), 0),
        "test": encoded.split("test"),
    }
    some = SimpleNamespace(task=encoded.task, base=encoded.base, split=splits.__getitem__)
    return some, recipe, encoded.split("train").lengths


def padding(lengths: Any, options: Any) -> float:
    """The share of a whole epoch's tokens that are padding."""
    from training.batches import epoch_batches

    batches = epoch_batches(lengths, options.batch_size, options.seed, 0)
    return 1 - float(lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches))


# --- theirs -----------------------------------------------------------------------------------------------------------


def with_trainer(trainee: Any, encoded: Any, place: str, example: Callable[[Any], Any], collator: Any) -> float:
    """Hugging Face's Trainer over what our tokenizer read; returns the seconds that it trained."""
    import datasets
    import transformers

    options, rows = trainee.options, encoded.split("train")
    table = datasets.Dataset.from_list([example(one) for one in rows.examples(range(len(rows)))])
    settings = transformers.TrainingArguments(
        output_dir=place,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=options.seed,
        max_grad_norm=options.clip_norm,
    )
    contender = transformers.Trainer(
        model=trainee.model,
        args=settings,
        train_dataset=table,
        data_collator=collator,
        optimizers=(trainee.optimizer, falling(trainee, len(rows))),
    )
    started = time.perf_counter()
    contender.train()
    return time.perf_counter() - started


def falling(trainee: Any, rows: int) -> Any:
    """Our learning rates as a scheduler of torch, so that the contenders differ in their loops alone."""
    import math

    import torch

    from training.optimizer import schedule

    steps = math.ceil(rows / trainee.options.batch_size) * trainee.options.epochs
    for group in trainee.optimizer.param_groups:
        group["lr"] = group["peak"]
    return torch.optim.lr_scheduler.LambdaLR(
        trainee.optimizer, lambda step: schedule(min(step, steps - 1), steps, trainee.options)
    )


def classify(trainee: Any, encoded: Any, place: str) -> float:
    """One label for each text."""
    import transformers

    collator = transformers.DataCollatorWithPadding(encoded.task.reader.tokenizer)
    return with_trainer(
        trainee, encoded, place, lambda one: {"input_ids": one["input_ids"], "labels": one["target"]}, collator
    )


def tag(trainee: Any, encoded: Any, place: str) -> float:
    """A tag for each token; the texts are short enough for one window."""
    import transformers

    task = encoded.task

    def example(one: Any) -> Any:
        batch = task.collate([one])
        tags = batch["targets"][0].tolist()
        return {"input_ids": batch["input_ids"][0, 0].tolist(), "labels": [NOT_LEARNED, *tags, NOT_LEARNED]}

    collator = transformers.DataCollatorForTokenClassification(task.reader.tokenizer)
    return with_trainer(trainee, encoded, place, example, collator)


def fill(trainee: Any, encoded: Any, place: str) -> float:
    """Hidden tokens."""
    import transformers

    collator = transformers.DataCollatorForLanguageModeling(encoded.task.reader.tokenizer, mlm_probability=0.15)
    return with_trainer(trainee, encoded, place, lambda one: {"input_ids": one["input_ids"]}, collator)


def write(trainee: Any, encoded: Any, place: str) -> float:
    """A prompt and an answer, of which the answer is learned."""
    import transformers

    def example(one: Any) -> Any:
        prompt, answer = list(one["input_ids"]), list(one["target"]["ids"])
        return {"input_ids": prompt + answer, "labels": [NOT_LEARNED] * len(prompt) + answer}

    collator = transformers.DataCollatorForSeq2Seq(encoded.task.tokenizer)
    return with_trainer(trainee, encoded, place, example, collator)


def rewrite(trainee: Any, encoded: Any, place: str) -> float:
    """A text that is read and one that is written."""
    import transformers

    collator = transformers.DataCollatorForSeq2Seq(encoded.task.tokenizer, model=trainee.model)
    return with_trainer(
        trainee, encoded, place, lambda one: {"input_ids": one["input_ids"], "labels": one["target"]["ids"]}, collator
    )


def see(trainee: Any, encoded: Any, place: str) -> float:
    """Pictures, which have one length; theirs are finished numbers from the start."""
    import transformers

    pictures = encoded.task.pictures

    def example(one: Any) -> Any:
        return {"pixel_values": pictures.normal(pictures.stack([one["pixels"]]))[0].numpy(), "labels": one["target"]}

    return with_trainer(trainee, encoded, place, example, transformers.DefaultDataCollator())


def pair(trainee: Any, encoded: Any, place: str) -> float:
    """sentence-transformers' trainer with its multiple-negatives ranking loss, on the texts of the same pairs."""
    import datasets
    import sentence_transformers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    tokenizer, rows = encoded.task.pairs.query.tokenizer, encoded.split("train")
    examples = rows.examples(range(len(rows)))
    texts = {
        side: tokenizer.batch_decode([one["texts"][place] for one in examples], skip_special_tokens=True)
        for place, side in enumerate(("anchor", "positive"))
    }
    model = sentence_transformers.SentenceTransformer(str(encoded.base), device="cpu")
    settings = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=place,
        num_train_epochs=trainee.options.epochs,
        per_device_train_batch_size=trainee.options.batch_size,
        learning_rate=trainee.options.learning_rate,
        weight_decay=trainee.options.weight_decay,
        warmup_steps=trainee.options.warmup,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=trainee.options.seed,
    )
    contender = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(texts),
        loss=MultipleNegativesRankingLoss(model),
    )
    started = time.perf_counter()
    contender.train()
    seconds = time.perf_counter() - started
    trainee.model.load_state_dict(model[0].model.state_dict(), strict=False)
    return seconds


TRAINER = "Trainer"
THEIRS: dict[str, tuple[str, Callable[[Any, Any, str], float]]] = {
    "banking77": (TRAINER, classify),
    "hotel_reviews": (TRAINER, classify),
    "wnut17": (TRAINER, tag),
    "bitext_phrases": ("sentence-transformers", pair),
    "bitext_replies": (TRAINER, write),
    "bitext_intents": (TRAINER, rewrite),
    "bitext_reading": (TRAINER, fill),
    "digits": (TRAINER, see),
}

if __name__ == "__main__":
    main()
