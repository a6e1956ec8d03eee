"""Who may ask."""

import datetime as dt
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from serving import keys


def line(name: str, token: str) -> str:
    return f"{name}:{hashlib.sha256(token.encode()).hexdigest()}\n"


def owner(known: keys.Keys, authorization: str) -> str | None:
    found = known.known(authorization)
    return found.name if found else None


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(
        "# who may ask\n\n" + line("desk", "secret-1") + line("night", "secret-2").replace("\n", "  # why\n")
    )
    return path


def test_a_known_key_names_its_owner(key_file: Path) -> None:
    known = keys.Keys(key_file)
    assert owner(known, "Bearer secret-1") == "desk"
    assert owner(known, "bearer secret-2") == "night"
    for wrong in (None, "", "Bearer", "Bearer secret-3", "Basic secret-1", "secret-1", "Bearer \udcff"):
        assert known.known(wrong) is None


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(key_file: Path) -> None:
    known = keys.Keys(key_file)
    key_file.write_text(line("new", "secret-9"))
    assert (owner(known, "Bearer secret-1"), owner(known, "Bearer secret-9")) == (None, "new")
    key_file.write_text("half a li")
    assert owner(known, "Bearer secret-9") == "new"
    key_file.unlink()
    assert owner(known, "Bearer secret-9") == "new"


def test_a_line_that_is_no_key_is_named_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ok\ndesk:my-own-password\n")
    with pytest.raises(UserError) as error:
        keys.Keys(path)
    assert str(error.value) == f"{path}:2: no key; a line is NAME:SHA-256 in 64 lower-case hex digits"


def test_the_environment_names_the_file(key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keys.VARIABLE, raising=False)
    assert keys.from_environment() is None
    monkeypatch.setenv(keys.VARIABLE, str(key_file))
    known = keys.from_environment()
    assert known and owner(known, "Bearer secret-1") == "desk"
    monkeypatch.setenv(keys.VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(UserError, match="cannot be read"):
        keys.from_environment()
    (tmp_path / "missing").write_text("# nobody yet\n")
    with pytest.raises(UserError, match="holds no key"):
        keys.from_environment()


def test_a_new_key_is_shown_once_and_its_line_lets_it_in(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "serving.keys", "desk"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(keys.__file__).parent.parent)},
    )
    path = tmp_path / "keys"
    path.write_text(made.stdout)
    token = made.stderr.splitlines()[1].strip()
    assert owner(keys.Keys(path), f"Bearer {token}") == "desk"
    assert token not in made.stdout
    with pytest.raises(UserError, match="a key's name"):
        keys.make("a b")


# --- what a key is good for -------------------------------------------------------------------------------------------


def test_a_line_says_what_its_key_is_good_for(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    today = dt.datetime.now(dt.UTC).date()
    scopes = {
        "desk": "models=intent,reply-writer  actions=predict tokens_per_minute=600",
        "all": "",
        "today": f"until={today}",
        "gone": f"until={today - dt.timedelta(days=1)}",
    }
    path.write_text("".join(line(name, name).replace("\n", f" {scope}  # why\n") for name, scope in scopes.items()))
    known = keys.Keys(path)
    desk, everything = known.known("Bearer desk"), known.known("Bearer all")
    assert desk and everything
    assert (desk.sees("intent"), desk.sees("other"), sorted(desk.actions)) == (True, False, ["predict"])
    assert (everything.sees("other"), sorted(everything.actions)) == (True, ["admin", "predict"])
    assert known.purse(everything) is None
    assert (owner(known, "Bearer today"), owner(known, "Bearer gone")) == ("today", None)


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (
            "model=intent",
            "'model' cannot stand behind a key, or not twice; models, actions, tokens_per_minute, until can",
        ),
        ("until=2026-01-01 until=2027-01-01", "'until' cannot stand behind a key, or not twice"),
        ("actions=read", "actions: a list of predict, admin is needed"),
        ("models=../x", "models: a list of models' names is needed"),
        ("models=", "models: a list of models' names is needed"),
        ("tokens_per_minute=0", "tokens_per_minute: a whole number from 1 up is needed"),
        ("until=tomorrow", "until: "),
    ],
)
def test_a_scope_that_says_nothing_is_named(tmp_path: Path, scope: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(line("desk", "secret").replace("\n", f" {scope}\n"))
    with pytest.raises(UserError, match=re.escape(f"{path}:1: {message}")):
        keys.Keys(path)
    with pytest.raises(UserError, match=re.escape(message)):
        keys.make("desk", scope.split())


def test_a_scope_is_made_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    token, made = keys.make("desk", ["models=intent", "until=2999-01-01"])
    path.write_text(made)
    found = keys.Keys(path).known(f"Bearer {token}")
    assert found and (found.models, found.until) == (frozenset({"intent"}), dt.date(2999, 1, 1))


def test_a_purse_fills_evenly_and_no_further() -> None:
    now = 0.0
    purse = keys.Purse(60, clock=lambda: now)
    purse.take(50)
    assert purse.wait() == 0.0
    purse.take(40)  # more than was there: whoever has any may ask
    assert purse.wait() == pytest.approx(30)
    now = 29.0
    assert purse.wait() == pytest.approx(1)
    now = 31.0
    assert purse.wait() == 0.0
    now = 1000.0
    assert purse.wait() == 0.0
    purse.take(90)
    assert purse.wait() == pytest.approx(30)


def test_all_keys_of_an_owner_share_a_purse(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("".join(line("desk", key).replace("\n", " tokens_per_minute=60\n") for key in ("old", "new")))
    known = keys.Keys(path)
    old, new = known.known("Bearer old"), known.known("Bearer new")
    assert old and new
    assert known.purse(old) is known.purse(new)
    os.utime(path, (1, 1))  # read again, which gives nobody new tokens
    again = known.known("Bearer old")
    assert again and known.purse(again) is known.purse(old)
