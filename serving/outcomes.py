"""What those who run a model tell: answers, batches, what waits, and why there is no answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Spend = Callable[[int], None]
"""Is told of tokens that were computed for whoever asked."""


def free(tokens: int) -> None:
    """Of those that nobody pays for."""


class OverloadedError(Exception):
    """The queue is full, or too long to answer in time.

    Attributes:
        retry_after: seconds from now, when it should not be any more.
        full_for: seconds in which whoever else asks for the same owner need not try; 0 where one might find room.
    """

    def __init__(self, retry_after: float, full_for: float = 0.0) -> None:
        super().__init__(f"retry after {retry_after:.3f} s")
        self.retry_after, self.full_for = retry_after, full_for


class TooManyTokensError(Exception):
    """A request wants more computed than one may; ``most`` is what it may."""

    def __init__(self, most: int) -> None:
        super().__init__(f"more than {most} tokens")
        self.most = most


class ExpiredError(Exception):
    """The deadline passed before the model was free."""


class ClosedError(Exception):
    """The scheduler takes no more requests."""


@dataclass(frozen=True)
class Batch:
    """What one run of the model did, for those who count.

    Attributes:
        items: in it.
        tokens: of all items.
        padded_tokens: what was computed, padding and all.
        seconds: from beginning to end.
        oldest_waited: seconds that its oldest item had waited.
        share: among how many batches that ran side by side the device was shared; for a part of a batch that was
            computed for several models, times the whole over the part.
    """

    items: int
    tokens: int
    padded_tokens: int
    seconds: float
    oldest_waited: float
    share: float = 1


class Backlog(NamedTuple):
    """What waits for a model, for those who decide how many there should be.

    Attributes:
        tokens: of the waiting items whose length is known.
        unmeasured: waiting items whose length is not known yet.
    """

    tokens: int
    unmeasured: int


class Written(NamedTuple):
    """An answer that a model wrote token by token.

    Attributes:
        tokens: how many.
    """

    answer: Any
    tokens: int


class Answered(NamedTuple):
    """What became of a request.

    Attributes:
        answers: one for each value, in order.
        lengths: the tokens of each.
        written: the tokens that each answer took, where the model wrote it.
        runs: the start and the end of each batch that computed some of them, on the scheduler's clock.
    """

    answers: list[Any]
    lengths: list[int]
    written: list[int]
    runs: list[tuple[float, float]]

    @classmethod
    def blank(cls, values: int) -> "Answered":
        """Of a request with so many values, before any has an answer."""
        return cls([None] * values, [0] * values, [0] * values, [])
