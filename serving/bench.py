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
from typing import Any

import aiohttp
import numpy as np

from cluster.errors import UserError
from serving import client

SEED = 7
PATIENCE = 120.0
"""Seconds after which a request counts as unanswered."""

LATE = 0.005
"""Seconds by which the latest percent of requests may leave late before the figures tell more of us than of others."""

TEXT = "I ordered two weeks ago and the parcel has still not arrived, please tell me where it is"
PERCENTILES = (50, 90, 95, 99)


def bench(
    url: str, model: str, rate: float, seconds: float, rows: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Asks one input in each request for so many seconds.

    Args:
        rows: asked one after the other, again and again; without, one text.

    Returns:
        ``requests``, how they ended (``outcomes``: HTTP statuses, or ``unanswered``), answers a second, and of the
        answered ones the ``milliseconds`` at some percentiles.

    Raises:
        UserError: the model reads no plain text and there are no rows; the server refuses.
        RunError: nobody answers there.
    """
    signature = client.about(url, model)["signature"]
    bodies = [json.dumps({"inputs": one}, default=_base64).encode() for one in _inputs(signature, rows)]
    due = _moments(rate, seconds)
    sent = [bodies[place % len(bodies)] for place in range(len(due))]
    ended = asyncio.run(_ask(client.address_of(url, model), sent, due))
    answered = [one for one in ended if one[0] == "200"]
    waits = np.array([wait for _, wait, _ in answered]) * 1000
    late = float(np.percentile([lateness for _, _, lateness in ended], 99)) if ended else 0.0
    took = max((moment + wait for moment, (_, wait, _) in zip(due, ended, strict=True)), default=seconds)
    found: dict[str, Any] = {
        "requests": len(due),
        "outcomes": dict(Counter(outcome for outcome, _, _ in ended)),
        "answers a second": round(len(answered) / max(took, seconds), 1),
        "milliseconds": {
            f"p{share}": round(float(np.percentile(waits, share)), 1) for share in PERCENTILES if len(waits)
        },
    }
    if late > LATE:
        found["warning"] = (
            f"a percent of the requests left {late * 1000:.0f} ms late or more: this machine cannot ask at that rate"
        )
    return found


def _inputs(signature: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] | None) -> list[Any]:
    """The model's columns of the rows; one text where there are none."""
    shapes = signature["input"].get("anyOf", [signature["input"]])
    if rows:
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


async def _ask(address: str, bodies: Sequence[bytes], due: Sequence[float]) -> list[tuple[str, float, float]]:
    """Of each request how it ended, how long after it was due, and how long after that it left."""
    headers = {**client.headers(), "Content-Type": "application/json"}
    limits = aiohttp.ClientTimeout(total=PATIENCE)
    trusted = ssl.create_default_context(cafile=client.authorities())
    connector = aiohttp.TCPConnector(limit=0, ssl=trusted)
    async with aiohttp.ClientSession(headers=headers, timeout=limits, connector=connector) as session:
        started = time.perf_counter()

        async def one(body: bytes, moment: float) -> tuple[str, float, float]:
            late = time.perf_counter() - started - moment
            try:
                async with session.post(address, data=body) as answer:
                    await answer.read()
                    outcome = str(answer.status)
            except (aiohttp.ClientError, TimeoutError):
                outcome = "unanswered"
            return outcome, time.perf_counter() - started - moment, late

        asked = []
        for body, moment in zip(bodies, due, strict=True):
            await asyncio.sleep(max(0.0, started + moment - time.perf_counter()))
            asked.append(asyncio.ensure_future(one(body, moment)))
        return await asyncio.gather(*asked)
