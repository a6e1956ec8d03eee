"""What the forms have in common: a body becomes a :class:`Call`, its answers become a body."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.drawing import Sampling
from serving.exchange import read_json
from serving.lineup import Served
from serving.writer import Piece

Body = Any
"""The JSON value of a request or an answer."""


class MalformedError(ValueError):
    """A body is no such request; the message names the field."""


@dataclass(frozen=True)
class Call:
    """What a request asks of a model, in whatever form.

    Attributes:
        inputs: as :meth:`training.tasks.task.Task.rows` takes them.
        parameters: of the answers.
        write: the answers, and the tokens of each input, as a body.
    """

    inputs: list[Any]
    parameters: Mapping[str, Any]
    write: Callable[[list[Any], Sequence[int]], Body]

    @property
    def items(self) -> int:
        """How many answers are to be computed."""
        return len(self.inputs)


@dataclass(frozen=True)
class Composition:
    """What a request asks of a model that writes from left to right, where more than whole answers is wanted.

    Attributes:
        inputs: as :meth:`training.tasks.task.Task.rows` takes them.
        parameters: ``max_new_tokens`` and ``stop``, as the task takes them.
        sampling: how tokens are drawn.
        choices: texts for each input.
        write: the whole texts, each as one piece, all of one input before those of the next, and the tokens of each
            prompt, as a body.
        event: a piece of the text with this index as the data of a server-sent event; None where nothing is streamed.
        last: the data of the events after the last piece, given the tokens of all prompts and of all texts.
    """

    inputs: list[Any]
    parameters: Mapping[str, Any]
    sampling: Sampling
    choices: int
    write: Callable[[Sequence[Piece], Sequence[int]], Body]
    event: Callable[[int, Piece], Body] | None = None
    last: Callable[[int, int], Sequence[Body | str]] = lambda prompts, texts: ()

    @property
    def items(self) -> int:
        """How many texts are to be written."""
        return len(self.inputs) * self.choices


@dataclass(frozen=True)
class Endpoint:
    """Who is asked at a path, and in which form.

    Attributes:
        call: what a body asks of a model.
        model: as the path names it; None where the body does, or nobody.
        version: as the path names it.
        named: the model that a body names; None where it names none and the only one is meant.
        read: the value of a body's bytes, given the headers and how many inputs may be asked at most.
        media: whether a picture or a sound may be the whole body.
        loose: whether its clients do not say that they send JSON.
    """

    call: Callable[[Body, Served], Call | Composition]
    model: str | None = None
    version: str | None = None
    named: Callable[[Body], str | None] = lambda body: None
    read: Callable[[bytes, Mapping[str, str], int], Body] = lambda body, headers, most: read_json(body)
    media: bool = False
    loose: bool = False


Find = Callable[[str], Endpoint | None]
"""What a path asks for, where a form has one."""


def an_object(body: Body) -> dict[str, Any]:
    """A body that must be an object.

    Raises:
        MalformedError: it is none.
    """
    if not isinstance(body, dict):
        raise MalformedError("the body must be a JSON object")
    return body


def texts(value: Any, where: str) -> list[str]:
    """One text or a list of them, as a list.

    Raises:
        MalformedError: it is something else, or holds half a character.
    """
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
        raise MalformedError(f"{where}: a string or a list of strings is needed")
    for index, one in enumerate(several):
        whole_characters(one, f"{where}[{index}]")
    return several


def whole_characters(value: Any, where: str) -> None:
    """JSON can spell half a character (a lone surrogate), which no tokenizer takes.

    Raises:
        MalformedError: there is one, however deep.
    """
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MalformedError(f"{where}: not valid Unicode text") from None
    elif isinstance(value, dict):
        for name, inner in value.items():
            whole_characters(name, where)
            whole_characters(inner, where)  # a column's name is the client's word, too
    elif isinstance(value, list):
        for inner in value:
            whole_characters(inner, where)


def only_for(served: Served, *tasks: str) -> None:
    """Refuses a model that does something else.

    Raises:
        MalformedError: names what it does.
    """
    task = served.predictor.task.name
    if task not in tasks:
        raise MalformedError(f"model: '{served.name}' does {task}; ask it at /models/{served.name}")


def whole_numbers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with ``5`` for ``5.0``, which JSON does not tell apart."""
    floats = {name for name, value in parameters.items() if isinstance(value, float) and value.is_integer()}
    return {name: int(value) if name in floats else value for name, value in parameters.items()}
