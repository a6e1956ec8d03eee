"""Texts that were written, whole or piece by piece, in OpenAI's words."""

import re
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from transformers.convert_slow_tokenizer import bytes_to_unicode

from serving.lineup import Served
from serving.protocols.form import Body
from serving.writer import HALF_A_CHARACTER, Piece, WritingTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How tokenizers spell a byte that fall back to them."""

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
"""How those spell each that know nothing else, as GPT-2's."""


class Texts:
    """Texts that were written, in the words of one of the two paths.

    Args:
        kind: ``text_completion`` or ``chat.completion``.
        told: whether the log-probability of each token is wanted.
    """

    def __init__(self, kind: str, served: Served, *, told: bool) -> None:
        self._kind, self._told, self._tokenizer = kind, told, cast(WritingTask, served.predictor.task).tokenizer
        self._own = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        self._seen: dict[int, int] = {}

    def whole(self, pieces: Sequence[Piece], prompts: Sequence[int]) -> Body:
        """The answer to a request that streams nothing."""
        choices = [self._choice(index, piece, "message") for index, piece in enumerate(pieces)]
        usage = _usage(sum(prompts), sum(len(piece.tokens) for piece in pieces))
        return {**self._own, "object": self._kind, "choices": choices, "usage": usage}

    def event(self, index: int, piece: Piece) -> Body:
        """The data of one event."""
        return {**self._own, "object": self._streamed, "choices": [self._choice(index, piece, "delta")]}

    def last(self, prompts: int, tokens: int, *, counted: bool) -> list[Body | str]:
        """What closes a stream."""
        usage = {**self._own, "object": self._streamed, "choices": [], "usage": _usage(prompts, tokens)}
        return [*([usage] if counted else []), "[DONE]"]

    @property
    def _streamed(self) -> str:
        return self._kind if self._kind == "text_completion" else f"{self._kind}.chunk"

    def _choice(self, index: int, piece: Piece, name: str) -> Body:
        first = self._seen.get(index, 0)
        self._seen[index] = len(piece.tokens)
        choice: dict[str, Any] = {"index": index, "finish_reason": piece.end}
        if self._kind == "text_completion":
            return choice | {"text": piece.text, "logprobs": self._likelihoods(piece, first) if self._told else None}
        role = {} if first else {"role": "assistant"}
        logprobs = {"content": self._tokens(piece, first)} if self._told else None
        return choice | {name: {**role, "content": piece.text}, "logprobs": logprobs}

    def _likelihoods(self, piece: Piece, first: int) -> Body:
        tokens = [one["token"] for one in self._tokens(piece, first)]
        return {"tokens": tokens, "token_logprobs": piece.likelihoods[first:], "top_logprobs": None}

    def _tokens(self, piece: Piece, first: int) -> list[Body]:
        told = zip(piece.tokens[first:], piece.likelihoods[first:], strict=True)
        return [
            {
                "token": self._tokenizer.decode([token]),
                "logprob": said,
                "bytes": _bytes(self._tokenizer, token),
                "top_logprobs": [],
            }
            for token, said in told
        ]


def _bytes(tokenizer: "PreTrainedTokenizerFast", token: int) -> list[int] | None:
    """The bytes that a token stands for, of which several may make a character; None where its tokenizer hides them."""
    text = tokenizer.decode([token])
    if HALF_A_CHARACTER not in text:
        return list(text.encode())
    spelled = str(tokenizer.convert_ids_to_tokens(token))
    if one := BYTE.fullmatch(spelled):
        return [int(one[1], 16)]
    told = [BYTE_OF.get(character) for character in spelled]
    return None if None in told else cast(list[int], told)


def _usage(prompts: int, tokens: int) -> Body:
    return {"prompt_tokens": prompts, "completion_tokens": tokens, "total_tokens": prompts + tokens}
