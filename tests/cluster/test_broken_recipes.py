"""Broken recipes and the exact words a person reads for each."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cluster.errors import RecipeError
from cluster.settings import Strict, read
from headrace import load_recipe, recipe_model
from serving.recipe import Hosting

GOOD = """\
name: support-intent
data:
  sources:
    tickets: {read: data/tickets.jsonl}
model:
  task: text-classification
  base: sentence-transformers/all-MiniLM-L6-v2
  inputs: {text: text}
  target: intent
train:
  epochs: 3
"""

# What is wrong: (what is replaced, by what, the message).
BROKEN = {
    "a key is misspelt": ("epochs", "epohcs", "recipe.yaml:11 train.epohcs: unknown key, did you mean 'epochs'?"),
    "a tab indents": (
        "  epochs: 3",
        "\tepochs: 3",
        "recipe.yaml:11: not valid YAML: found character '\\t' that cannot start any token",
    ),
    "a key stands twice": (
        "epochs: 3",
        "epochs: 3\n  epochs: 4",
        "recipe.yaml:12 train.epochs: stands twice, first at recipe.yaml:11; keep one",
    ),
    "a word where a number belongs": (
        "epochs: 3",
        "epochs: many",
        "recipe.yaml:11 train.epochs: input should be a valid integer, unable to parse string as an integer, "
        "not 'many'",
    ),
    "a key is missing": ("  task: text-classification\n", "", "recipe.yaml:5 model.task: missing"),
    "a key that the task needs is missing": (
        "  target: intent\n",
        "",
        "recipe.yaml:5 model.target: missing; text-classification needs the column that holds what is to be learned",
    ),
    "an option that the task does not know": (
        "target: intent",
        "target: intent\n  options: {problm: regression}",
        "recipe.yaml:10 model.options.problm: unknown key, did you mean 'problem'?",
    ),
    "a value that an option cannot have": (
        "target: intent",
        "target: intent\n  options: {problem: guess}",
        "recipe.yaml:10 model.options.problem: input should be 'single-label', 'multi-label', 'ordinal' or "
        "'regression', not 'guess'",
    ),
    "it is a list": (GOOD, "- tickets\n", "recipe.yaml:1: a recipe is a mapping of keys to values"),
    "a part that comes later": (
        "epochs: 3",
        "epochs: 3\ntune:\n  search: {train.warmup: {uniform: [0, 0.1]}}\n  scheduler: pbt",
        "recipe.yaml:14 tune.scheduler: pbt is not available in this version; use asha or none",
    ),
    "a source of two kinds": (
        "{read: data/tickets.jsonl}",
        "{read: a.csv, hub: x/y}",
        "recipe.yaml:4 data.sources.tickets: a source is one of read, database, hub or files; "
        "this one has read and hub",
    ),
    "several sources and nothing that joins them": (
        "{read: data/tickets.jsonl}",
        "{read: a.csv}\n    more: {read: b.csv}",
        "recipe.yaml:2 data: several sources (tickets, more) need a `fuse` statement that joins them",
    ),
    "nothing left to train on": (
        "model:",
        "  split: {validation: 0.5, test: 0.6}\nmodel:",
        "recipe.yaml:5 data.split: validation and test take 1.1 of the rows and leave none to train on",
    ),
    "a split from a source that is not there": (
        "model:",
        "  split: {test: {source: official}}\nmodel:",
        "recipe.yaml:2 data: split names the source 'official'; there is tickets",
    ),
    "a variable that is not set": (
        "{read: data/tickets.jsonl}",
        '{database: "postgresql://me:${env:NOT_SET_HERE}@host/db", query: SELECT 1}',
        "recipe.yaml:4 data.sources.tickets.database: environment variable NOT_SET_HERE is not set; "
        "export NOT_SET_HERE=…",
    ),
    "a name that makes no address": (
        "support-intent",
        "Support Intent",
        "recipe.yaml:1 name: lower-case letters, digits, '.', '_' and '-', at most 64, not 'Support Intent'",
    ),
    "a range that cannot be logarithmic": (
        "epochs: 3",
        "epochs: 3\ntune:\n  search:\n    train.learning_rate: {log_uniform: [0, 1]}",
        "recipe.yaml:14 tune.search.train.learning_rate: log_uniform needs a low end above 0, not 0",
    ),
    "a budget that a parted model cannot try out": (
        "epochs: 3",
        "epochs: 3\n  strategy: fsdp\n  tokens_per_device: auto",
        "recipe.yaml:13 train.tokens_per_device: auto cannot try out a model that is parted (fsdp); give a number",
    ),
    "a source that is only a file's name": (
        "{read: data/tickets.jsonl}",
        "data/tickets.jsonl",
        "recipe.yaml:4 data.sources.tickets: a mapping of keys to values is needed, as in {read: data/tickets.jsonl}, "
        "not 'data/tickets.jsonl'",
    ),
    "sources that are only a file's name": (
        "\n    tickets: {read: data/tickets.jsonl}",
        " data/tickets.jsonl",
        "recipe.yaml:3 data.sources: a mapping of keys to values is needed, as in {NAME: {read: data/tickets.jsonl}}, "
        "not 'data/tickets.jsonl'",
    ),
    "a range that is only a list": (
        "epochs: 3",
        "epochs: 3\ntune:\n  search: {train.batch_size: [16, 32]}",
        "recipe.yaml:13 tune.search.train.batch_size: a mapping of keys to values is needed, as in "
        "{choice: [16, 32]}, not [16, 32]",
    ),
    "the same, each part by itself": (
        "epochs: 3",
        "epochs: 3\ntune:\n  search:\n    train:\n      batch_size: [16, 32]",
        "recipe.yaml:15 tune.search.train.batch_size: a mapping of keys to values is needed, as in "
        "{choice: [16, 32]}, not [16, 32]",
    ),
    "a key of one member of a union": (
        "target: intent",
        "target: intent\n  adapt: {lora: {rank: 8}}",
        "recipe.yaml:10 model.adapt.lora.rank: unknown key, did you mean 'r'? Write it as in {r: 8, targets: [query]}",
    ),
    "what one member of a union holds": (
        "target: intent",
        "target: intent\n  adapt: {lora: 8}",
        "recipe.yaml:10 model.adapt.lora: a mapping of keys to values is needed, as in {r: 8, targets: [query]}, not 8",
    ),
    "a bound of one member of a union": (
        "target: intent",
        "target: intent\n  adapt: {lora: {r: 0}}",
        "recipe.yaml:10 model.adapt.lora.r: input should be greater than or equal to 1, not 0",
    ),
    "one key is misspelt and therefore another missing": (
        "epochs: 3",
        "epochs: 3\n  workers: {mx: 1}",
        "recipe.yaml:12 train.workers.mx: unknown key, did you mean 'max'? Write it as in {min: 1, max: 4}",
    ),
    "a key of a union's only mapping": (
        "  base: sentence-transformers/all-MiniLM-L6-v2\n",
        "  base: {new: {type: bert}, tokeniser: train}\n",
        "recipe.yaml:7 model.base.tokeniser: unknown key, did you mean 'tokenizer'? Write it as in "
        "{new: {type: bert, hidden_size: 128}}",
    ),
    "what no member of a union takes": (
        "base: sentence-transformers/all-MiniLM-L6-v2",
        "base: [a]",
        "recipe.yaml:7 model.base: input should be a valid string, or a mapping, as in "
        "{new: {type: bert, hidden_size: 128}}, not ['a']",
    ),
    "a number or a word": (
        "epochs: 3",
        "epochs: 3\n  tokens_per_device: many",
        "recipe.yaml:12 train.tokens_per_device: input should be a valid integer, unable to parse string as an "
        "integer, or 'auto', not 'many'",
    ),
    "a number of a union below its bound": (
        "epochs: 3",
        "epochs: 3\n  tokens_per_device: 0",
        "recipe.yaml:12 train.tokens_per_device: input should be greater than or equal to 1, not 0",
    ),
    "a split from something else": (
        "model:",
        "  split: {test: {sorce: official}}\nmodel:",
        "recipe.yaml:5 data.split.test.sorce: unknown key, did you mean 'source'? Write it as in {source: holdout}",
    ),
    "a word of two lists": (
        "epochs: 3",
        "epochs: 3\nserve:\n  engine: torch",
        "recipe.yaml:13 serve.engine: input should be 'fast', or 'torch-fp32', 'torch-bf16', 'torch-int8', "
        "'onnx-fp32', 'onnx-int8', 'openvino-fp32' or 'openvino-bf16', not 'torch'",
    ),
    "a number where a text belongs": (
        "name: support-intent",
        "name: 2024",
        "recipe.yaml:1 name: input should be a valid string, not 2024; put it in quotes",
    ),
    "weights that stay, by what is no regular expression": (
        "target: intent",
        "target: intent\n  adapt: {freeze: [layer.0, '(']}",
        "recipe.yaml:10 model.adapt.freeze: '(' is no regular expression (missing ), unterminated subpattern at "
        "position 0); put a \\ before a sign that stands for itself",
    ),
    "layers by what is no regular expression": (
        "target: intent",
        "target: intent\n  adapt: {lora: {targets: '['}}",
        "recipe.yaml:10 model.adapt.lora.targets: '[' is no regular expression (unterminated character set at "
        "position 0); put a \\ before a sign that stands for itself",
    ),
    "a regular expression that repeats too often": (
        "target: intent",
        "target: intent\n  adapt: {freeze: 'a{99999999999}'}",
        "recipe.yaml:10 model.adapt.freeze: 'a{99999999999}' is no regular expression (the repetition number is too "
        "large); put a \\ before a sign that stands for itself",
    ),
    "fewer replicas than the fewest": (
        "epochs: 3",
        "epochs: 3\nserve:\n  replicas: {min: 3, max: 1}",
        "recipe.yaml:13 serve.replicas: max (1) is below min (3)",
    ),
}


@pytest.mark.parametrize(("before", "after", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_each_broken_recipe_says_where_and_what(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in GOOD
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert raised.value.problems == [message]
    assert raised.value.exit_code == 2


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = GOOD.replace("epochs: 3", "epochs: 0\n  batchsize: 8\n  workers: none").replace("target", "tagret")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert set(raised.value.problems) == {
        "recipe.yaml:5 model.target: missing; text-classification needs the column that holds what is to be learned",
        "recipe.yaml:9 model.tagret: unknown key, did you mean 'target'?",
        "recipe.yaml:11 train.epochs: input should be greater than or equal to 1, not 0",
        "recipe.yaml:12 train.batchsize: unknown key, did you mean 'batch_size'?",
        "recipe.yaml:13 train.workers: a whole number from 1 up, or auto, not 'none'",
    }


def test_two_mistakes_in_one_member_of_a_union_are_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("epochs: 3", "workers: {mn: 1}"), encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert raised.value.problems == [
        "recipe.yaml:11 train.workers.max: missing; write it as in {min: 1, max: 4}",
        "recipe.yaml:11 train.workers.mn: unknown key, did you mean 'min'? Write it as in {min: 1, max: 4}",
    ]


def test_an_example_is_one_that_its_section_takes() -> None:
    waiting: list[Any] = [recipe_model(), Hosting]
    seen = set()
    while waiting:
        section = waiting.pop()
        waiting += [one for field in section.model_fields.values() for one in models_in(field.annotation)]
        if section.example:
            section.model_validate(yaml.safe_load(section.example))
            seen.add(section.__name__)
    assert {"Source", "Range", "Lora", "Freeze", "NewBase", "Elastic", "HeldOut"} <= seen


def models_in(annotation: Any) -> list[Any]:
    found = [annotation] if isinstance(annotation, type) and issubclass(annotation, Strict) else []
    return found + [model for inner in get_args(annotation) for model in models_in(inner)]


def test_the_recipe_that_they_break_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert read(path).values["train"] == {"epochs": 3}
    load_recipe(path)
