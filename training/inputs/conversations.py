"""Conversations: lists of messages with ``role`` and ``content``, as a request sends them and as a table holds them."""

import json
from collections.abc import Mapping
from typing import Any

from cluster.errors import UserError

Message = dict[str, str]

SPOKEN = ("role", "content")
"""What a message has."""

OF_OTHERS = ("name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio")
"""What a message may have elsewhere, and no model here reads."""

NOTHING: list[Any] = [None, "", [], {}]
"""What they may be, for clients that send every field they know."""

UNFIT = "the model's chat template takes no such order of roles"

_part = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_said_of_one = {
    "role": {"type": "string"},
    "content": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _part}]},
}
CONVERSATION: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": _said_of_one,
        "required": ["role"],
        "additionalProperties": {"enum": NOTHING},
    },
    "minItems": 1,
}
"""The JSON Schema of what :func:`conversation` takes; that the last message is not the assistant's is not said."""


def conversation(value: Any, where: str) -> list[Message]:
    """The messages of a request, of which nothing is lost; the texts of a content in parts become a line each.

    Args:
        where: they stand in the request, for what is told.

    Raises:
        UserError: they are none, or hold what no model here reads; or the last is the assistant's, so that nothing is
            asked. Says where, never what.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        raise UserError(f"{where}: a list of messages with 'role' and 'content' is needed, at least one")
    messages = [_message(message, f"{where}[{place}]") for place, message in enumerate(value)]
    if unanswered(messages) != messages:
        raise UserError(
            f"{where}[{len(messages) - 1}]: the last message is the assistant's; it must be one that is to be answered"
        )
    return messages


def _message(message: Mapping[str, Any], where: str) -> Message:
    more = [name for name, value in message.items() if name not in SPOKEN and value not in NOTHING]
    for name in OF_OTHERS:
        if name in more:
            raise UserError(f"{where}.{name}: this model does not take that")
    if more:
        raise UserError(f"{where}: only {' and '.join(SPOKEN)} may stand in a message")
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        content = "\n".join(_text(part, f"{where}.content[{place}]") for place, part in enumerate(content))
    if not isinstance(role, str) or not isinstance(content, str | None):
        raise UserError(f"{where}: a 'role' and a 'content', both strings, are needed")
    return {"role": role, "content": content or ""}


def _text(part: Any, where: str) -> str:
    """The text of a part of a message."""
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise UserError(f"{where}: a part of the type text is needed, with a text; this model reads no other")
    if part.keys() - {"type", "text"}:
        raise UserError(f"{where}: only type and text may stand in a part")
    return str(part["text"])


def said(text: str) -> Message:
    """A text as a message of the user."""
    return {"role": "user", "content": text}


def unanswered(messages: list[Message]) -> list[Message]:
    """A conversation without the answer that may end it."""
    return messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages


def listed(text: str) -> Any:
    """A cell that is a text: JSON of messages, as a CSV file holds them, or what the user says."""
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, list) and value and all(isinstance(one, dict) and "role" in one for one in value):
            return value
    return [said(text)]
