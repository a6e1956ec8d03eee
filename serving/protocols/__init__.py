"""The forms in which clients ask. One file each: what a path and a body mean, and how answers are written back."""

from serving.protocols import huggingface, oip, openai, tei
from serving.protocols.form import Call, Composition, Endpoint, Find, MalformedError

__all__ = ["Call", "Composition", "Endpoint", "MalformedError", "endpoint_of"]

FINDERS: tuple[Find, ...] = (huggingface.find, openai.find, tei.find, oip.find)


def endpoint_of(path: str) -> Endpoint | None:
    """Who is asked at a path, and in which form; None where nobody can be."""
    return next((endpoint for find in FINDERS if (endpoint := find(path))), None)
