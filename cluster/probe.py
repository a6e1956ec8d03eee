"""Whether every node of a session answers, and sees what this one writes to the home."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import RunError
from cluster.storage import HOME_VARIABLE, home, plain_disk_errors

if TYPE_CHECKING:
    from ray import ObjectRef

PROBE_SECONDS = 60.0  # for a node to start a worker and read a file


def require_shared_storage() -> None:
    """Has every other node of the session read a probe file in ``HEADRACE_HOME``.

    Raises:
        RunError: a node does not see it, or does not answer.
    """
    blind = nodes_without_storage()
    if blind:
        raise RunError(
            f"{HOME_VARIABLE}={home()} is not shared: {', '.join(blind)} cannot read what this node writes there; "
            "set it to a folder on a file system that every node mounts at the same path"
        )


def nodes_without_storage() -> list[str]:
    """The addresses of the session's nodes that cannot read a file just written to ``home()``.

    Raises:
        RunError: a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return []
    word = uuid.uuid4().hex
    probe = home() / f".probe-{word}"
    with plain_disk_errors(probe):
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text(word, encoding="utf-8")
    try:
        read = ray.remote(num_cpus=0, max_retries=0)(_reads)
        answers = [
            read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(probe), word
            )
            for node in others
        ]
        ray.wait(answers, num_returns=len(answers), timeout=PROBE_SECONDS)
        seen = [_answer(one) for one in answers]
    finally:
        probe.unlink(missing_ok=True)
    addresses = [str(node["NodeManagerAddress"]) for node in others]
    silent = [f"{address} ({why})" for address, (_, why) in zip(addresses, seen, strict=True) if why]
    if silent:
        raise RunError(
            f"{len(silent)} of the {len(others)} other nodes of the Ray cluster did not answer: {', '.join(silent)}; "
            "`ray status` on the head node shows which are alive. Start Ray there again, or `ray stop` it to go on "
            "without, and run the command again"
        )
    return [address for address, (reads, _) in zip(addresses, seen, strict=True) if not reads]


def _reads(path: str, word: str) -> bool:
    """Runs on another node."""
    try:
        return Path(path).read_text(encoding="utf-8") == word
    except OSError:
        return False


def _answer(one: "ObjectRef[bool]") -> tuple[bool, str]:
    """What :func:`_reads` says there, or why it says nothing."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return bool(ray.get(one, timeout=0)), ""
    except GetTimeoutError:
        return False, f"nothing within {PROBE_SECONDS:g} s"
    except RayError as error:  # the node has gone meanwhile, or cannot start a worker
        return False, type(error).__name__
