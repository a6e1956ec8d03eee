"""What of a text gets a tag: tokens while learning, units when answering.

A unit is a word, decided by its first token; or a token; or, where a row came as a list of tokens, one of those.

Tags are numbers: 0 is outside of all entities, ``1 + 2 type`` begins one, ``2 + 2 type`` continues it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.inputs.entities import Places

NO_TARGET = -100
"""The tag of a token that the loss leaves out: padding, and white space."""

Offsets = npt.NDArray[np.int32]


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and after a text."""
    encoding = tokenizer.encode("a")
    special = encoding.special_tokens_mask
    body = special.index(0) if 0 in special else len(special)
    after = len(special) - special[::-1].index(0) if 0 in special else len(special)
    return encoding.ids[:body], encoding.ids[after:]


def part_mark(tokenizer: Any) -> str | None:
    """What the tokens of a word begin with after its first, where the tokenizer knows words: ``##``."""
    mark: str | None = getattr(tokenizer.model, "continuing_subword_prefix", None) or None
    return mark


def example(text: str, places: Places | None, encoding: Any, mark: str | None) -> dict[str, Any]:
    """All that is needed of a text: its tokens and where they stand; its units, by the numbers of their first tokens.

    Args:
        places: where the tokens stand that a row came as; None for a text.
        encoding: the tokenizer's, without special tokens.
        mark: what tokens begin with that continue a word; None where each token is a unit.
    """
    offsets = np.array([stripped(text, *one) for one in encoding.offsets], dtype=np.int32).reshape(-1, 2)
    if places is None:
        begins = [not token.startswith(mark) for token in encoding.tokens] if mark else _token_starts(offsets)
        units: npt.NDArray[Any] = np.flatnonzero(begins)
        starts, ends = offsets[units, 0], _last_ends(offsets, units)
    else:
        units, starts, ends = _given(offsets, places)
    return {
        "text": text,
        "input_ids": np.array(encoding.ids, dtype=np.int32),
        "starts": offsets[:, 0],
        "ends": offsets[:, 1],
        "units": units.astype(np.int32),
        "unit_starts": starts,
        "unit_ends": ends,
    }


def tags(example: Mapping[str, Any]) -> list[int]:
    """The tag of each token by the entities that it overlaps."""
    starts, ends = np.asarray(example["starts"]), np.asarray(example["ends"])
    real = starts < ends
    numbers = np.where(real, 0, NO_TARGET)
    for start, end, label in np.reshape(example["target"], (-1, 3)).astype(np.int64):
        inside = np.flatnonzero((starts < end) & (ends > start) & real)
        numbers[inside] = 2 + 2 * label
        numbers[inside[:1]] = 1 + 2 * label
    listed: list[int] = numbers.tolist()
    return listed


def found(scores: npt.NDArray[np.float32], example: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """The entities that the likeliest tags of an example's units tell of: start, end, type, score.

    As everywhere a tag that continues no entity of its type begins one. The score is the mean of the units'.

    Args:
        scores: probabilities, of shape ``[tokens or more, tags]``.

    Returns:
        An array of shape ``[entities, 4]``.
    """
    own = scores[np.asarray(example["units"], dtype=np.int64)]
    best, sure = own.argmax(-1), own.max(-1, initial=0)
    starts, ends = example["unit_starts"], example["unit_ends"]
    lines: list[list[float]] = []
    before, members = -2, 0
    for unit in np.flatnonzero(best).tolist():
        label, inside = divmod(int(best[unit]) - 1, 2)
        if inside and before == unit - 1 and lines[-1][2] == label:
            members += 1
            lines[-1][1] = ends[unit]
            lines[-1][3] += (float(sure[unit]) - lines[-1][3]) / members
        else:
            members = 1
            lines.append([starts[unit], ends[unit], label, float(sure[unit])])
        before = unit
    return np.array(lines, dtype=np.float64).reshape(-1, 4)


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The place of a token without white space around; some tokenizers hold a word's space to be part of it."""
    inside = text[start:end]
    if inside[:1].isspace() or inside[-1:].isspace():
        start += len(inside) - len(inside.lstrip())
        end = max(start, end - len(inside) + len(inside.rstrip()))
    return start, end


def _token_starts(offsets: Offsets) -> npt.NDArray[np.bool_]:
    """All tokens but white space and the later bytes of a character that has several."""
    reached = np.maximum.accumulate(np.concatenate([[0], offsets[:, 1]]))[:-1]
    starts: npt.NDArray[np.bool_] = (offsets[:, 0] >= reached) & (offsets[:, 0] < offsets[:, 1])
    return starts


def _last_ends(offsets: Offsets, units: npt.NDArray[Any]) -> Offsets:
    """Where the last token of each unit ends."""
    return np.maximum.reduceat(offsets[:, 1], units) if len(units) else np.zeros(0, dtype=np.int32)


def _given(offsets: Offsets, places: Places) -> Sequence[npt.NDArray[np.int32]]:
    """The given tokens that the tokenizer leaves something of: the first token in each, its start, its end."""
    firsts = np.searchsorted(offsets[:, 1], [start for start, _ in places], side="right").tolist()
    kept = [
        (first, start, end)
        for first, (start, end) in zip(firsts, places, strict=True)
        if first < len(offsets) and offsets[first, 0] < end
    ]
    return list(np.array(kept, dtype=np.int32).reshape(-1, 3).T)
