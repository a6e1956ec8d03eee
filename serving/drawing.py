"""How the next token of a text is chosen: the likeliest, one drawn from a seed, one that a JSON schema allows.

Texts that choose in different ways are written side by side. The engine takes the likeliest token of each row of scores
and tells its probability; what is here brings the rows into that form, as processors of transformers' continuous
batching. A drawn token is that with the highest score after Gumbel noise (Gumbel, 1954; Maddison, Tarlow and Minka,
2014), and the noise is a hash of the text's seed, the place in the text and the token: it is the same whatever else is
written meanwhile.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTemperatureLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)

from cluster.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LEAST_TEMPERATURE = 1e-3
"""Below, the likeliest token is taken, which is what comes of it anyway: divided by much less, logits become infinite,
and the engine ends for everybody."""

LARGEST_SCHEMA = 65_536
"""Characters of a schema. One of so many small parts takes about a second to be read, on one core."""

UNFOLLOWED = "response_format: to hold a text to this schema takes more than is allowed for"

SPACED: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written, which is how Python writes it: a model that may put spaces anywhere may never end."""

WORD = 32  # bits
GOLDEN = -1640531527  # 2**32 over the golden ratio, as 32 bits with a sign: columns lie as far apart as they can


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; by default always the likeliest.

    Attributes:
        temperature: 0 for the likeliest token, 1 for the model's own probabilities.
        top_p: the likeliest tokens that together are this probable; the others are never drawn.
        seed: of what is drawn; None for one that nobody knows.
        schema: a JSON schema, as JSON, that the text keeps to; None where it need not.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    schema: str | None = None

    @property
    def draws(self) -> bool:
        """Whether any token but the likeliest can come."""
        return self.temperature >= LEAST_TEMPERATURE

    def of_text(self, index: int, grammar: "Grammar | None") -> dict[str, Any]:
        """What the engine is told of the text with this index, of a request that may want several."""
        told: dict[str, Any] = {"grammar": grammar} if grammar else {}
        if self.draws:
            seed = random.getrandbits(64) if self.seed is None else self.seed
            told |= {"temperature": self.temperature, "top_p": self.top_p, "seed": f"{seed}:{index}"}
        return told


# --- what a text may go on with ---------------------------------------------------------------------------------------


class Grammar:
    """Follows one text through a schema.

    Args:
        matcher: llguidance's, of the schema.
        width: tokens that the model knows.

    Attributes:
        failed: whether the text could not be followed to its end: the schema takes more than is allowed for.
    """

    def __init__(self, matcher: Any, width: int) -> None:
        self._matcher, self._width = matcher, width
        self._followed = 0
        self.failed = False  # kept, since the matcher can be asked nothing while another thread has it compute

    def copy(self) -> "Grammar":
        """The same, at the same place in the text."""
        return Grammar(self._matcher.deep_copy(), self._width)

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        """The tokens that may come after these: booleans, (width,). None may where the text cannot be followed."""
        self._matcher.consume_tokens(list(tokens[self._followed :]))
        self._followed = len(tokens)
        bitmask = self._matcher.compute_bitmask()
        self.failed = self._matcher.is_error()
        if self.failed:
            return torch.zeros(self._width, dtype=torch.bool)
        words = torch.frombuffer(bytearray(bitmask), dtype=torch.int32)
        bits = (words.unsqueeze(1) >> torch.arange(WORD, dtype=torch.int32)) & 1
        return bits.flatten()[: self._width].bool()


class Grammars:
    """Makes grammars of schemas, for the texts of one model.

    Args:
        tokenizer: of the model.
        width: tokens that the model knows.
        ends: tokens after which a text is over.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", width: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._width, self._ends = tokenizer, width, list(ends)
        self._read: Any = None

    def of(self, schema: str) -> Grammar:
        """The grammar of a JSON schema. Takes a moment; the first one about a second.

        Raises:
            UserError: the schema is none that a text can be held to, or the library that does it is missing.
        """
        if len(schema) > LARGEST_SCHEMA:
            raise UserError(f"response_format: the schema has more than {LARGEST_SCHEMA} characters")
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise UserError(
                "response_format: this server has not the extra 'schema' (pip install '.[schema]')"
            ) from None
        if self._read is None:
            self._read = from_tokenizer(self._tokenizer, n_vocab=self._width, eos_token=self._ends)
        try:
            written = LLMatcher.grammar_from_json_schema(schema, overrides=SPACED)
            matcher = LLMatcher(self._read, written, log_level=0)
        except ValueError:
            matcher = None
        if matcher is None or matcher.is_error():  # its message quotes the schema
            raise UserError("response_format: the schema is none that a text can be held to")
        grammar = Grammar(matcher, self._width)
        if not grammar.allowed(()).any():  # found when it is first followed: it refers to itself without end, say
            raise UserError(UNFOLLOWED)
        return grammar


# --- what the engine does with each row of scores ---------------------------------------------------------------------


def processors() -> ContinuousBatchingLogitsProcessorList:
    """All of it, for an engine that takes the likeliest token."""
    made = ContinuousBatchingLogitsProcessorList(
        [
            _Allowed(),
            ContinuousBatchingTemperatureLogitsWarper(TemperatureLogitsWarper(1.0)),
            _TopP(TopPLogitsWarper(1.0)),
            _Drawn(),
        ]
    )
    made.tensors_required = len(made.logits_processor)
    return made


class _Allowed(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Leaves the tokens that each text's grammar allows.

    What is allowed is known when the last token is, and is kept here until the scores come: an engine that prepares a
    batch while it computes the one before cannot do that.
    """

    supported_kwargs = {"grammar": Grammar}
    ignored_kwargs = ()

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        states = [request.state for request in requests_with_new_token]
        grammars = [state.logit_processor_kwargs.get("grammar") for state in states]
        self._rows = {
            row: grammar.allowed(state.generated_tokens)
            for row, (state, grammar) in enumerate(zip(states, grammars, strict=True))
            if grammar
        }
        return torch.zeros(len(states), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        for row, allowed in self._rows.items():
            if allowed.any():  # else all is as good as nothing: whoever reads the text sees that it failed
                scores[row] = scores[row].masked_fill(~allowed, -torch.inf)
        return scores


class _TopP(ContinuousBatchingTopPLogitsWarper):  # type: ignore[misc]
    """Sorts nothing where nothing would be left out; only asked where that costs no wait for a device."""

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        kept = tensor_arg[: scores.size(0)].view(dtype=torch.float32)
        if scores.device.type == "cpu" and bool((kept >= 1).all()):
            return scores
        left: Tensor = super().__call__(scores, tensor_arg)
        return left


class _Drawn(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Has the drawn token of each row that draws be its likeliest, at its own probability.

    A token less likely than two of an even draw is told as that likely: it could not be the likeliest otherwise.
    """

    supported_kwargs = {"seed": str}
    ignored_kwargs = ()

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        states = [request.state for request in requests_with_new_token]
        return torch.tensor([_key(state) for state in states], dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        keys = tensor_arg[: scores.size(0)]
        if scores.device.type != "cpu":  # where to choose rows would be to wait for the device
            return torch.where((keys != 0).unsqueeze(1), _drawn(scores, keys), scores)
        rows = keys.nonzero().squeeze(1)
        if len(rows):
            scores[rows] = _drawn(scores[rows], keys[rows])
        return scores


def _drawn(scores: Tensor, keys: Tensor) -> Tensor:
    """Scores whose likeliest token is the drawn one: (rows, width) like ``scores``, for keys (rows,)."""
    width = scores.size(1)
    likely = scores.log_softmax(-1)
    token = (likely + gumbel(keys, width)).argmax(-1, keepdim=True)
    told = likely.gather(1, token).exp().clamp(min=2 / width)
    others = ((1 - told) / (width - 1)).log()
    return others.expand(-1, width).scatter(1, token, told.log())


def _key(state: Any) -> int:
    """What the next token of a text is drawn by: a whole number of 32 bits; 0 where it is not drawn."""
    seed = state.logit_processor_kwargs.get("seed")
    if seed is None:
        return 0
    digest = hashlib.blake2b(f"{seed}:{len(state.generated_tokens)}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, signed=True) or 1


def gumbel(keys: Tensor, width: int) -> Tensor:
    """Gumbel noise by a hash of keys and columns: (rows, width) for int32 keys (rows,).

    The hash is the one of 32 bits with the least bias that Wellons (Hash Prospector, 2018) found of its form.
    """
    mixed = keys.unsqueeze(1) + torch.arange(width, dtype=torch.int32, device=keys.device) * GOLDEN
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (32 - shift)) - 1))) * factor
    even = ((mixed & 0x7FFFFF).float() + 0.5) / 2**23  # which a float holds exactly
    return -(-even.log()).log()
