"""Shows what a job on a cluster says, until it ends or whoever looks on has seen enough."""

import asyncio
import re
import sys
from collections.abc import Callable
from typing import Any

from cluster.inside import MARK
from cluster.job_server import ENDED, plain_errors, status_of, stop_and_wait
from cluster.progress import say

INTERRUPTED = 130  # 128 + SIGINT, as shells count
NOISE = re.compile(r"^(Running entrypoint for job |.*job_manager\.py:\d+ -- )")

MOST_FAILURES = 10
"""Connections in a row that are lost before anything new was read of a log; with the pauses between, some minutes."""

LONGEST_PAUSE = 30.0


def follow(client: Any, job: str) -> int:
    """Shows a job until it ends. Ctrl-C asks whether to stop it or to leave it running.

    Returns:
        The exit code of its command; 1 where it ended in another way; 130 after Ctrl-C.

    Raises:
        UserError: there is no such job.
        RunError: the job server does not answer, for some minutes.
    """
    try:
        with plain_errors(job):
            status_of(client, job)  # of a job that there is not, the log is only a lost connection
            asyncio.run(stream(client, job, show_line))
    except KeyboardInterrupt:
        return _interrupted(client, job)
    with plain_errors(job):
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


async def stream(
    client: Any, job: str, show: Callable[[str], None], pause: Callable[[float], Any] = asyncio.sleep
) -> None:
    """Hands each line of the job's log to ``show``, once, until the job has ended; a lost connection is made again.

    The log has ended where the server ends it of a job that has ended. Otherwise a line may still be half of one.

    Args:
        pause: waits so many seconds before the next connection.
    """
    import aiohttp

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
            if status_of(client, job) in ENDED:
                if rest:
                    show(rest)
                return
        except (RuntimeError, OSError, aiohttp.ClientError):
            failures += 1
            if failures > MOST_FAILURES:
                raise
        await pause(min(2.0**failures, LONGEST_PAUSE))


def show_line(line: str) -> None:
    """A line of a job's log, to the stream that the command wrote it to."""
    if line.startswith(MARK):
        sys.stdout.write(line.removeprefix(MARK) + "\n")
        sys.stdout.flush()
    elif not NOISE.match(line):
        say(line)


def _interrupted(client: Any, job: str) -> int:
    address = client.get_address()
    if sys.stdin.isatty():
        sys.stderr.write(f"\nstop job {job} on the cluster? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            say(f"job {job}: {stop_and_wait(client, job).lower()}")
            return INTERRUPTED
    say(f"job {job} goes on. To see it again: headrace jobs logs {job} --address {address}")
    say(f"To stop it: headrace jobs stop {job} --address {address}")
    return INTERRUPTED
