"""MLflow's store: where it is, one quiet client for it, and its errors in plain words."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from cluster.errors import RunError
from cluster.masking import redact
from cluster.storage import home, plain_disk_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient


SQLITE = "sqlite:///"
WAIT_SECONDS = 120.0  # for others who write to the registry, each of whom takes a second or two


def uri() -> str:
    """Where MLflow keeps runs and versions."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{SQLITE}{home() / 'mlflow.db'}"


def exists() -> bool:
    """Whether there is a store: only who writes makes one, so that asking in a wrong folder leaves nothing there."""
    return not uri().startswith(SQLITE) or Path(uri().removeprefix(SQLITE)).exists()


def on_server() -> bool:
    """Whether it is a tracking server, which cannot see this machine's folders."""
    return uri().startswith("http")


def client() -> "MlflowClient":
    """The client of the store; makes the store where there is none. To be used within :func:`plain_errors`."""
    return _client(uri())


@lru_cache(maxsize=4)
def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def one_writer() -> Iterator[None]:
    """One writer at a time on this home: looking whether something is there and adding it is one step.

    Raises:
        RunError: another writes for too long.
    """
    home().mkdir(parents=True, exist_ok=True)
    lock, note = home() / ".registry.lock", home() / ".registry.holder"
    try:
        held = FileLock(lock, is_singleton=True).acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise RunError(
            f"the registry cannot be written: {lock} is held by {_said(note)}, and was for the {WAIT_SECONDS:g} s that "
            "were waited for it. Let that finish or end it, and run the command again: what is finished is kept, and "
            "it continues from there"
        ) from None
    with held:
        with suppress(OSError):  # a full disk is for the store itself to tell of
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            note.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield


def _said(note: Path) -> str:
    """Who holds the lock, as that said when it took it; the lock itself names nobody."""
    try:
        return note.read_text(encoding="utf-8") or "another process"
    except (OSError, ValueError):
        return "another process"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns what MLflow, its database and the disk raise into one sentence that names the store."""
    # Read by MLflow when it is imported, which others may have done already; hence the loggers too.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # else it tells of every table, and of errors twice
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a company's model names are nobody else's business
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with plain_disk_errors(home()):
            yield
    except (MlflowException, SQLAlchemyError) as error:
        cause = _database_error(error) or str(error).strip().splitlines()[0]
        message = (
            f"the registry at {uri()} would not do this: {cause}; free some space, or set HEADRACE_HOME or "
            "MLFLOW_TRACKING_URI to a store that can be written. What was registered before is intact."
        )
        raise RunError(redact(message)) from error


def _database_error(error: BaseException | None) -> str | None:
    """What the database itself said, below all that was wrapped around it."""
    while error is not None:
        if (original := getattr(error, "orig", None)) is not None:
            return str(original)
        error = error.__cause__ or error.__context__
    return None
