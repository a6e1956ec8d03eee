"""How many replicas there should be, from what each of them reports. Runs in Serve's controller.

Serve sends this module to its controller by value, so it imports nothing but the standard library: the controller needs
none of our code.

A replica reports how long a new input would wait there before a model begins with it: the tokens that wait, over the
tokens per second that it has measured itself to compute. Requests would be the wrong unit, since a long document is as
much work as a hundred titles. Waiting alone says when more are needed, and says nothing of when fewer would do: three
replicas that keep up have no queues, and one in their place would drown. So replicas also report the share of the time
in which they compute, and one is let go only where the others have room for its share.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

ROOM = 0.8  # the share of its time that a replica may compute and still answer what comes at random moments soon


class Report(NamedTuple):
    """What a replica says of itself.

    Attributes:
        wait_seconds: how long a new input would wait before a model begins with it.
        busy: the share of the time in which it computes, 0 to 1.
        idle_seconds: since its last request; 0 while it has one.
    """

    wait_seconds: float
    busy: float
    idle_seconds: float


class Policy:
    """Serve's question, answered by :func:`wanted`. How long an answer must hold before it counts, Serve sees to.

    Args:
        target_wait_seconds: the wait that is aimed at.
        idle_seconds: how long all must have been idle before none is needed.
    """

    def __init__(self, target_wait_seconds: float, idle_seconds: float) -> None:
        self._target_wait_seconds, self._idle_seconds = target_wait_seconds, idle_seconds

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas for an ``AutoscalingContext``, before Serve puts it between ``min`` and ``max``."""
        present = int(context.target_num_replicas)
        reports = reported(context.raw_metrics)
        if not reports or len(reports) < len(context.running_replicas):
            return present, {}  # one that has just started reports within two seconds
        count = wanted(reports, present, self._target_wait_seconds)
        # Serve counts requests over some seconds, and would bring a replica back for one that it still remembers.
        unused = context.total_num_requests == 0 and all(one.idle_seconds >= self._idle_seconds for one in reports)
        return 0 if unused else count, {}


def reported(metrics: dict[str, dict[Any, list[Any]]]) -> list[Report]:
    """The newest report of each replica that has sent one, from Serve's time series by metric and replica."""
    replicas = metrics.get(Report._fields[0], {})
    return [Report(*(metrics[name][replica][-1].value for name in Report._fields)) for replica in replicas]


def wanted(reports: Iterable[Report], present: int, target_wait_seconds: float) -> int:
    """How many replicas bring the wait to ``target_wait_seconds`` when what waits is spread evenly over them.

    Never fewer than what is computed at present needs, but that is no reason for more of them than there are: one
    client that asks again as soon as it is answered keeps a model busy, and a second one would not serve it sooner.
    """
    reports = list(reports)
    needed = math.ceil(sum(report.wait_seconds for report in reports) / target_wait_seconds)
    kept = math.ceil(sum(report.busy for report in reports) / ROOM)
    return max(1, needed, min(kept, present))
