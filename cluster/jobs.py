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

import json
import os
import re
import shlex
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.environment import environment
from cluster.errors import RunError, UserError
from cluster.following import follow
from cluster.inside import FIND_PYTHON, PROBE
from cluster.job_server import ENDED, STOP_SECONDS, connect, plain_errors, status_of, stop_and_wait
from cluster.masking import redact
from cluster.parcel import Parcel, pack, parcel_of
from cluster.progress import say
from cluster.requirements import Dependencies, lacking
from cluster.storage import HOME_VARIABLE

PROBE_WORD = "probe"
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
    client = connect(address)
    cluster = _probe(client, home)
    _check_storage(cluster)
    for sentence in parcel.left:
        say(sentence)
    wanted = lacking(parcel.requirements, cluster.python, cluster.installed, dependencies)
    if wanted:
        say(f"installing for this job on the cluster: {', '.join(wanted)}")
    job = _send(client, parcel, cluster, wanted)
    say(f"job {job} on {client.get_address()}")
    if not wait:
        sys.stdout.write(job + "\n")
        return 0
    return follow(client, job)


def commanded(address: str | None, words: list[str]) -> list[dict[str, Any]]:
    """What ``headrace jobs WORDS`` does, and the jobs that it is about."""
    match words:
        case ["stop", job]:
            return [{"id": job, "status": stop(address, job)}]
        case []:
            return list_jobs(address)
    raise UserError("write `jobs`, `jobs logs ID` or `jobs stop ID`")


def list_jobs(address: str | None) -> list[dict[str, Any]]:
    """Every job of the cluster, the newest first: id, status, command, exit_code, started and ended (UTC)."""
    with plain_errors():
        found = connect(address).list_jobs()
    found.sort(key=lambda job: job.start_time or 0, reverse=True)
    return [
        {
            "id": job.submission_id or job.job_id,
            "status": str(job.status.value if hasattr(job.status, "value") else job.status),
            "command": redact((job.metadata or {}).get("headrace") or job.entrypoint),
            "started": _moment(job.start_time),
            "ended": _moment(job.end_time),
            "exit_code": job.driver_exit_code,
        }
        for job in found
        if not (job.submission_id or "").startswith(_id_of(PROBE_WORD))  # deleted, and noted once more as it ended
    ]


def _moment(milliseconds: int | None) -> str | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None


def logs(address: str | None, job: str) -> int:
    """Shows what a job has said, and what it goes on to say until it ends; returns its exit code."""
    return follow(connect(address), job)


def stop(address: str | None, job: str) -> str:
    """Stops a job and waits until it has ended; returns its last status."""
    return stop_and_wait(connect(address), job)


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
    with plain_errors():
        job = client.submit_job(entrypoint=script, submission_id=_new_id(PROBE_WORD))
        while (status := status_of(client, job)) not in ENDED:
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


def _send(client: Any, parcel: Parcel, cluster: Cluster, packages: list[str]) -> str:
    """Uploads the archive and starts the job; returns its id."""
    with tempfile.TemporaryDirectory(prefix="headrace-job-") as folder:
        archive = Path(folder) / "job.zip"
        pack(parcel, archive)
        say(f"sending {archive.stat().st_size / 1024**2:.1f} MiB: the code and {len(parcel.files)} files of yours")
        runtime: dict[str, Any] = {"working_dir": str(archive), "env_vars": _variables(cluster)}
        if packages:
            runtime["pip"] = {"packages": packages, "pip_check": False}
        with plain_errors():
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
    return _id_of(word) + uuid.uuid4().hex[:8]


def _id_of(word: str) -> str:
    """How the ids of jobs of a kind begin."""
    return f"headrace-{re.sub(r'[^a-z]', '', word.lower()) or 'job'}-"
