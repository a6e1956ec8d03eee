"""Where the words stand that a model reads of a row: which characters of which column, and which of the tokens."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.inputs.text import Reader, Tokens, in_form, marks_parted
from training.inputs.units import stripped

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts without spaces between words, as the names of their characters begin: each token is a word of its own."""

Place = tuple[int, int]
"""From and up to which character."""


@dataclass(frozen=True)
class Word:
    """A word as it came.

    Attributes:
        column: that it stands in.
        start: its first character there.
        end: the one after its last.
        text: these characters.
        tokens: which of the row's tokens it is made of.
    """

    column: str
    start: int
    end: int
    text: str
    tokens: tuple[int, ...]


def words_of(reader: Reader, row: Mapping[str, Any]) -> list[Word]:
    """The words of a row that a reader's tokens cover, in order; what was cut off is not among them.

    Each token of a column belongs to one word: white space to the one before it, or after it. Special ones stand for
    no text.
    """
    text = reader.text(row)
    encoding = reader.tokenizer.backend_tokenizer.encode(text)
    places = [stripped(text, *offsets) for offsets in encoding.offsets]
    special = special_tokens(reader)
    told = [token for token, number in enumerate(encoding.ids) if number not in special]
    found: list[Word] = []
    shift = 0
    for column, said in zip(reader.columns, reader.texts(row), strict=True):
        origin = origins(said, reader.unicode)
        own = [token for token in told if shift <= places[token][0] <= shift + len(origin)]
        groups = _groups(own, text, places, encoding.word_ids)
        stands = [[origin[at - shift] for token in group for at in range(*places[token])] for group in groups]
        found += _apart(column, said, groups, stands)
        shift += len(origin) + len(reader.joint)
    return found


def _apart(column: str, said: str, groups: Sequence[list[int]], stands: Sequence[list[Place]]) -> list[Word]:
    """The words of a column; those that one character was read as (``㍿``, a company, is four) are one."""
    found: list[Word] = []
    for tokens, covered in zip(groups, stands, strict=True):
        if not covered:
            continue
        start, end = min(start for start, _ in covered), max(end for _, end in covered)
        if found and start < found[-1].end:
            last = found.pop()
            start, tokens = last.start, [*last.tokens, *tokens]
        found.append(Word(column, start, end, said[start:end], tuple(tokens)))
    return found


def silent(reader: Reader, tokens: Sequence[int]) -> Tokens:
    """As many tokens that say nothing: padding, and the special ones where they stand."""
    special = special_tokens(reader)
    return [token if token in special else int(reader.tokenizer.pad_token_id) for token in tokens]


def special_tokens(reader: Reader) -> set[int]:
    """Tokens that stand for no text; the one for what the tokenizer does not know is none of them."""
    tokenizer = reader.tokenizer
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def origins(text: str, form: str) -> list[Place]:
    """For each character of a text in a Unicode form, the characters of the text as it came that it was made of."""
    whole = in_form(text, form)
    if whole == text:
        return [(index, index + 1) for index in range(len(text))]
    parted, stands = marks_parted(text)
    found: list[Place] = []
    start = 0
    for end in range(1, len(parted) + 1):
        piece = in_form(parted[start:end], form)
        if end == len(parted) or in_form(parted[start : end + 1], form) == piece + in_form(parted[end], form):
            found += [(stands[start], stands[end - 1] + 1)] * len(piece)  # the next character changes nothing of these
            start = end
    # One further on may, in rare mixtures of scripts: of such a text only the whole is known.
    return found if len(found) == len(whole) else [(0, len(text))] * len(whole)


def _groups(
    tokens: Sequence[int], text: str, places: Sequence[Place], numbers: Sequence[int | None]
) -> list[list[int]]:
    """The tokens of each word; ``numbers`` is the tokenizer's word for each token."""
    groups: list[list[int]] = []
    last = None  # the one before that is more than white space
    for token in tokens:
        blank = places[token][0] == places[token][1]
        if groups and (blank or last is None or _continue(text, places, last, token, numbers)):
            groups[-1].append(token)
        else:
            groups.append([token])
        last = last if blank else token
    return groups


def _continue(text: str, places: Sequence[Place], before: int, token: int, numbers: Sequence[int | None]) -> bool:
    """Whether a token belongs to the word of the one before it."""
    reached, start = places[before][1], places[token][0]
    if start < reached:  # a further byte of a character
        return True
    return numbers[before] == numbers[token] and not (_unspaced(text[reached - 1]) or _unspaced(text[start]))


def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED)
