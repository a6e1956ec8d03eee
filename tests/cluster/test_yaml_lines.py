"""YAML: what cannot be read, with its line; and what a merge leaves."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import RecipeError, UserError
from cluster.settings import Document, read

MALFORMED = {
    "a NUL": (
        "name: x\ndescription: a\0b\n",
        "recipe.yaml:2: the character U+0000 may not stand in a recipe; remove it",
    ),
    "a control character": (
        "name: x\n\ndescription: a\x1bb\n",
        "recipe.yaml:3: the character U+001B may not stand in a recipe; remove it",
    ),
    "an escaped NUL": (
        'name: x\ndescription: "a\\0b"\n',
        "recipe.yaml:2 description: holds the character U+0000, which cannot be stored; remove it",
    ),
    "half a character": (
        'name: x\ndescription: "\\ud83d"\n',
        "recipe.yaml:2 description: holds the character U+D83D, which cannot be stored; remove it",
    ),
    "a date that is none": (
        "name: x\ndescription: 2024-13-45\n",
        "recipe.yaml:2 description: '2024-13-45' is no date; put it in quotes if it is a text",
    ),
    "a date that is none, as a key": (
        "name: x\nmore:\n  2024-13-45: {read: 2024-13-46}\n",
        "recipe.yaml:3 more.2024-13-45.read: '2024-13-46' is no date; put it in quotes if it is a text",
    ),
    "a word that is tagged as a number": (
        "train:\n  epochs: !!int abc\n",
        "recipe.yaml:2 train.epochs: 'abc' is no whole number; put it in quotes if it is a text",
    ),
    "nothing that is tagged as a number": (
        "train:\n  epochs: !!int ''\n",
        "recipe.yaml:2 train.epochs: '' is no whole number; put it in quotes if it is a text",
    ),
    "a word that is tagged as a truth": (
        "train:\n  compile: !!bool abc\n",
        "recipe.yaml:2 train.compile: 'abc' is no true or false; put it in quotes if it is a text",
    ),
    "a word that is tagged as a date": (
        "description: !!timestamp abc\n",
        "recipe.yaml:1 description: 'abc' is no date; put it in quotes if it is a text",
    ),
    "a number of five thousand digits": (
        f"train:\n  epochs: {'9' * 5000}\n",
        f"recipe.yaml:2 train.epochs: '{'9' * 299}… is no whole number; put it in quotes if it is a text",
    ),
    "the same in hexadecimal": (
        f"train:\n  epochs: 0x{'f' * 5000}\n",
        f"recipe.yaml:2 train.epochs: '0x{'f' * 297}… is no whole number; put it in quotes if it is a text",
    ),
    "a list within itself": (
        "name: x\nmore: &a\n- *a\n",
        "recipe.yaml:2 more.0: stands within itself; an alias may only name what is complete before it",
    ),
    "a mapping within itself": (
        "name: x\nmore: &a {b: {c: *a}}\n",
        "recipe.yaml:2 more.b.c: stands within itself; an alias may only name what is complete before it",
    ),
    "a merge of itself": (
        "name: x\nmore: &a\n  <<: *a\n",
        "recipe.yaml:3 more.<<: stands within itself; an alias may only name what is complete before it",
    ),
    "a merge of what is no mapping": (
        "name: x\nmore:\n  <<: [1]\n",
        "recipe.yaml:3 more.<<: merges mappings of keys to values, and this is none",
    ),
    "brackets without end": ("name: x\nmore: " + "[" * 1200, "recipe.yaml:2: nested too deeply to be read"),
    "a tag of Python": (
        "name: x\nmore: !!python/name:os.system\n",
        "recipe.yaml:2: not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/name:os.system'",
    ),
}

OVERRIDES = {
    "description=2024-13-45": "command line description: '2024-13-45' is no date; put it in quotes if it is a text",
    "train.epochs=!!int abc": "command line train.epochs: 'abc' is no whole number; put it in quotes if it is a text",
    "train={epochs: 2024-13-45}": (
        "command line train.epochs: '2024-13-45' is no date; put it in quotes if it is a text"
    ),
    "train.x=&a [*a]": (
        "command line train.x.0: stands within itself; an alias may only name what is complete before it"
    ),
    "train={epochs: 1, epochs: 2}": ("command line train.epochs: stands twice, first at command line; keep one"),
    "train=" + "[" * 1200: "command line train: nested too deeply to be read",
    "description=a\udcffb": ("command line description: holds the character U+DCFF, which cannot be stored; remove it"),
}

MERGES = {
    "own keys win": ("a: &s {epochs: 1, seed: 2}\ntrain: {<<: *s, epochs: 3}\n", {"epochs": 3, "seed": 2}),
    "own keys win over a merge after them": ("a: &s {epochs: 1, seed: 2}\ntrain: {epochs: 3, <<: *s}\n", None),
    "the first of several wins": (
        "a: &s {epochs: 1, seed: 2}\nb: &t {epochs: 4, r: 5}\ntrain: {<<: [*s, *t], r: 6}\n",
        {"epochs": 1, "seed": 2, "r": 6},
    ),
    "a merge of a merge": (
        "a: &s {epochs: 1, seed: 2}\nb: &t {<<: *s, seed: 3}\nc: *t\ntrain: {<<: *t, epochs: 9}\n",
        {"epochs": 9, "seed": 3},
    ),
    "a section is replaced as a whole": (
        "a: &s {stop: {metric: x, patience: 2}}\ntrain: {<<: *s, stop: {patience: 3}}\n",
        {"stop": {"patience": 3}},
    ),
}


def written(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> Document:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path, overrides)


@pytest.mark.parametrize(("text", "problem"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_cannot_be_read_is_told_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as raised:
        written(tmp_path, text)
    assert raised.value.problems == [problem]


@pytest.mark.parametrize(("override", "problem"), OVERRIDES.items(), ids=[str(n) for n in range(len(OVERRIDES))])
def test_an_override_that_cannot_be_read_is_told(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(RecipeError) as raised:
        written(tmp_path, "name: x\n", (override,))
    assert raised.value.problems == [problem]


def test_quotes_make_a_text_of_it_and_a_sentence_needs_none(tmp_path: Path) -> None:
    overrides = ("a='2024-13-45'", "b=say: this: that", "c=\x01", "d={x: 1}")
    values = written(tmp_path, "name: '2024-13-45'\n", overrides).values
    assert values == {"name": "2024-13-45", "a": "2024-13-45", "b": "say: this: that", "c": "\x01", "d": {"x": 1}}


@pytest.mark.parametrize(("text", "train"), MERGES.values(), ids=MERGES.keys())
def test_what_a_merge_leaves_is_what_yaml_says(tmp_path: Path, text: str, train: dict[str, Any] | None) -> None:
    document = written(tmp_path, text)
    assert document.values == yaml.safe_load(text)
    assert train is None or document.values["train"] == train


def test_a_merged_key_stands_where_it_was_written(tmp_path: Path) -> None:
    document = written(tmp_path, "a: &s\n  epochs: 1\n  seed: 2\ntrain:\n  <<: *s\n  epochs: 3\n")
    assert document.where(("train", "epochs")) == "recipe.yaml:6"
    assert document.where(("train", "seed")) == "recipe.yaml:3"


def test_a_key_that_stands_twice_beside_a_merge_is_still_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        written(tmp_path, "a: &s {epochs: 1}\ntrain:\n  <<: *s\n  epochs: 2\n  epochs: 3\n")
    assert raised.value.problems == ["recipe.yaml:5 train.epochs: stands twice, first at recipe.yaml:4; keep one"]


STATEMENT = "SELECT *  -- every ticket: all of them\nFROM tickets\nWHERE intent <> 'refund' # and not that"


def test_what_is_typed_for_a_value_is_read_whole(tmp_path: Path) -> None:
    overrides = (
        f"sql={STATEMENT}",
        "a=Ticket #5 is ours",
        "b=|",
        "c=#1f77b4",
        "d=",
        "e=5",
        "f=[a, b]  # two",
        "g=*.csv",
    )
    values = written(tmp_path, "name: x\n", overrides).values
    assert values["sql"] == STATEMENT
    assert [values[key] for key in "abcdefg"] == ["Ticket #5 is ours", "|", "#1f77b4", None, 5, ["a", "b"], "*.csv"]


def test_words_of_a_company_are_no_truth_values_and_codes_no_numbers(tmp_path: Path) -> None:
    text = "on: {no: [yes, no, NO, off], 0x1: [007, 12:30, 1_000, 0x1f, -5, +5, 0, true, False]}\n"
    assert written(tmp_path, text).values == {
        "on": {"no": ["yes", "no", "NO", "off"], "0x1": ["007", "12:30", 1000, 31, -5, 5, 0, True, False]}
    }


@pytest.mark.parametrize("value", ["${env:MY-VAR}", "postgresql://me:${env:MY@host/db", "${env:}"])
def test_a_variable_that_is_none_is_told(tmp_path: Path, value: str) -> None:
    with pytest.raises(RecipeError) as raised:
        written(tmp_path, f"name: x\nurl: '{value}'\n")
    assert raised.value.problems == [
        "recipe.yaml:2 url: write ${env:NAME}; a variable's name has letters, digits and _"
    ]


@pytest.mark.parametrize("name", ["recipe.yaml/x.yaml", "x" * 300 + ".yaml"])
def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be read: (Not a directory|File name too long)"):
        read(tmp_path / name)
