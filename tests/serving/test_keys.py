"""Who may ask."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from serving import keys


def line(name: str, token: str) -> str:
    return f"{name}:{hashlib.sha256(token.encode()).hexdigest()}\n"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(
        "# who may ask\n\n" + line("desk", "secret-1") + line("night", "secret-2").replace("\n", "  # why\n")
    )
    return path


def test_a_known_key_names_its_owner(key_file: Path) -> None:
    known = keys.Keys(key_file)
    assert known.owner("Bearer secret-1") == "desk"
    assert known.owner("bearer secret-2") == "night"
    for wrong in (None, "", "Bearer", "Bearer secret-3", "Basic secret-1", "secret-1", "Bearer \udcff"):
        assert known.owner(wrong) is None


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(key_file: Path) -> None:
    known = keys.Keys(key_file)
    key_file.write_text(line("new", "secret-9"))
    assert (known.owner("Bearer secret-1"), known.owner("Bearer secret-9")) == (None, "new")
    key_file.write_text("half a li")
    assert known.owner("Bearer secret-9") == "new"
    key_file.unlink()
    assert known.owner("Bearer secret-9") == "new"


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
    assert known and known.owner("Bearer secret-1") == "desk"
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
    assert keys.Keys(path).owner(f"Bearer {token}") == "desk"
    assert token not in made.stdout
    with pytest.raises(UserError, match="a key's name"):
        keys.make("a b")
