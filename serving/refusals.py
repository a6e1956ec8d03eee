"""How a refusal is worded, in each form in which clients ask. Knows no model, so that HAProxy can be told the words."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from serving.exchange import RefusalError

Body = dict[str, Any]

OF_OPENAI = {401: "authentication_error", 429: "rate_limit_error"}
OF_TEI = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
TEI_CALLS = re.compile(r"(?:/models/([^/]+))?/(predict|embed|similarity|rerank)")
"""What a client of text-embeddings-inference asks of a model, or of the only one."""
OPENAI = "(?:/models/[^/]+)?/v1/.*"
"""Where clients of OpenAI ask, also those whose base address is a model's."""


class Form(NamedTuple):
    """One of the forms of a refusal.

    Attributes:
        path: whole paths of those who read it, as a regular expression that HAProxy understands, too.
        write: a refusal, and the request's id, as a body.
    """

    path: str
    write: Callable[[RefusalError, str | None], Body]


def of_huggingface(refusal: RefusalError, request_id: str | None) -> Body:
    """A refusal with its stable code."""
    return {"error": {"code": refusal.code, "message": refusal.message, "request_id": request_id}}


def of_openai(refusal: RefusalError, request_id: str | None) -> Body:
    """A refusal as OpenAI's client reads it."""
    kind = OF_OPENAI.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    told = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    return {"error": told | {"request_id": request_id}}


def of_oip(refusal: RefusalError, request_id: str | None) -> Body:
    """A refusal as the Open Inference Protocol has it."""
    return {"error": refusal.message, "code": refusal.code, "request_id": request_id}


def of_tei(refusal: RefusalError, request_id: str | None) -> Body:
    """A refusal as clients of text-embeddings-inference read it."""
    kind = OF_TEI.get(refusal.status, "Backend")
    return {"error": refusal.message, "error_type": kind, "code": refusal.code, "request_id": request_id}


FORMS = (
    Form(TEI_CALLS.pattern, of_tei),
    Form(OPENAI, of_openai),
    Form("/v2/.*", of_oip),
    Form(".*", of_huggingface),
)
"""The first whose path it is."""


def body_of(path: str, refusal: RefusalError, request_id: str | None) -> Body:
    """A refusal as it is written at a path, also at one where nobody can be asked."""
    return next(form.write(refusal, request_id) for form in FORMS if re.fullmatch(form.path, path, re.DOTALL))
