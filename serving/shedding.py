"""While a model is full, HAProxy refuses by itself what the replica would refuse, at a small part of the price.

A replica that refuses a request says in a header for how long all others like it need not try, which is until a part of
what waits has been answered (`Scheduler`). Until then HAProxy answers in its place: what cannot be answered costs
nothing of the cores on which the rest is computed. Were the queue filled up again as soon as there is room for one,
the replica would refuse every few milliseconds, and each time some more on their way to it.

Like a request are those with the same path and the same key; `Edge` says so only where the path tells which model is
asked, and `LINES` heed it only where a single replica answers.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from serving.exchange import Headers, Request, refusal
from serving.outcomes import OverloadedError
from serving.refusals import FORMS

FULL = "x-headrace-full"
"""Milliseconds for which the replica takes no request like this one. HAProxy keeps it to itself."""

REFUSED = "x-headrace-refused"
"""How many HAProxy has refused since it last said so. It lets no client say it."""

LONGEST = 60_000
ROUND = 1_000_000_000  # clocks are compared in milliseconds modulo this, which is eleven days and fits 32 bits
SENTINEL = 97  # seconds that no words of a refusal hold but where the time to return stands

TABLE = (
    "backend headrace_full",
    f"    stick-table type binary len 20 size 10k expire {2 * LONGEST}ms store gpt(2)",
)
"""A section of HAProxy's: until when those like a request are refused, and in how many seconds they may return."""

LINES = (
    f"http-request del-header {REFUSED}",
    "http-request set-var(txn.key) req.hdr(authorization) if METH_POST",
    "http-request set-var(txn.like) path,concat(' ',txn.key),sha1 if METH_POST",
    f"http-request set-var(txn.now) date(0,ms),mod({ROUND}) if METH_POST",
    "http-request set-var(txn.left) var(txn.like),table_gpt(0,headrace_full),sub(txn.now) if METH_POST",
    f"acl full var(txn.left) -m int 1:{LONGEST}",
    "http-request set-var(txn.wait) var(txn.like),table_gpt(1,headrace_full) if full",
    "http-request set-var(txn.id) req.hdr(x-request-id) if full",
    "http-request set-var(txn.id) uuid() if full !{ var(txn.id) -m found }",
    "http-request set-var(proc.refused) var(proc.refused),add(1) if full",
)
"""What HAProxy's frontend is told before it is told how to answer."""

AFTER = (
    f"http-request set-header {REFUSED} %[var(proc.refused)] if METH_POST {{ var(proc.refused) -m int gt 0 }}",
    "http-request set-var(proc.refused) int(0) if METH_POST",
    f"acl says_full res.hdr({FULL}) -m found",
    "acl alone be_name,nbsrv -m int eq 1",
    "http-response track-sc0 var(txn.like) table headrace_full if says_full alone",
    f"http-response set-var(txn.until) date(0,ms),mod({ROUND}) if says_full alone",
    f"http-response set-var(txn.for) res.hdr({FULL}) if says_full alone",
    "http-response sc-set-gpt(0,0) var(txn.until),add(txn.for) if says_full alone",
    "http-response sc-set-gpt(1,0) res.hdr(retry-after) if says_full alone",
    f"http-response del-header {FULL}",
)
"""What it is told after that."""


def lines(folder: Path) -> Iterator[str]:
    """What HAProxy's frontend is told; the words of its refusals are written into ``folder``.

    They belong behind the lines that drop an ``x-request-id`` that is not safe, since answers repeat it.
    """
    yield from LINES
    told = refusal(OverloadedError(SENTINEL))
    for number, form in enumerate(FORMS):
        words = json.dumps(form.write(told, "%[var(txn.id)]")).replace(str(SENTINEL), "%[var(txn.wait)]")
        place = folder / f"full-{number}.json"
        place.write_text(words, encoding="utf-8")
        message = told.message.replace(str(SENTINEL), "%[var(txn.wait)]").replace(" ", "\\ ")
        yield (
            f"http-request return status {told.status} content-type application/json hdr retry-after %[var(txn.wait)] "
            f"hdr x-error-message {message} hdr x-request-id %[var(txn.id)] hdr x-content-type-options nosniff "
            f"hdr cache-control no-store lf-file {place} if full {{ path_reg ^{form.path}$ }}"
        )
    yield from AFTER


def said(error: OverloadedError) -> Headers:
    """The header by which HAProxy learns of a model that is full; none where others may still fit."""
    milliseconds = min(int(1000 * error.full_for), LONGEST)
    return ((FULL, str(milliseconds)),) if milliseconds else ()


def refused(request: Request) -> int:
    """How many requests HAProxy has refused, of those that nobody has counted yet."""
    count = request.headers.get(REFUSED, "")
    return int(count) if count.isdecimal() else 0
