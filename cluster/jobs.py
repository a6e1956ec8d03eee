"""Runs headrace commands as jobs on a Ray cluster, over the cluster's job server (HTTP, usually port 8265).

*Address.* What is given, else ``RAY_API_SERVER_ADDRESS``, else ``RAY_ADDRESS`` where it is an HTTP address.

*Dependencies.* A first small job tells what is installed on the cluster. Only what is missing there, or lies outside
the versions that headrace takes, is installed for the job, at the version that ``constraints.txt`` pins. A cluster
whose image has everything starts at once. Otherwise each node pays once per set of packages: Ray clones the virtual
environment it runs in before it adds to it, which took 36 s and 2.6 GB for one small package on two cores.

*Secrets.* The runtime environment of a job is shown on the dashboard and by every job listing. Variables that may hold
a secret (each ``${env:NAME}`` of the recipe, ``MLFLOW_*``, ``HF_TOKEN``) therefore travel in the job's archive and are
deleted there when the command starts. Who holds the cluster's token can run code on it, and could still get them.
"""

import asyncio
import importlib.metadata
import json
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.environment import code_root, environment
from cluster.errors import RunError, UserError
from cluster.inside import FIND_PYTHON, MARK, PROBE
from cluster.masking import redact
from cluster.parcel import Parcel, pack, parcel_of
from cluster.progress import say
from cluster.session import TOKEN_CURE, use_token_if_there_is_one
from cluster.storage import HOME_VARIABLE

Dependencies = Literal["missing", "all", "none"]
INTERRUPTED = 130  # 128 + SIGINT, as shells count
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NOISE = re.compile(r"^(Running entrypoint for job |.*job_manager\.py:\d+ -- )")
STOP_SECONDS = 30  # what a stopped command gets to finish before Ray kills it
WORKER_VARIABLES = ("RAY_COLOR_PREFIX", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")  # of use only where a person looks on


@dataclass(frozen=True)
class Cluster:
    """What the probe found on the cluster."""

    python: str
    home: str
    trouble: str
    installed: dict[str, str]


def submit(
    address: str | None, command: list[str], *, wait: bool = True, dependencies: Dependencies = "missing"
) -> int:
    """Runs ``headrace COMMAND…`` as a job; its stdout and stderr come out here as ours.

    Args:
        address: the job server, e.g. ``http://127.0.0.1:8265``.
        command: the words after ``headrace``.
        wait: follow the job to its end; otherwise the job's id goes to stdout and 0 is returned.
        dependencies: install for the job what the cluster is missing, all that headrace needs, or none.

    Returns:
        The exit code of the command; 1 where the job ended in another way; 130 after Ctrl-C.

    Raises:
        UserError: the recipe or the files it names cannot travel, or state would be lost with the job.
        RunError: the cluster cannot be reached, wants a token, or cannot write the state's folder.
    """
    if not command:
        raise UserError("submit needs a command, as in: headrace submit run recipe.yaml")
    home = _absolute_home()
    parcel = parcel_of(command)
    client = _client(address)
    cluster = _probe(client, home)
    _check_storage(cluster)
    for sentence in parcel.left:
        say(sentence)
    lacking = _requirements(parcel, cluster, dependencies)
    if lacking:
        say(f"installing for this job on the cluster: {', '.join(lacking)}")
    job = _send(client, parcel, cluster, lacking)
    say(f"job {job} on {client.get_address()}")
    if not wait:
        sys.stdout.write(job + "\n")
        return 0
    return _follow(client, job)


def commanded(address: str | None, words: list[str]) -> list[dict[str, Any]]:
    """What ``headrace jobs WORDS`` does, and the jobs that it is about."""
    match words:
        case ["stop", job]:
            return [{"id": job, "status": stop(address, job)}]
        case []:
            return list_jobs(address)
    raise UserError("write `jobs`, `jobs logs ID` or `jobs stop ID`")


def list_jobs(address: str | None) -> list[dict[str, Any]]:
    """Every job of the cluster, the newest first: id, status, command, exit_code, started and ended (Unix time)."""
    with _plain_errors():
        found = _client(address).list_jobs()
    found.sort(key=lambda job: job.start_time or 0, reverse=True)
    return [
        {
            "id": job.submission_id or job.job_id,
            "status": str(job.status.value if hasattr(job.status, "value") else job.status),
            "command": redact((job.metadata or {}).get("headrace") or job.entrypoint),
            "started": job.start_time / 1000 if job.start_time else None,
            "ended": job.end_time / 1000 if job.end_time else None,
            "exit_code": job.driver_exit_code,
        }
        for job in found
    ]


def logs(address: str | None, job: str) -> int:
    """Shows what a job has said, and what it goes on to say until it ends; returns its exit code."""
    return _follow(_client(address), job)


def stop(address: str | None, job: str) -> str:
    """Stops a job and waits until it has ended; returns its last status."""
    client = _client(address)
    with _plain_errors(job):
        client.stop_job(job)
        deadline = time.monotonic() + STOP_SECONDS + 30
        while (status := _status(client, job)) not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
    if status not in ENDED:
        raise RunError(
            f"job {job} did not stop within {STOP_SECONDS + 30} s; look at it with `headrace jobs logs {job}`"
        )
    return status


def server_address(address: str | None) -> str:
    """The job server that is meant.

    Raises:
        UserError: nothing names one, or what does is no HTTP address.
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if not found:
        raise UserError("no cluster is named; give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS to it")
    if not found.startswith(("http://", "https://")):
        raise UserError(
            f"{found} is not the address of a job server; that is the cluster's dashboard, as in http://HEAD:8265"
        )
    return found.rstrip("/")


def _client(address: str | None) -> Any:
    """A connected ``JobSubmissionClient``, with the token where there is one."""
    found = server_address(address)
    with _plain_errors(where=found):
        use_token_if_there_is_one()  # without RAY_AUTH_MODE=token the client sends none, though the token lies there
    from ray.job_submission import JobSubmissionClient

    for chatty in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{chatty}").setLevel(logging.WARNING)
    previous = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = (
        found  # the client lets this variable, and RAY_ADDRESS, overrule its argument
    )
    try:
        with _plain_errors(where=found):
            return JobSubmissionClient(found)
    finally:
        if previous is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = previous


@contextmanager
def _plain_errors(job: str = "", where: str = "") -> Iterator[None]:
    """One sentence with a cure for what the job server and the way to it answer."""
    import requests
    from ray.exceptions import AuthenticationError

    at = f" at {where}" if where else ""
    try:
        yield
    except AuthenticationError as error:
        raise RunError(f"the cluster{at} asks for a token and got none, or a wrong one; {TOKEN_CURE}") from error
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise RunError(f"no Ray job server answers{at}; check the address and that the cluster runs") from error
    except RuntimeError as error:
        told = " ".join(str(error).split())
        if job and "404" in told:
            raise UserError(f"no job {job} on this cluster; `headrace jobs` lists them") from error
        if "401" in told or "403" in told:
            raise RunError(f"the cluster{at} asks for a token and got none, or a wrong one; {TOKEN_CURE}") from error
        raise RunError(f"the job server{at} refused: {redact(told)}") from error


def _absolute_home() -> str:
    home = os.environ.get(HOME_VARIABLE, "").strip()
    if home and not Path(home).is_absolute():
        raise UserError(
            f"{HOME_VARIABLE}={home} is relative, and a job has another working directory; set it to the absolute path "
            "of a folder that every node of the cluster mounts"
        )
    return home


def _probe(client: Any, home: str) -> Cluster:
    """Asks the cluster what it has, by a small job that leaves nothing behind."""
    script = FIND_PYTHON + f'exec "$python" -c {shlex.quote(PROBE)} {shlex.quote(home)}'
    with _plain_errors():
        job = client.submit_job(entrypoint=script, submission_id=_new_id("probe"))
        while (status := _status(client, job)) not in ENDED:
            time.sleep(0.1)
        told = client.get_job_logs(job)
        client.delete_job(job)
    answer = next((line for line in told.splitlines() if line.startswith("headrace-probe ")), None)
    if status != "SUCCEEDED" or answer is None:
        raise RunError(f"the cluster could not run a first small job: {redact(' '.join(told.split())[-600:])}")
    return Cluster(**json.loads(answer.removeprefix("headrace-probe ")))


def _check_storage(cluster: Cluster) -> None:
    if not cluster.home:
        raise UserError(
            f"{HOME_VARIABLE} is not set, here or on the cluster, and what the job makes would be lost with the job's "
            "temporary folder; set it to the absolute path of a folder that every node of the cluster mounts"
        )
    if cluster.trouble:
        raise RunError(
            f"the cluster cannot write to {HOME_VARIABLE}={cluster.home} ({cluster.trouble}); set it to a folder that "
            "every node of the cluster mounts and may write to"
        )


def _requirements(parcel: Parcel, cluster: Cluster, dependencies: Dependencies) -> list[str]:
    """What pip is to install for the job, each pinned."""
    from packaging.requirements import Requirement

    if dependencies == "none":
        return []
    have = {_plain(name): version for name, version in cluster.installed.items()}
    pinned = _pins()
    needed = [Requirement(line) for line in _declared()]
    needed += [Requirement(name) for module in sorted(parcel.requirements) for name in _distributions(module)]
    wanted = []
    for requirement in needed:
        name = _plain(requirement.name)
        version = have.get(name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if name == "ray" and version is not None:
            continue  # a job cannot bring another Ray than its cluster's
        if dependencies == "all" or not fits:
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            wanted.append(f"{name}{extras}{pinned.get(name, str(requirement.specifier))}")
    return sorted(set(wanted))


def _declared() -> list[str]:
    """The requirements of headrace itself, without optional extras."""
    import tomllib

    project = code_root() / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [line for line in importlib.metadata.requires("headrace") or [] if "extra ==" not in line]


def _pins() -> dict[str, str]:
    """Name: ``==version``, as the tests ran with where that is known, else as installed here."""
    pins = {
        _plain(found.metadata["Name"]): f"=={found.version.partition('+')[0]}"
        for found in importlib.metadata.distributions()
        if found.metadata["Name"]
    }
    constraints = code_root() / "constraints.txt"
    if constraints.is_file():
        for line in constraints.read_text(encoding="utf-8").splitlines():
            name, equals, version = line.partition("#")[0].partition(";")[0].strip().partition("==")
            if equals:
                pins[_plain(name)] = f"=={version.strip().partition('+')[0]}"
    return pins


def _distributions(module: str) -> list[str]:
    """The packages that bring a module, as installed here; the module's own name where none is."""
    return sorted(set(importlib.metadata.packages_distributions().get(module, [module.replace("_", "-")])))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _send(client: Any, parcel: Parcel, cluster: Cluster, lacking: list[str]) -> str:
    """Uploads the archive and starts the job; returns its id."""
    with tempfile.TemporaryDirectory(prefix="headrace-job-") as folder:
        archive = Path(folder) / "job.zip"
        pack(parcel, archive)
        say(f"sending {archive.stat().st_size / 1024**2:.1f} MiB: the code and {len(parcel.files)} files of yours")
        runtime: dict[str, Any] = {"working_dir": str(archive), "env_vars": _variables(cluster)}
        if lacking:
            runtime["pip"] = {"packages": lacking, "pip_check": False}
        with _plain_errors():
            job: str = client.submit_job(
                entrypoint=shlex.join(["sh", "headrace-job.sh", parcel.folder, *parcel.command]),
                submission_id=_new_id(parcel.command[0]),
                runtime_env=runtime,
                metadata={"headrace": redact(shlex.join(parcel.command))},
            )
    return job


def _variables(cluster: Cluster) -> dict[str, str]:
    """What the command and every worker of the job need; all of it is shown on the dashboard."""
    variables = {name: value for name, value in environment().items() if name not in WORKER_VARIABLES}
    return {**variables, HOME_VARIABLE: cluster.home, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}


def _new_id(word: str) -> str:
    return f"headrace-{re.sub(r'[^a-z]', '', word.lower()) or 'job'}-{uuid.uuid4().hex[:8]}"


def _status(client: Any, job: str) -> str:
    return str(client.get_job_status(job).value)


def _follow(client: Any, job: str) -> int:
    """Shows a job until it ends. Ctrl-C asks whether to stop it or to leave it running."""
    try:
        with _plain_errors(job):
            asyncio.run(_stream(client, job, show_line))
    except KeyboardInterrupt:
        return _interrupted(client, job)
    with _plain_errors(job):
        info = client.get_job_info(job)
    status, code = str(info.status.value), info.driver_exit_code
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        say(f"job {job} was stopped")
        return 1
    if code is None:
        say(f"job {job} failed before its command ended: {info.message}")
    return code if code in (1, 2) else 1


def _interrupted(client: Any, job: str) -> int:
    address = client.get_address()
    if sys.stdin.isatty():
        sys.stderr.write(f"\nstop job {job} on the cluster? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            say(f"job {job}: {stop(address, job).lower()}")
            return INTERRUPTED
    say(f"job {job} goes on. To see it again: headrace jobs logs {job} --address {address}")
    say(f"To stop it: headrace jobs stop {job} --address {address}")
    return INTERRUPTED


async def _stream(client: Any, job: str, show: Callable[[str], None]) -> None:
    """Hands each line of the job's log to ``show``, once, until the job has ended; a lost connection is made again."""
    shown, failures = 0, 0
    while True:
        seen, rest = 0, ""
        try:
            async for chunk in client.tail_job_logs(job):
                *lines, rest = (rest + chunk).split("\n")
                for line in lines:
                    seen += 1
                    if seen > shown:
                        show(line)
                        shown, failures = seen, 0
            if rest:
                show(rest)
        except (RuntimeError, OSError):
            failures += 1
            if failures > 10:
                raise
        if _status(client, job) in ENDED:
            return
        await asyncio.sleep(1)


def show_line(line: str) -> None:
    """A line of a job's log, to the stream that the command wrote it to."""
    if line.startswith(MARK):
        sys.stdout.write(line.removeprefix(MARK) + "\n")
        sys.stdout.flush()
    elif not NOISE.match(line):
        say(line)
