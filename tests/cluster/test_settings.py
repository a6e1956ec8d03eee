"""Settings: lines, overrides, the environment, and secrets that appear nowhere."""

import io
import logging
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from cluster.errors import RecipeError, UserError
from cluster.masking import redact
from cluster.progress import Progress, configure_logging, say
from cluster.settings import Document, placed, read

SECRET = "correct-horse-battery-staple"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 1
    rate: float = 0.1
    words: list[str] = []


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = "x"
    inner: Inner = Inner()
    password: str = ""


def write(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> Document:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path, overrides)


def test_an_override_replaces_and_adds_and_keeps_its_type(tmp_path: Path) -> None:
    overrides = ("inner.size=5", "inner.words=[a, b]", "name=a=b")
    outer = write(tmp_path, "inner: {size: 2, rate: 0.5}\n", overrides).validate(Outer)
    assert outer == Outer(name="a=b", inner=Inner(size=5, rate=0.5, words=["a", "b"]))


def test_an_override_may_name_a_part_that_the_file_leaves_out(tmp_path: Path) -> None:
    assert write(tmp_path, "name: y\n", ("inner.size=3",)).validate(Outer).inner.size == 3


def test_further_overrides_apply_to_the_text_that_was_read(tmp_path: Path) -> None:
    document = write(tmp_path, "# words\ninner: {size: 2, rate: 0.5}\n", ("inner.size=3", "name=y"))
    document.path.write_text("inner: {siz", encoding="utf-8")
    again = document.overridden(["inner.size=4"])
    assert again.validate(Outer) == Outer(name="y", inner=Inner(size=4, rate=0.5))
    assert again.where(("inner", "rate")) == "recipe.yaml:2"
    assert document.validate(Outer).inner.size == 3
    with pytest.raises(RecipeError, match=r"^command line inner\.size: input should be a valid integer"):
        again.overridden(["inner.size=x"]).validate(Outer)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.sice=1", "command line inner.sice: unknown key, did you mean 'size'?"),
        ("inner.size", "command line: 'inner.size' is no override; write key.path=value"),
        ("inner.size=[1, two]", "command line inner.size: input should be a valid integer, not [1, 'two']"),
    ],
)
def test_a_wrong_override_is_named_as_the_command_lines(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        write(tmp_path, "inner: {size: 2}\n", (override,)).validate(Outer)
    assert raised.value.problems == [message]


@pytest.mark.parametrize("content", ["", "just words", "- a\n- b\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: a recipe is a mapping of keys to values"):
        write(tmp_path, content)


def test_a_missing_file_a_folder_and_another_encoding_each_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; `headrace new DIR` writes a recipe"):
        read(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="is a folder; name the recipe file in it"):
        read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: not UTF-8 text \(byte 8\); save it as UTF-8"):
        read(tmp_path / "latin.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: y\n", encoding="utf-8-sig")
    assert read(path).validate(Outer).name == "y"


def test_a_variable_is_filled_in_for_the_run_and_not_for_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    document = write(tmp_path, 'password: "a-${env:SHOP_PASSWORD}-z"\n')
    assert document.validate(Outer).password == f"a-{SECRET}-z"
    assert document.public == {"password": "a-${env:SHOP_PASSWORD}-z"}
    assert SECRET not in str(document.public)


def test_a_password_written_into_a_url_is_masked_in_what_is_stored(tmp_path: Path) -> None:
    document = write(tmp_path, "name: postgresql://me:hunter22@host/db\n")
    assert document.values["name"] == "postgresql://me:hunter22@host/db"
    assert document.public["name"] == "postgresql://me:***@host/db"


def test_the_secret_appears_in_no_error_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    with pytest.raises(RecipeError) as raised:
        write(tmp_path, "inner: {size: '${env:SHOP_PASSWORD}'}\n").validate(Outer)
    assert SECRET not in str(raised.value)
    assert "inner.size" in str(raised.value)


def test_the_secret_appears_in_no_log_line_no_bar_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    write(tmp_path, "password: ${env:SHOP_PASSWORD}\n")
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    bars = io.StringIO()
    try:
        configure_logging()
        say(f"connecting with {SECRET}")
        logging.getLogger("training").info("url is db://me:%s@host", SECRET)
        try:
            raise RuntimeError(SECRET)
        except RuntimeError:
            logging.getLogger("somewhere.else").exception("failed with %s", SECRET)
        with Progress(SECRET, total=1, stream=bars) as bar:
            bar.update(done=1, place=SECRET)
        sys.stderr.flush()
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
    told = capsys.readouterr()
    assert SECRET not in told.err + told.out + bars.getvalue()
    assert told.err.count("***") >= 4
    assert told.out == ""


def test_redact_leaves_what_is_no_secret_alone() -> None:
    text = "http://127.0.0.1:8265/ and s3://bucket/key and a@b.c"
    assert redact(text) == text


def test_what_is_found_out_after_reading_still_gets_its_line(tmp_path: Path) -> None:
    text = "model:\n  target: intnet\ndata:\n  sources:\n    rows: {read: a.csv}\n  split: {group: shop}\n"
    write(tmp_path, text, ("train.workers=9",))
    told = [
        "model.target: there is no column 'intnet' in the fused table, did you mean 'intent'? It has text, intent",
        "data.split.group: there is no column 'shop' in the fused table; it has text, intent",
        "data.sources.rows.encoding: there is no encoding 'utf-9'",
        "train.workers: 9 workers need as many cores, and there are 2; or say auto",
        "train.seed: an override of a neighbour says nothing of its line",
        "serve.traffic: which of several models is meant?",
        "recipe.yaml:2 model.target: has its place already",
        "command line train.epochs: has its place already",
        "support-intent has no version 3",
        "model: a sentence about it, and no key: none is moved",
    ]
    assert placed("\n".join(told)).splitlines() == [
        f"recipe.yaml:2 {told[0]}",
        f"recipe.yaml:6 {told[1]}",
        f"recipe.yaml:5 {told[2]}",
        f"command line {told[3]}",
        f"command line {told[4]}",
        *told[5:9],
        f"recipe.yaml:1 {told[9]}",
    ]
