"""How quickly a server answers at a given rate: an open loop, as the world outside is one.

Requests are due at random moments (a Poisson process) and are sent then, however many are unanswered. The wait of each
counts from the moment it was due, so that a server that falls behind cannot hide it by slowing whoever asks (Schroeder,
Wierman and Harchol-Balter, "Open Versus Closed: A Cautionary Tale", 2006).
"""

import asyncio
import base64
import json
import random
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from cluster.errors import HeadraceError, RunError, UserError
from serving import client

SEED = 7
PATIENCE = 120.0
"""Seconds after which a request counts as unanswered."""

LATE = 0.1
"""How late the latest percent of requests may leave, as a part of the usual wait; more of it would be our own doing."""

ANSWERED = "200"

TEXT = "I ordered two weeks ago and the parcel has still not arrived, please tell me where it is"
PERCENTILES = (50, 90, 95, 99)


class Ended(NamedTuple):
    """What became of a request.

    Attributes:
        outcome: an HTTP status, or ``unanswered``.
        wait: seconds from the moment it was due.
        late: seconds after that moment, when it left.
        told: why it was refused.
    """

    outcome: str
    wait: float
    late: float
    told: str | None = None


def bench(
    url: str, model: str, rate: float, seconds: float, rows: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Asks one input in each request for so many seconds.

    Args:
        rows: asked one after the other, again and again; without, one text.

    Returns:
        ``requests``, how they ended (``outcomes``: HTTP statuses, or ``unanswered``), answers a second, and of the
        answered ones the ``milliseconds`` at some percentiles. Where some were refused, why the first was
        (``refused``).

    Raises:
        UserError: the model reads no plain text and there are no rows, or no row in them; the server refuses, the
            description or every request.
        RunError: nobody answers there, or no request.
    """
    signature = client.about(url, model)["signature"]
    bodies = [json.dumps({"inputs": one}, default=_base64).encode() for one in _inputs(signature, rows)]
    due = _moments(rate, seconds)
    sent = [bodies[place % len(bodies)] for place in range(len(due))]
    ended = asyncio.run(_ask(client.address_of(url, model), sent, due))
    answered = [one for one in ended if one.outcome == ANSWERED]
    outcomes = dict(Counter(one.outcome for one in ended))
    refused = next((one for one in ended if one.told), None)
    if not answered:
        raise _nothing(url, outcomes, refused)
    waits = np.array([one.wait for one in answered]) * 1000
    took = max(moment + one.wait for moment, one in zip(due, ended, strict=True))
    found: dict[str, Any] = {
        "requests": len(due),
        "outcomes": outcomes,
        "answers a second": round(len(answered) / max(took, seconds), 1),
        "milliseconds": {f"p{share}": round(float(np.percentile(waits, share)), 1) for share in PERCENTILES},
    }
    if refused:
        found["refused"] = f"{refused.outcome} {refused.told}"
    if warning := _lateness(ended):
        found["warning"] = warning
    return found


def _lateness(ended: Sequence[Ended]) -> str | None:
    """What is said where requests left so late that it weighs against the waits, which begin when they are due."""
    late = 1000 * float(np.percentile([one.late for one in ended], 99))
    usual = 1000 * float(np.median([one.wait for one in ended if one.outcome == ANSWERED]))
    if late <= LATE * usual:
        return None
    return (
        f"a percent of the requests left {late:.1f} ms late or more, where half of the waits are {usual:.1f} ms or "
        "less: these figures tell of whoever asked, too; ask at a lower rate, or from another machine"
    )


def _nothing(url: str, outcomes: Mapping[str, int], refused: "Ended | None") -> HeadraceError:
    """What is said where no request was answered."""
    how = ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.items())
    if refused is None:
        return RunError(f"{url}: no request was answered ({how}) within {PATIENCE:.0f} s; nothing was measured")
    kind = RunError if refused.outcome.startswith("5") else UserError
    return kind(f"no request was answered ({how}): {refused.outcome} {refused.told}")


def _inputs(signature: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] | None) -> list[Any]:
    """The model's columns of the rows; one text where there are none."""
    shapes = signature["input"].get("anyOf", [signature["input"]])
    if rows is not None:
        if not rows:
            raise UserError("the file of --data has no rows to ask")
        columns = {name for shape in shapes for name in shape.get("properties", {})}
        return [{name: cell for name, cell in row.items() if name in columns} for row in rows]
    if not any(shape.get("type") == "string" and "contentMediaType" not in shape for shape in shapes):
        raise UserError("this model reads rows; name a file of them with --data")
    return [TEXT]


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _moments(rate: float, seconds: float) -> list[float]:
    """Moments, in seconds from the start, of a Poisson process; always the same ones."""
    draw, moments, now = random.Random(SEED), [], 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        moments.append(now)
    return moments or [0.0]


async def _ask(address: str, bodies: Sequence[bytes], due: Sequence[float]) -> list[Ended]:
    """How each request ended."""
    headers = {**client.headers(), "Content-Type": "application/json"}
    limits = aiohttp.ClientTimeout(total=PATIENCE)
    trusted = ssl.create_default_context(cafile=client.authorities())
    connector = aiohttp.TCPConnector(limit=0, ssl=trusted)
    async with aiohttp.ClientSession(headers=headers, timeout=limits, connector=connector) as session:
        started = time.perf_counter()

        async def one(body: bytes, moment: float) -> Ended:
            late, told = time.perf_counter() - started - moment, None
            try:
                async with session.post(address, data=body) as answer:
                    said, outcome = await answer.read(), str(answer.status)
                    told = None if answer.ok else client.refusal(said) or answer.reason
            except (aiohttp.ClientError, TimeoutError):
                outcome = "unanswered"
            return Ended(outcome, time.perf_counter() - started - moment, late, told)

        asked = []
        for body, moment in zip(bodies, due, strict=True):
            await asyncio.sleep(max(0.0, started + moment - time.perf_counter()))
            asked.append(asyncio.ensure_future(one(body, moment)))
        return await asyncio.gather(*asked)
