"""Where the bundle of a registered version lies: in this home, in its own place, or on the tracking server.

Homes that share a registry may hold different bundles in the same place, as two that trained one recipe on different
machines do. So a folder is a version's only where its content is, whatever its name.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import RunError
from cluster.storage import building, fingerprint, home, only_one, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.bundle import Bundle

FINGERPRINT = "headrace.fingerprint"  # tag of a run and of a version: what it was made from
FOLDER = "headrace.folder"  # tag of a version: its bundle's path relative to the home, so that a home can be moved

ON_SERVER = "runs:/"
"""How the source of a version begins whose bundle lies among the artifacts of a run; the run and a path follow."""


def content_fingerprint(info: dict[str, Any]) -> str:
    """What identifies the content of a bundle with this ``bundle.json``, whatever its place and age."""
    return fingerprint(info["files"], info["settings"])


def tags(bundle: "Bundle") -> dict[str, str]:
    """What a version remembers of its bundle."""
    folder = bundle.folder.resolve()
    place = folder.relative_to(home()).as_posix() if folder.is_relative_to(home()) else str(bundle.folder)
    return {FINGERPRINT: bundle.fingerprint, FOLDER: place}


def upload(client: "MlflowClient", bundle: "Bundle", run_id: str) -> str:
    """Copies a bundle to a run's artifacts, beside those of other bundles; returns the source of its version."""
    path = f"bundle-{bundle.fingerprint}"
    client.log_artifacts(run_id, str(bundle.folder), path)
    return f"{ON_SERVER}{run_id}/{path}"


def bundle_folder(client: "MlflowClient", version: Any) -> Path:
    """Where a version's bundle lies on this machine; fetched from the tracking server where it must be.

    Raises:
        RunError: it is gone, or something else has taken its place.
    """
    kept = kept_folder(version)
    if kept is not None:
        return kept
    content = version.tags.get(FINGERPRINT, "")
    if not version.source.startswith(ON_SERVER) or not content.isalnum():  # which is about to name a folder
        raise _gone(version, another=Path(version.source).exists())
    folder: Path = home() / "models" / version.name / content
    with only_one(folder, wait=True):
        kept = kept_folder(version)
        if kept is not None:  # another fetched it meanwhile
            return kept
        shutil.rmtree(folder, ignore_errors=True)  # a copy that is not what it was
        with building(folder) as new:
            run_id, _, path = version.source.removeprefix(ON_SERVER).partition("/")
            fetched = Path(client.download_artifacts(run_id, path, str(new)))
            if not _holds(fetched, version):
                raise _gone(version, another=True)
            for file in fetched.iterdir():
                file.rename(new / file.name)
            fetched.rmdir()
    return folder


def kept_folder(version: Any) -> Path | None:
    """Where a version's bundle lies in this home or in its own place; None where it does not."""
    fetched = home() / "models" / version.name / version.tags.get(FINGERPRINT, "-")
    places: tuple[Path, ...] = (home() / version.tags.get(FOLDER, "-"), Path(version.source), fetched)
    return next((folder for folder in places if _holds(folder, version)), None)


def _gone(version: Any, *, another: bool) -> RunError:
    where = f"{version.source}{', where something else lies' * another}"
    return RunError(
        f"the bundle of {version.name} version {version.version} is gone from {where}; "
        "train it again, or promote another"
    )


def _holds(folder: Path, version: Any) -> bool:
    """Whether the bundle in a folder is the one that was registered. A version of other hands may have no tags."""
    try:
        content = content_fingerprint(read_json(folder / "bundle.json"))
        return bool(content == version.tags.get(FINGERPRINT, content))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
