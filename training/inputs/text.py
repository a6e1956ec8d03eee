"""Text to tokens: what a task that reads text columns has in common with every other one.

A :class:`Reader` is made once from the recipe and the base, kept beside the encoded data and in the bundle, and then
reads rows the same way wherever they come from.
"""

import contextlib
import datetime as dt
import functools
import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cluster.errors import UserError
from training.inputs.cells import spelled

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LONGEST = 512
"""Tokens kept where neither the recipe nor the base sets a limit."""

READABLE = (str, int, float, Decimal, dt.date, dt.time)
"""Types of a value that has a spelling; a ``bool`` is an ``int``, a ``datetime`` a ``date``."""

MOST_MARKS = 30
"""Combining marks in a row, as Unicode has it for texts that come in streams (UAX #15, Stream-Safe Text Format): to put
more of them in order takes the square of their number."""

JOINER = "\u034f"
"""What parts a longer row of marks, and shows nothing."""

LAST_SIGN = 0x1FFFF
"""Beyond it are no marks."""

Tokens = list[int]

_without_weights = ContextVar("without_weights", default=False)


class Reader:
    """Reads one or several text columns as tokens.

    Attributes:
        columns: the text columns, joined in this order by the tokenizer's separator token.
        tokenizer: the base's own.
        max_length: tokens kept of one input, special tokens included.
        unicode: the form that texts are brought to: NFC, NFKC, NFD, NFKD or none.
    """

    def __init__(
        self, columns: Sequence[str], tokenizer: "PreTrainedTokenizerFast", max_length: int, unicode: str = "none"
    ) -> None:
        self.columns = list(columns)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.unicode = unicode
        tokenizer.model_max_length = max_length  # so that transformers.pipeline cuts where we cut
        tokenizer.backend_tokenizer.enable_truncation(max_length)
        tokenizer.backend_tokenizer.no_padding()

    # --- made from a base, kept in a folder ---------------------------------------------------------------------

    @classmethod
    def learn(cls, columns: Sequence[str], base: Path, max_length: int | None = None, unicode: str = "none") -> Self:
        """The reader of a base: as many tokens as the recipe, its tokenizer and its positions all allow.

        Raises:
            UserError: the base has no fast tokenizer.
        """
        tokenizer = open_tokenizer(base)
        return cls(columns, tokenizer, longest_input(base, tokenizer, max_length), unicode)

    @classmethod
    def load(cls, settings: Mapping[str, Any], folder: Path) -> Self:
        """The reader that :meth:`save` kept in ``folder`` and ``settings``."""
        return cls(tokenizer=open_tokenizer(folder), **settings)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the tokenizer to ``folder`` and returns the rest as JSON."""
        self.tokenizer.save_pretrained(folder)
        return {"columns": self.columns, "max_length": self.max_length, "unicode": self.unicode}

    # --- rows to tokens -----------------------------------------------------------------------------------------

    def row(self, index: int, value: Any) -> Mapping[str, Any]:
        """The input of a request at ``index``, a string or an object with the columns, as a row.

        Raises:
            UserError: the input has the wrong type or lacks a column; says which, never its content.
        """
        return as_row(index, value, self.columns)

    def text(self, row: Mapping[str, Any]) -> str:
        """What is read of a row, in the Unicode form of the training rows; a missing value is nothing."""
        return self.joint.join(in_form(text, self.unicode) for text in self.texts(row))

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """What each column of a row says."""
        return [spelled(row[column]) for column in self.columns]

    @property
    def joint(self) -> str:
        """What stands between the columns."""
        return f" {self.tokenizer.sep_token or ''} "

    def read(self, rows: Sequence[Mapping[str, Any]]) -> list[Tokens]:
        """The tokens of each row, cut to ``max_length``, the special ones kept."""
        return self.tokens([self.text(row) for row in rows])

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text, cut to ``max_length``, the special ones kept."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
        return [encoding.ids for encoding in encodings]

    def pad(self, tokens: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask``, both of shape ``[texts, longest]``."""
        input_ids, attention_mask = padded(tokens, self.tokenizer.pad_token_id)
        return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one input."""
        return row_schema(self.columns)

    def from_pretrained(self, model_class: Any, folder: Path, **settings: Any) -> "PreTrainedModel":
        """The model of ``folder`` in fp32, which knows our padding token: decoders find their last token by it."""
        model = from_pretrained(model_class, folder, **settings)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return model


CELL = {"type": ["string", "number", "boolean", "null"]}
"""The JSON Schema of one column of such a row."""


def as_row(index: int, value: Any, columns: Sequence[str]) -> Mapping[str, Any]:
    """The input of a request at ``index``, a string or an object with the text columns, as a row.

    Raises:
        UserError: it has the wrong type or lacks a column; says which, never its content.
    """
    if isinstance(value, str):
        if len(columns) > 1:
            raise UserError(f"inputs[{index}]: this model reads an object with {', '.join(columns)}")
        return {columns[0]: value}
    if not isinstance(value, Mapping):
        raise UserError(f"inputs[{index}]: a string or an object is needed, not {type(value).__name__}")
    for column in columns:
        if column not in value:
            raise UserError(f"inputs[{index}].{column}: missing")
        cell = value[column]
        if cell is not None and not isinstance(cell, READABLE):
            raise UserError(f"inputs[{index}].{column}: a string is needed, not {type(cell).__name__}")
    return value


def row_schema(columns: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of what :func:`as_row` takes."""
    row = {
        "type": "object",
        "properties": dict.fromkeys(columns, CELL),
        "required": list(columns),
    }
    return {"anyOf": [{"type": "string"}, row]} if len(columns) == 1 else row


def padded(tokens: Sequence[Sequence[int]], fill: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sequences side by side, padded with ``fill``, and a mask of what they hold; both ``[sequences, longest]``."""
    longest = max(map(len, tokens), default=0)
    values = np.full((len(tokens), longest), fill, dtype=np.int64)
    mask = np.zeros_like(values)
    for row, one in enumerate(tokens):
        values[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return values, mask


def in_form(text: str, form: str) -> str:
    """``text`` in a Unicode form; in the form that it has for ``none``."""
    return text if form == "none" else unicodedata.normalize(cast(Any, form), marks_parted(text)[0])


def marks_parted(text: str) -> tuple[str, Sequence[int]]:
    """A text whose longer rows of combining marks are parted, and which character of the text each of its own is."""
    if text.isascii() or len(text) <= MOST_MARKS:
        return text, range(len(text))
    signs = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    others = np.flatnonzero(~_marks()[np.minimum(signs, LAST_SIGN)])
    begins, ends = np.append(-1, others) + 1, np.append(others, len(signs))
    rows = zip(begins, ends, strict=True) if (ends - begins > MOST_MARKS).any() else ()
    cuts = [at for first, end in rows for at in range(first + MOST_MARKS, end, MOST_MARKS)]
    if not cuts:
        return text, range(len(text))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    return JOINER.join(pieces), np.insert(np.arange(len(signs)), cuts, np.array(cuts) - 1).tolist()


@functools.cache
def _marks() -> npt.NDArray[np.bool_]:
    """Of every character up to ``LAST_SIGN`` whether it is, or comes apart into, combining marks."""
    signs = map(chr, range(LAST_SIGN + 1))
    return np.array([bool(unicodedata.combining(unicodedata.normalize("NFKD", sign)[0])) for sign in signs])


def open_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a base or a bundle, with a padding token.

    Raises:
        UserError: it is none that can be had as a ``tokenizer.json``.
    """
    with quietly():  # a model of our own has a type that transformers remarks upon
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise UserError("model.base: its tokenizer has no tokenizer.json; convert it with transformers first")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def longest_input(base: Path, tokenizer: "PreTrainedTokenizerFast", max_length: int | None) -> int:
    """As many tokens as the recipe, the base's tokenizer and its positions all allow."""
    limits = [max_length, tokenizer.model_max_length, _positions(base)]
    return int(min(limit for limit in limits if limit))


def from_pretrained(model_class: Any, folder: Path, **settings: Any) -> "PreTrainedModel":
    """The model of ``folder`` in fp32, opened without a word: a new head is what we ask for.

    Its ``new_weights`` are the names of those that were drawn, for the folder has none that fit.

    Args:
        model_class: one of transformers' ``Auto`` classes, or a class of its own.
        settings: of the configuration, such as ``num_labels``.
    """
    with quietly():
        if _without_weights.get():
            config, _ = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, return_unused_kwargs=True, **settings
            )
            return cast("PreTrainedModel", model_class.from_config(config, dtype=torch.float32))
        model, told = model_class.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **settings,
        )
    model.new_weights = frozenset([*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])])
    return cast("PreTrainedModel", model)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """What :func:`from_pretrained` opens while the block runs has the shape alone; none of its weights is read."""
    before = _without_weights.set(True)
    try:
        yield
    finally:
        _without_weights.reset(before)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Has transformers say nothing but errors while the block runs, and show no progress bars from then on."""
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _positions(base: Path) -> int:
    """How many tokens the base has positions for."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    return min(getattr(config, "max_position_embeddings", None) or LONGEST, LONGEST)
