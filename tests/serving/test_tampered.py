"""Bundles that somebody has laid hands on, offered to a server that runs: none is opened, and the old one goes on.

A forger who can write a bundle can also list what he added with its right digest; only what a bundle may be at all, and
never what it says of itself, keeps him from having code run or a foreign file read.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cluster.storage import folder_digests, write_json
from serving.predictor import Predictor
from tests.serving.conftest import TEXTS, Running, entry
from training.bundle import MANIFEST, Bundle, open_bundle

Tamper = Callable[[Path, Path], None]
"""Spoils the bundle in a folder; the other folder holds what is none of the server's business."""


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def config(**changes: Any) -> Tamper:
    """With these keys in ``config.json``."""

    def tamper(folder: Path, outside: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")

    return tamper


def manifest(**changes: Any) -> Tamper:
    """With these keys in ``bundle.json``; without those that are None."""

    def tamper(folder: Path, outside: Path) -> None:
        info = {**json.loads((folder / MANIFEST).read_text()), **changes}
        write_json(folder / MANIFEST, {key: value for key, value in info.items() if value is not None})

    return tamper


def added(name: str) -> Tamper:
    """With one more file, which runs a command where it is unpickled or imported."""

    def tamper(folder: Path, outside: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        command = pickle.dumps(Runs(outside / "ran")) if not name.endswith(".py") else b"import os\nos.abort()\n"
        (folder / name).write_bytes(command)

    return tamper


def one_bit_of_the_weights(folder: Path, outside: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def weights_that_are_none(folder: Path, outside: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x00" + b'{"a":')


def a_link_to_a_file(folder: Path, outside: Path) -> None:
    shutil.move(folder / "tokenizer.json", outside / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to(outside / "tokenizer.json")


def a_link_to_a_folder(folder: Path, outside: Path) -> None:
    (folder / "more").symlink_to(outside, target_is_directory=True)


def a_pipe(folder: Path, outside: Path) -> None:
    os.mkfifo(folder / "added_tokens.json")


def half_a_manifest(folder: Path, outside: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text[: len(text) // 2], encoding="utf-8")


UNLISTED: dict[str, tuple[Tamper, str | None]] = {
    "a bit of the weights": (one_bit_of_the_weights, "was changed after training"),
    "a file more": (added("extra.json"), "does not belong to the bundle"),
    "half a manifest": (half_a_manifest, "no JSON that can be read"),
    "a manifest without files": (manifest(files=None), "does not list the bundle's files"),
    "a manifest with a file elsewhere": (manifest(files={"../secret": "0"}), "it is not opened|is missing"),
    "a task that is none": (manifest(task="os.system"), "there is no task"),
    "settings of another model": (manifest(settings={}), None),
    "a newer format": (manifest(format_version=99), "format_version 99 cannot be opened"),
}
LISTED: dict[str, tuple[Tamper, str | None]] = {
    "code by name": (config(auto_map={"AutoModel": "somebody/code--m.M"}), "has 'auto_map'"),
    "code by the attention": (config(_attn_implementation_internal="somebody/code"), "has '_attn_implementation_int"),
    "a kernel of a hub": (config(attn_implementation="somebody/kernel"), "has 'attn_implementation'"),
    "code deeper down": (config(text_config={"parts": [{"auto_map": {"a": "b"}}]}), "has 'auto_map'"),
    "trust": (config(trust_remote_code=True), "has 'trust_remote_code'"),
    "pickled weights": (added("pytorch_model.bin"), "of a kind that could run code"),
    "a checkpoint": (added("training_args.pt"), "of a kind that could run code"),
    "a pickle": (added("below/labels.pkl"), "of a kind that could run code"),
    "a program": (added("modeling_bert.py"), "of a kind that could run code"),
    "weights that are none": (weights_that_are_none, None),
    "a link to a file": (a_link_to_a_file, "is a link or no file of its own"),
    "a link to a folder": (a_link_to_a_folder, "is a link or no file of its own"),
    "a pipe": (a_pipe, "is a link or no file of its own"),
}


def spoiled(bundle: Bundle, folder: Path, tamper: Tamper, *, listed: bool) -> Path:
    """A copy of the bundle with something wrong in it, which its manifest lists where the forger saw to that."""
    place, outside = folder / "bundle", folder / "outside"
    outside.mkdir(parents=True)
    shutil.copytree(bundle.folder, place)
    tamper(place, outside)
    if listed:
        digests = {name: digest for name, digest in folder_digests(place).items() if name != MANIFEST}
        manifest(files=digests)(place, outside)
    return place


CASES = [
    *((name, *one, False) for name, one in UNLISTED.items()),
    *((name, *one, True) for name, one in LISTED.items()),
]


@pytest.fixture(scope="module")
def edge(edge_of: Callable[..., Any], bundle: Bundle) -> Iterator[Running]:
    with edge_of({"intent": entry(bundle)}) as running:
        yield running


def failed(edge: Running) -> float:
    return float(edge.metrics._swaps.labels("intent", "failed")._value.get())


@pytest.mark.parametrize(("tamper", "told", "listed"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_server_goes_on_with_the_version_it_has(
    edge: Running,
    bundle: Bundle,
    tamper: Tamper,
    told: str | None,
    listed: bool,
    tmp_path: Path,
    wait_until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = spoiled(bundle, tmp_path, tamper, listed=listed)
    before = failed(edge)
    write_json(edge.wanted, {"intent": entry(Bundle(place, {}), 2)})
    wait_until(lambda: failed(edge) == before + 1)
    answer = requests.post(f"{edge.address}/models/intent", json={"inputs": TEXTS[0]}, timeout=60)
    assert (answer.status_code, answer.headers["x-headrace-version"]) == (200, "1")
    expected = {one["label"]: one["score"] for one in Predictor(bundle).predict([TEXTS[0]])[0]}
    assert {one["label"]: one["score"] for one in answer.json()[0]} == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=told):
        raise ValueError(caplog.text)
    assert not (tmp_path / "outside" / "ran").exists()


def test_the_copy_alone_spoils_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """What is refused above is refused for what was done to it."""
    open_bundle(spoiled(bundle, tmp_path, lambda folder, outside: None, listed=True))
