"""The registry: every run and every version of every model, and which version is in production.

MLflow keeps it: SQLite and plain folders under the home by default, a tracking server or another database where
``MLFLOW_TRACKING_URI`` names one (``mlflow ui --backend-store-uri sqlite:///.headrace/mlflow.db`` shows it). A version
is a bundle folder; on a tracking server it is a copy of that folder among the run's artifacts.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.masking import redact
from cluster.storage import home, only_one, read_json
from training import artifacts, store
from training.artifacts import FINGERPRINT
from training.recipe import NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.bundle import Bundle

PRODUCTION = "production"
REFERENCE = re.compile(rf"(?P<name>{NAME.pattern})(/(?P<version>\d{{1,9}})|@(?P<alias>[A-Za-z0-9_-]{{1,64}}))?")

HISTORY = "headrace.production_history"  # tag of a model: the versions that were promoted, oldest first

BATCH_LIMIT = 1000  # points that MLflow takes at once
PARAMETER_LIMIT = 500  # characters of one recipe value shown among a run's parameters; the recipe itself is kept whole


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model, or a bundle folder that is not registered (then ``version`` is None)."""

    name: str
    version: int | None
    alias: str | None
    bundle: Path


@dataclass(frozen=True)
class RunLog:
    """One MLflow run. Small and picklable: a worker may log what the driver started.

    Attributes:
        run_id: MLflow's name for it.
        logged: the last step that is already there of each metric, where a killed run is continued. Steps up to it
            are not written again, so that the curves have one point for each step.
    """

    run_id: str
    logged: Mapping[str, int] = field(default_factory=dict)

    def log(self, records: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Adds points to the metrics' curves: steps, each with its metrics, in as few transactions as it takes.

        Raises:
            RunError: the store cannot be written.
        """
        with store.plain_errors():
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            points = [
                Metric(name, float(value), now, step)
                for step, metrics in records
                for name, value in metrics.items()
                if step > self.logged.get(name, -1)
            ]
            for start in range(0, len(points), BATCH_LIMIT):
                store.client().log_batch(self.run_id, metrics=points[start : start + BATCH_LIMIT])

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Closes the run with its final metrics. ``status``: FINISHED, FAILED or KILLED."""
        self.log([(0, metrics)])
        with store.plain_errors():
            store.client().set_terminated(self.run_id, status=status)


def start_run(recipe_public: dict[str, Any], name: str, fingerprint: str, own: str | None = None) -> RunLog:
    """The MLflow run of this fingerprint: a new one, or the one that a killed process of this home left.

    Args:
        recipe_public: the recipe as ``Document.public``, without secrets.
        name: the model's name; also the name of the MLflow experiment.
        fingerprint: of everything that goes into the run.
        own: the run that this home started before. Other homes may have runs of the same fingerprint in a registry
            that is shared, and theirs are left alone.

    Raises:
        RunError: the store cannot be reached or written.
    """
    with store.plain_errors(), store.one_writer():
        client = store.client()
        experiment = _experiment(client, name)
        same = f"tags.`{FINGERPRINT}` = '{fingerprint}' AND attributes.run_id = '{own}'"
        found = client.search_runs([experiment], same, max_results=1) if own else []
        if found:
            run_id: str = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            steps = {key: client.get_metric_history(run_id, key)[-1].step for key in found[0].data.metrics}
            return RunLog(run_id, steps)
        run_id = client.create_run(
            experiment, run_name=f"{name}-{fingerprint[:8]}", tags={FINGERPRINT: fingerprint}
        ).info.run_id
        for key, value in _flat(recipe_public):
            client.log_param(run_id, key, value[:PARAMETER_LIMIT])
        client.log_dict(run_id, recipe_public, "recipe.json")
        return RunLog(run_id)


def register(bundle: "Bundle", run_id: str | None) -> int:
    """Makes a bundle the newest version of its model. The first version goes into production at once.

    A bundle that is registered already keeps its version.

    Returns:
        The version: 1, 2, 3 …

    Raises:
        RunError: the store cannot be reached or written; what was registered before is intact.
    """
    with store.plain_errors():
        if not store.on_server():
            with store.one_writer():
                return _added(store.client(), bundle, str(bundle.folder), run_id)
        client = store.client()
        # Two who register one bundle would write the same files, one of them while others fetch what the first has
        # registered. All else may go on meanwhile: an upload takes as long as the network takes.
        with only_one(bundle.folder, wait=True):
            known = _known(client, bundle)
            if known is not None:
                return known
            run_id = run_id or start_run(bundle.info["recipe"], bundle.name, bundle.fingerprint).run_id
            source = artifacts.upload(client, bundle, run_id)
            with store.one_writer():
                return _added(client, bundle, source, run_id)


def _added(client: "MlflowClient", bundle: "Bundle", source: str, run_id: str | None) -> int:
    """The version of a bundle, made where there is none; to be called by the one writer."""
    known = _known(client, bundle)
    if known is not None:
        return known
    if not _is_registered(client, bundle.name):
        client.create_registered_model(bundle.name)
    version = int(client.create_model_version(bundle.name, source, run_id, tags=artifacts.tags(bundle)).version)
    if _in_production(client, bundle.name) is None:
        _set_production(client, bundle.name, [version])
    return version


def _known(client: "MlflowClient", bundle: "Bundle") -> int | None:
    found = [one for one in _versions(client, bundle.name) if one.tags.get(FINGERPRINT) == bundle.fingerprint]
    return int(found[0].version) if found else None


def resolve(model: str) -> ModelVersion:
    """What a model's reference stands for.

    Args:
        model: ``name`` (the version in production), ``name@alias``, ``name/3``, or the path of a bundle folder,
            which must hold a separator (``./bundle``): a bare name is never taken for a path.

    Raises:
        UserError: there is no such model, version or folder; says which there are.
        RunError: the store cannot be reached, or the version's bundle is gone.
    """
    match = REFERENCE.fullmatch(model)
    if match is None:
        return _resolve_folder(model)
    name, number, alias = match["name"], match["version"], match["alias"]
    with store.plain_errors():
        client = _client_that_knows(name)
        if number is None:
            alias = alias or PRODUCTION
            aliases = client.get_registered_model(name).aliases
            if alias not in aliases:
                raise UserError(f"{name} has no version with the alias '{alias}'; it has {_listed(aliases)}")
            number = aliases[alias]
        return _model_version(client, name, int(number), alias)


def promote(name: str, version: int) -> ModelVersion:
    """Puts a version into production.

    Raises:
        UserError: there is no such model or version.
        RunError: the store cannot be reached or written.
    """
    with store.plain_errors(), store.one_writer():
        client = _client_that_knows(name)
        promoted = _model_version(client, name, version, PRODUCTION)
        if _in_production(client, name) != version:
            _set_production(client, name, [*_history(client, name), version])
        return promoted


def rollback(name: str, version: int | None = None) -> ModelVersion:
    """Puts the version back that was in production before.

    Args:
        version: the one that must be in production for it; where another is, that one stays.

    Returns:
        What is in production.

    Raises:
        UserError: there is no such model, or nothing was in production before.
        RunError: the store cannot be reached or written.
    """
    with store.plain_errors(), store.one_writer():
        client = _client_that_knows(name)
        history = _history(client, name)
        if version is not None and history and history[-1] != version:
            return _model_version(client, name, history[-1], PRODUCTION)
        if len(history) < 2:
            raise UserError(f"{name}: no other version was in production before; `headrace models {name}` lists all")
        previous = _model_version(client, name, history[-2], PRODUCTION)
        _set_production(client, name, history[:-1])
        return previous


def models(name: str | None = None) -> list[dict[str, Any]]:
    """The versions of one model, or of all, newest first: name, version, aliases, bundle, created, run_id.

    Raises:
        UserError: there is no model of that name.
        RunError: the store cannot be reached.
    """
    with store.plain_errors():
        if name is None and not store.exists():
            return []
        client = store.client() if name is None else _client_that_knows(name)
        names = [name] if name else [one.name for one in client.search_registered_models(max_results=1000)]
        rows = []
        for one in names:
            aliases = client.get_registered_model(one).aliases
            rows += [_row(version, aliases) for version in _versions(client, one)]
        return rows


# --- versions and production ------------------------------------------------------------------------------------------


def commanded(words: Sequence[str]) -> list[dict[str, Any]]:
    """What ``headrace models WORDS`` does, and the models that it is about.

    Raises:
        UserError: it can do nothing of the kind, or not with these models.
    """
    match list(words):
        case ["promote", name, version] if version.isdecimal():
            return [vars(promote(name, int(version)))]
        case ["rollback", name]:
            return [vars(rollback(name))]
        case [] | [_]:
            return models(*words)
    raise UserError("write: models [NAME], models promote NAME VERSION, or models rollback NAME")


def _row(version: Any, aliases: Mapping[str, str]) -> dict[str, Any]:
    folder = artifacts.kept_folder(version)
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": sorted(alias for alias, number in aliases.items() if int(number) == int(version.version)),
        **_judged(folder),
        "bundle": str(folder or version.source),
        "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        "run_id": version.run_id,
    }


def _judged(folder: Path | None) -> dict[str, Any]:
    """The metric by which a bundle is judged, and its value; nothing of one that lies elsewhere."""
    info = read_json(folder / "bundle.json") if folder else {}
    headline = info.get("data", {}).get("headline")
    return {"judged_by": headline, "value": info.get("metrics", {}).get(headline)}


def _versions(client: "MlflowClient", name: str) -> list[Any]:
    """All versions of a model, newest first; none where the model is unknown."""
    found = client.search_model_versions(f"name = '{name}'", max_results=10_000)
    return sorted(found, key=lambda one: -int(one.version))


def _is_registered(client: "MlflowClient", name: str) -> bool:
    return bool(client.search_registered_models(f"name = '{name}'"))


def _client_that_knows(name: str) -> "MlflowClient":
    """The client, once it is sure that there is such a model."""
    known: list[str] = []
    if store.exists():
        client = store.client()
        # The name's form is checked before it goes anywhere: it cannot become a path or a piece of a query.
        if NAME.fullmatch(name) and _is_registered(client, name):
            return client
        known = [one.name for one in client.search_registered_models(max_results=1000)]
    raise UserError(f"there is no model '{name}' in {redact(store.uri())}; there is {_listed(known)}")


def _model_version(client: "MlflowClient", name: str, version: int, alias: str | None) -> ModelVersion:
    known = {int(one.version): one for one in _versions(client, name)}
    if version not in known:
        raise UserError(f"{name} has no version {version}; it has {_listed(sorted(known))}")
    return ModelVersion(name, version, alias, artifacts.bundle_folder(client, known[version]))


def _in_production(client: "MlflowClient", name: str) -> int | None:
    version = client.get_registered_model(name).aliases.get(PRODUCTION)
    return None if version is None else int(version)


def _history(client: "MlflowClient", name: str) -> list[int]:
    """The versions promoted so far, the one in production last, also when the alias was moved in MLflow itself."""
    history: list[int] = json.loads(client.get_registered_model(name).tags.get(HISTORY, "[]"))
    current = _in_production(client, name)
    if current is not None and (not history or history[-1] != current):
        history.append(current)
    return history


def _set_production(client: "MlflowClient", name: str, history: list[int]) -> None:
    client.set_registered_model_tag(name, HISTORY, json.dumps(history[-100:]))
    client.set_registered_model_alias(name, PRODUCTION, str(history[-1]))


def _resolve_folder(model: str) -> ModelVersion:
    folder = Path(model).expanduser()
    if not (folder / "bundle.json").is_file():
        raise UserError(
            f"'{model}' is neither a model (name, name@alias or name/3) nor a bundle folder with a bundle.json"
        )
    info = read_json(folder / "bundle.json")
    name = info.get("name") if isinstance(info, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{folder / 'bundle.json'}: names no model; it is no bundle of headrace")
    return ModelVersion(name, None, None, folder.resolve())


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield re.sub(r"[^\w\-. /]", "_", f"{prefix}{key}"), str(value)


def _experiment(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found is not None:
        return str(found.experiment_id)
    # Without a place of our own MLflow would put a folder "mlruns" into the working directory.
    place = None if store.on_server() else (home() / "artifacts" / name).as_uri()
    return str(client.create_experiment(name, artifact_location=place))
