"""A cluster's job server: its address, a client of it, and its errors as sentences."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import RunError, UserError
from cluster.masking import redact
from cluster.session import TOKEN_CURE, use_token_if_there_is_one

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_SECONDS = 30  # what a stopped command gets to finish before Ray kills it


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


def connect(address: str | None) -> Any:
    """A connected ``JobSubmissionClient``, with the token where there is one."""
    found = server_address(address)
    with plain_errors(where=found):
        use_token_if_there_is_one()  # without RAY_AUTH_MODE=token the client sends none, though the token lies there
    from ray.job_submission import JobSubmissionClient

    for chatty in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{chatty}").setLevel(logging.WARNING)
    previous = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = (
        found  # the client lets this variable, and RAY_ADDRESS, overrule its argument
    )
    try:
        with plain_errors(where=found):
            return JobSubmissionClient(found)
    finally:
        if previous is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = previous


def status_of(client: Any, job: str) -> str:
    """A job's status, one of ``ENDED`` once it has ended."""
    return str(client.get_job_status(job).value)


def stop_and_wait(client: Any, job: str) -> str:
    """Stops a job and waits until it has ended; returns its last status.

    Raises:
        RunError: it goes on.
    """
    with plain_errors(job):
        client.stop_job(job)
        deadline = time.monotonic() + STOP_SECONDS + 30
        while (status := status_of(client, job)) not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
    if status not in ENDED:
        raise RunError(
            f"job {job} did not stop within {STOP_SECONDS + 30} s; look at it with `headrace jobs logs {job}`"
        )
    return status


@contextmanager
def plain_errors(job: str = "", where: str = "") -> Iterator[None]:
    """One sentence with a cure for what the job server and the way to it answer."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    at = f" at {where}" if where else ""
    try:
        yield
    except AuthenticationError as error:
        raise RunError(f"the cluster{at} asks for a token and got none, or a wrong one; {TOKEN_CURE}") from error
    except (ConnectionError, TimeoutError, aiohttp.ClientError, requests.exceptions.RequestException) as error:
        raise RunError(f"no Ray job server answers{at}; check the address and that the cluster runs") from error
    except RuntimeError as error:
        told = " ".join(str(error).split())
        if job and "404" in told:
            raise UserError(f"no job {job} on this cluster; `headrace jobs` lists them") from error
        if "401" in told or "403" in told:
            raise RunError(f"the cluster{at} asks for a token and got none, or a wrong one; {TOKEN_CURE}") from error
        raise RunError(f"the job server{at} refused: {redact(told)}") from error
