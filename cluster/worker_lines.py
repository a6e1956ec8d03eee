"""What workers write, on the driver's stderr and without what Ray says of itself."""

import re
import sys
from typing import Any

from cluster.logs import as_json
from cluster.masking import redact
from cluster.progress import relay

# How Ray's own chatter begins, in the three formats of Serve, of its Python loggers and of its C++ core.
RAY_INFO_LINE = re.compile(
    r"(?:\x1b\[[\d;]*m)*"
    r"(?:(?:INFO|DEBUG) \d{4}-|\d{4}-\d\d-\d\d [\d:,]+\s(?:INFO|DEBUG) |\[\d{4}-[^\]]* [ID] \d+ \d+\])"
)
RAY_CHATTER = (
    "has constructor arguments in the object store and max_restarts > 0",  # an error to the C++ core, in every run
    "Reporting training result ",  # a page of numbers from every worker at every checkpoint, without its level
)
# It tidies up after a run, and where several sessions run on one machine it complains of not knowing which is its own.
RAY_CARETAKERS = {"PlacementGroupCleaner"}


def send_to_stderr() -> None:
    """Ray prints what a worker writes to stdout on the driver's stdout, which is for results alone."""
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher, stderr_deduplicator

    def show(batch: dict[str, Any]) -> None:
        lines = [redact(line) for line in batch["lines"] if not RAY_INFO_LINE.match(line) and not _is_chatter(line)]
        if not lines or batch.get("actor_name") in RAY_CARETAKERS:
            return
        if as_json():
            # What Ray's autoscaler writes is its whole state, every five seconds.
            for line in worker.filter_autoscaler_events(lines) if batch["pid"] == "autoscaler" else lines:
                relay(line)
            return
        for kept in stderr_deduplicator.deduplicate({**batch, "lines": lines, "is_err": True}):
            worker.print_worker_logs(kept, sys.stderr)

    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
    global_worker_stdstream_dispatcher.add_handler("ray_print_logs", show)


def _is_chatter(line: str) -> bool:
    return any(words in line for words in RAY_CHATTER)
