"""What travels with a job: the code, the recipe and the local files that it names, as one archive.

    headrace-job.sh      finds the interpreter that Ray runs on
    headrace.py cluster/ training/ tuning/ serving/
    private.json         variables for the command alone (secrets among them)
    files/…              the user's files, in the layout they have here

*Rule for data.* A file that a recipe, a ``serve.yaml`` or the command names by a relative path travels along,
git-ignored or not. An absolute path and an address (``s3://…``) stay as written: the cluster reads them at the same
place.
"""

import json
import os
import re
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cluster.environment import PACKAGES, code_root
from cluster.errors import RecipeError, UserError
from cluster.inside import JOB_SCRIPT, PRIVATE
from cluster.masking import ENVIRONMENT, holds_secret, redact
from cluster.settings import Document, is_override, read
from cluster.storage import lying_at
from cluster.yaml_lines import Keys

LIMIT = 100 * 1024**2  # the job server refuses a larger request body (ray_constants.DASHBOARD_CLIENT_MAX_SIZE)
FILES = "files"
DATABASE_FILE = re.compile(r"(?:sqlite|duckdb)(?:\+\w+)?:///(?P<path>[^?]*)")
KEYS_VARIABLE = "HEADRACE_API_KEYS"
PRIVATE_VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", KEYS_VARIABLE)
PRIVATE_PREFIXES = ("MLFLOW_",)
MIB = 1024**2


@dataclass
class Parcel:
    """The plan of an archive.

    Attributes:
        command: the words after ``headrace``, as they will run in ``folder`` of the archive.
        files: what is taken from this machine: its path here, its name in the archive.
        folder: where in the archive the command runs.
        private: variables for the command alone.
        requirements: modules that the recipe itself asks for (a weights package, a database driver).
        left: sentences about what is not taken along.
    """

    command: list[str]
    files: dict[Path, str] = field(default_factory=dict)
    folder: str = FILES
    private: dict[str, str] = field(default_factory=dict)
    requirements: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)


def parcel_of(command: Sequence[str]) -> Parcel:
    """Looks up everything that ``command`` (the words after ``headrace``) needs from this machine.

    Raises:
        UserError: a recipe cannot be read, a variable it names is not set, no file is where it says, or the command
            holds a password.
    """
    here = Path.cwd().resolve()
    parcel = Parcel(command=list(command))
    named: set[Path] = set()
    _refuse_lost_output(command)
    _refuse_passwords(command)
    recipe = recipe_of(command)
    if recipe is not None:
        document = read(recipe.path, recipe.overrides)
        named |= {document.path, *_local_files(document, parcel, serving=command[0] == "serve")}
        parcel.private.update({name: os.environ[name] for name in _variables(document.public)})
        # The one word that must change: an absolute path is another one there, and links do not travel.
        parcel.command[recipe.place] = os.path.relpath(document.path, here)
    named |= {*_argument_files(command, parcel), *(_keys_file(parcel) if command[0] == "serve" else ())}
    root = Path(os.path.commonpath([here, *named]))
    parcel.files.update({path: f"{FILES}/{path.relative_to(root).as_posix()}" for path in sorted(named)})
    parcel.folder = f"{FILES}/{here.relative_to(root).as_posix()}" if here != root else FILES
    parcel.private.update(_private_variables())
    return parcel


class NamedRecipe(NamedTuple):
    """The recipe, or the file of what is served, that a command names: at which place, where it lies, its overrides."""

    place: int
    path: Path
    overrides: list[str]

    @property
    def words(self) -> list[str]:
        """The recipe and its overrides, as they are typed."""
        return [str(self.path), *self.overrides]


def recipe_of(command: Sequence[str]) -> NamedRecipe | None:
    """The recipe that a command names; None where it names none."""
    for place, word in enumerate(command):
        if word.endswith((".yaml", ".yml")) and not word.startswith("-") and not is_override(word):
            return NamedRecipe(place, Path(word), [word for word in command[place + 1 :] if is_override(word)])
    return None


def pack(parcel: Parcel, archive: Path) -> None:
    """Writes the archive. Equal contents give equal bytes, which Ray then does not upload again; one with private
    variables is like no other, since the job deletes them from the folder where it was unpacked.

    Raises:
        UserError: it grows past what a job server takes; the largest files are named.
    """
    parts = [*_code(), *sorted(parcel.files.items(), key=lambda item: item[1])]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        _add(packed, "headrace-job.sh", JOB_SCRIPT.encode())
        _add(packed, PRIVATE, json.dumps(parcel.private, sort_keys=True).encode(), mode=0o600)
        if parcel.private:
            _add(packed, ".once", uuid.uuid4().bytes)
        _add(packed, f"{parcel.folder}/.headrace-job", b"")  # the folder exists even where no file lies in it
        for path, name in parts:
            with path.open("rb") as source, packed.open(_entry(name), "w", force_zip64=True) as target:
                while block := source.read(MIB):
                    target.write(block)
                    if archive.stat().st_size > LIMIT:
                        raise UserError(_too_large(parts))


def _too_large(parts: Sequence[tuple[Path, str]]) -> str:
    largest = sorted(parts, key=lambda part: part[0].stat().st_size, reverse=True)[:3]
    told = ", ".join(f"{path} ({path.stat().st_size / MIB:,.0f} MiB)" for path, _ in largest)
    return (
        f"what travels with the job is more than the {LIMIT / MIB:.0f} MiB that a Ray job server takes, even "
        f"compressed; the largest files are {told}. Put them where every node can read them and name them in the "
        "recipe by an absolute path or an s3:// address"
    )


def _local_files(document: Document, parcel: Parcel, *, serving: bool) -> Iterator[Path]:
    """The files below relative paths of a recipe, or of a file of what is served; adds to the parcel what it learns on
    the way.

    Args:
        serving: what only a server reads is meant, too.
    """
    problems: list[str] = []
    for keys, value in [*_places(document.values), *(_certificate(document.values) if serving else ())]:
        if keys[-1] == "database":
            parcel.requirements |= _driver(value)
            found = DATABASE_FILE.match(value)
            if found is None or found["path"] in ("", ":memory:"):
                continue
            value = found["path"]
        if keys[:2] == ("model", "base") and value.startswith("package:"):
            parcel.requirements.add(value.removeprefix("package:").split("/")[0].split(".")[0])
            continue
        if "://" in value:
            continue
        if Path(value).expanduser().is_absolute():
            parcel.left.append(f"{'.'.join(map(str, keys))} is an absolute path: the cluster reads {value} itself")
            continue
        paths = list(_below(document.path.parent, value))
        if not paths and not _is_hub_id(keys, value):
            problems.append(document.problem(keys, f"no file at '{value}' (below {document.path.parent})"))
        yield from paths
    if serving:
        yield from _bundles(document, parcel, problems)
    if problems:
        raise RecipeError(problems)


def _places(values: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Where a recipe names files. It was not validated here, so nothing is taken for granted."""
    data, model = values.get("data"), values.get("model")
    sources = data.get("sources") if isinstance(data, dict) else None
    for name, source in sources.items() if isinstance(sources, dict) else ():
        for key in ("read", "database", "hub"):
            if isinstance(source, dict) and isinstance(source.get(key), str):
                yield ("data", "sources", name, key), source[key]
        globs = source.get("files") if isinstance(source, dict) else None
        for address in [globs] if isinstance(globs, str) else globs if isinstance(globs, list) else ():
            yield ("data", "sources", name, "files"), str(address)
    base = model.get("base") if isinstance(model, dict) else None
    if isinstance(base, str):
        yield ("model", "base"), base
    if isinstance(base, dict) and isinstance(base.get("tokenizer"), str) and base["tokenizer"] != "train":
        yield ("model", "base", "tokenizer"), base["tokenizer"]
    options = model.get("options") if isinstance(model, dict) else None
    if isinstance(options, dict) and isinstance(options.get("folder"), str):
        yield ("model", "options", "folder"), options["folder"]


def _certificate(values: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Where a certificate of the address is named, and its key."""
    serve = values.get("serve")
    tls = serve.get("tls") if isinstance(serve, dict) else None
    for key in ("certificate", "key"):
        if isinstance(tls, dict) and isinstance(tls.get(key), str):
            yield ("serve", "tls", key), tls[key]


def _bundles(document: Document, parcel: Parcel, problems: list[str]) -> Iterator[Path]:
    """The folders among the models of a file of what is served; they start where the command does, as its words do."""
    models = document.values.get("models")
    here = Path.cwd().resolve()
    for index, model in enumerate(models if isinstance(models, list) else ()):
        name = model.get("name") if isinstance(model, dict) else model
        if not isinstance(name, str):
            continue
        if Path(name).expanduser().is_absolute():
            parcel.left.append(f"models is an absolute path: the cluster reads {name} itself")
        elif (here / name / "bundle.json").is_file():
            yield from _below(here, name)
        elif name.startswith("."):  # any other may be in the registry
            problems.append(document.problem(("models", index), f"no bundle at '{name}' (below {here})"))


def _is_hub_id(keys: Keys, value: str) -> bool:
    return keys[-1] in ("hub", "base", "tokenizer") and not value.startswith(".")


def _below(folder: Path, pattern: str) -> Iterator[Path]:
    """The files of a relative path, a glob or a folder, of which what is hidden stays; a database's journal comes with
    it."""
    for match in lying_at(folder, pattern):
        path = Path(os.path.normpath(match))
        if path.is_dir():
            inside = ((inner, inner.relative_to(path).parts) for inner in sorted(path.rglob("*")) if inner.is_file())
            yield from (inner for inner, parts in inside if not any(part.startswith(".") for part in parts))
        else:
            yield path
            yield from (beside for end in ("-wal", "-shm") if (beside := path.with_name(path.name + end)).is_file())


def _argument_files(command: Sequence[str], parcel: Parcel) -> Iterator[Path]:
    """Files and bundles that the command itself names: `predict MODEL FILE`, `evaluate MODEL --data=FILE`. A folder
    that is no bundle only happens to be called like a model."""
    for word in command[1:]:
        value = word.partition("=")[2] if word.startswith("--") else word
        found = Path(value) / "bundle.json" if Path(value).is_dir() else Path(value)
        if not value or not found.is_file() or value.endswith((".yaml", ".yml")):
            continue
        if Path(value).is_absolute():
            parcel.left.append(f"{value} is an absolute path: the cluster reads it itself")
        else:
            yield from _below(Path.cwd().resolve(), value)


def _keys_file(parcel: Parcel) -> Iterator[Path]:
    """The file of hashed keys that requests to a served model must carry."""
    named = os.environ.get(KEYS_VARIABLE, "")
    if Path(named).is_absolute():
        parcel.left.append(f"{KEYS_VARIABLE} is an absolute path: the cluster reads {named} itself")
    elif named:
        yield Path(named).resolve()


def _refuse_lost_output(command: Sequence[str]) -> None:
    """A relative path to write to would lie in the job's temporary folder."""
    for option, following in zip(command, [*command[1:], ""], strict=True):
        name, _, value = option.partition("=")
        if option.startswith("-o"):
            name, value = "-o", option[2:]
        place = value or following
        if name in ("-o", "--output") and place and not Path(place).is_absolute():
            raise UserError(
                f"{name} {place}: a job's own folder is temporary and what it writes there is lost; name an absolute "
                "path that the cluster can write to, or leave it out to get the result on stdout"
            )


def _refuse_passwords(command: Sequence[str]) -> None:
    """The dashboard and every job listing show the command of a job as it is."""
    for word in command:
        if holds_secret(word):
            key, equals, _ = word.partition("=")
            raise UserError(
                f"{key if equals else redact(word)}: a job's command is shown on the cluster's dashboard, and this "
                "one holds a password; export it as a variable and write '${env:NAME}' in its place, in single quotes"
            )


def _variables(tree: Any) -> set[str]:
    """The names in every ``${env:NAME}`` of a recipe."""
    if isinstance(tree, dict):
        return set().union(*map(_variables, tree.values()))
    if isinstance(tree, list):
        return set().union(*map(_variables, tree))
    return set(ENVIRONMENT.findall(tree)) if isinstance(tree, str) else set()


def _private_variables() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in PRIVATE_VARIABLES or name.startswith(PRIVATE_PREFIXES)
    }


def _driver(url: str) -> set[str]:
    """The module that SQLAlchemy needs for a database URL: ``postgresql+psycopg://…`` needs psycopg."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        driver = make_url(url).get_dialect().driver
    except SQLAlchemyError:
        return set()  # whether the URL is right is for the reader of the source to say
    return set() if driver in ("pysqlite", "") else {driver}


def _code() -> Iterator[tuple[Path, str]]:
    root = code_root()
    for name in ("headrace.py", "pyproject.toml", "constraints.txt"):
        if (root / name).is_file():
            yield root / name, name
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, path.relative_to(root).as_posix()


def _add(packed: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    packed.writestr(_entry(name, mode), content)


def _entry(name: str, mode: int = 0o644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = mode << 16
    return entry
