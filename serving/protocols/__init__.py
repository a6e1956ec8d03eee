"""The forms in which clients ask. One file each: what a path and a body mean, and how answers are written back."""

from serving.protocols import huggingface, oip, openai, tei
from serving.protocols.form import Call, Composition, Endpoint, Find, MalformedError, WriteError

__all__ = ["Call", "Composition", "Endpoint", "MalformedError", "endpoint_of", "error_of"]

FINDERS: tuple[Find, ...] = (huggingface.find, openai.find, tei.find, oip.find)
ERRORS: dict[str, WriteError] = {openai.PREFIX: openai.error, oip.PREFIX: oip.error}


def endpoint_of(path: str) -> Endpoint | None:
    """Who is asked at a path, and in which form; None where nobody can be."""
    return next((endpoint for find in FINDERS if (endpoint := find(path))), None)


def error_of(path: str) -> WriteError:
    """How a refusal is written at a path, also one where nobody can be asked."""
    if tei.find(path):
        return tei.error
    return next((error for prefix, error in ERRORS.items() if path.startswith(prefix)), huggingface.error)
