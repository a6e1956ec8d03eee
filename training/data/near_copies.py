"""Texts that differ only in a few characters.

Two texts are near copies when the Jaccard similarity of their sets of character 5-grams reaches a threshold; case,
width of characters and spacing are ignored. Nothing depends on words, so Chinese is compared as well as English.

Candidates are found by min-wise hashing (Broder 1997) in bands (Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, 3.4). All minima are taken from one hash of each gram (Li, Owen and Zhang 2012), or from several where a text
has too few grams to compete for each minimum. Candidates are then compared exactly, so that whatever is found is a near
copy; a pair that just reaches the threshold is overlooked with a chance of :data:`MISSED`.

The texts lie on the disk. In memory there are the grams of a part of them, and some 300 bytes of each.
"""

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.rows import digest
from training.mapped import mapped

GRAM = 5
FACTORS = [pow(0x9E3779B97F4A7C15, step, 2**64) for step in range(1, GRAM + 1)]  # of the characters of a gram

MINIMA = 256
"""How many minima are kept of a text's hashes; the first byte of a hash tells which it competes for."""

MISSED = 1e-6

HASHES = ((256, 1, 16), (64, 16, 64), (16, 64, 256), (4, 256, 1_024), (1, 1_024, np.inf))
"""How many hashes are taken of each gram of a text that has so many of them, from and to: at least as many hashes as
compete for all minima by far. Texts near a boundary are hashed in both ways, or they would not find each other."""

PART = 1_000_000
"""Characters that are hashed at once; their grams take some hundred bytes each."""

PART_TEXTS = 4_000
"""Texts that are hashed at once, fewer than twelve bits count; their minima take some thousand bytes each."""

CACHED = 2_048
"""Texts whose grams are kept while candidates are compared."""

BITS = 512
"""Of a text's sketch, which has the bit of each of its grams set: most candidates differ in more bits than two near
copies can, and are not compared further."""

NOTHING = np.iinfo(np.uint64).max  # where no gram competes for a minimum

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def first_of_copies(texts: Iterable[str | None], similarity: float) -> Ints:
    """For each text the index of the earliest kept text that it is a near copy of, or its own where it is kept.

    A text is kept when no kept text before it is a near copy. An empty text is a copy of nothing.
    """
    distinct = _Distinct(texts)
    first = np.arange(len(distinct.texts))
    kept = _Index(distinct.texts, similarity)
    for text in range(len(distinct.texts)):
        earliest = min(kept.copies(text), default=None)
        if earliest is None:
            kept.add(text)
        else:
            first[text] = earliest
    return distinct.spread(first)


def components(texts: Iterable[str | None], similarity: float) -> Ints:
    """A number for each text, equal for texts linked by a chain of near copies: the smallest index among them."""
    distinct = _Distinct(texts)
    groups = Groups(len(distinct.texts))
    seen = _Index(distinct.texts, similarity)
    for text in range(len(distinct.texts)):
        seen.join_copies(text, groups)
    return distinct.spread(groups.numbers())


def copied_in(texts: Iterable[str | None], others: Iterable[str | None], similarity: float) -> npt.NDArray[np.bool_]:
    """Which of ``texts`` are near copies of any of ``others``."""
    distinct = _Distinct(others, texts)
    index = _Index(distinct.texts, similarity)
    before = distinct.counts[0]
    known = int(distinct.of[:before].max(initial=-1)) + 1  # the distinct texts of `others` come first
    for other in range(known):
        index.add(other)
    copied = [
        bool(text) and (at < known or any(True for _ in index.copies(at))) for at, text in enumerate(distinct.texts)
    ]
    return np.array(copied, dtype=bool)[distinct.of[before:]]


def comparable(text: str | None) -> str:
    """What is compared of a text."""
    return " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())


class _Distinct:
    """The texts that differ at all, in the order of their first appearance: equal ones need not be compared.

    Attributes:
        texts: what is compared of each.
        of: for each given text the index of its distinct one. Each empty text is distinct.
        counts: how many texts each of ``given`` holds.
    """

    def __init__(self, *given: Iterable[str | None]) -> None:
        self.counts = [0] * len(given)
        marks: list[int] = []
        column = mapped(self._compared(given, marks), pa.schema([("text", pa.string())]))["text"]
        _, first, of = np.unique(np.array(marks, dtype=np.uint64), return_index=True, return_inverse=True)
        order = np.argsort(first)
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        self.of: Ints = places[of]
        self._first: Ints = first[order]
        self.texts = _Texts(column, self._first)

    def _compared(self, given: Sequence[Iterable[str | None]], marks: list[int]) -> Iterator[pa.Table]:
        """What is compared of the given texts, part by part; ``marks`` gets a number of each, equal for equal texts."""
        for place, texts in enumerate(given):
            for part in _parts(map(comparable, texts)):
                marks += [digest(text) if text else number for number, text in enumerate(part, len(marks))]
                self.counts[place] += len(part)
                yield pa.table({"text": pa.array(part, pa.string())})

    def spread(self, indices: Ints) -> Ints:
        """For each given text the first given text that equals the distinct one its own points to."""
        return np.asarray(self._first[indices[self.of]], dtype=np.int64)


class _Texts(Sequence[str]):
    """The texts at some rows of a column, each read when it is asked for."""

    def __init__(self, column: pa.ChunkedArray, rows: Ints) -> None:
        self._column, self._rows = column, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._column[int(self._rows[index])].as_py()


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts as lists that are not too long, nor hold too much."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (len(part) == PART_TEXTS or characters + len(text) > PART):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


class Groups:
    """Disjoint groups of the numbers 0 to n-1, joined pair by pair."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low

    def numbers(self) -> Ints:
        """The smallest member of each number's group."""
        return np.array([self.root(number) for number in range(len(self._parent))], dtype=np.int64)

    def root(self, number: int) -> int:
        """The smallest member of a number's group."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number


class _Bands:
    """By which numbers candidates find each other: texts that agree in all minima of a band have its number in common.

    Attributes:
        sizes: how many different grams each text has.
        sketches: of each text, as bytes: shape ``[texts, BITS / 8]``.
    """

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        self.sizes = np.zeros(len(texts), dtype=np.int64)
        self.sketches = np.zeros((len(texts), BITS // 8), dtype=np.uint8)
        width = _band_width(similarity)
        keys: list[list[tuple[Ints, npt.NDArray[np.uint32]]]] = [[] for _ in HASHES]
        start = 0
        for part in _parts(texts):
            owners, grams = _grams(part)
            sizes = np.bincount(owners, minlength=len(part))
            for way, (hashes, least, most) in zip(keys, HASHES, strict=True):
                chosen = (sizes >= max(1, similarity * least)) & (sizes <= most)
                places, among = np.cumsum(chosen) - 1, chosen[owners]
                minima = _minima(places[owners[among]], grams[among], int(chosen.sum()), hashes)
                way.append((np.flatnonzero(chosen) + start, _band_keys(minima, width)))
            self.sizes[start : start + len(part)] = sizes
            self.sketches[start : start + len(part)] = _sketches(owners, grams, len(part))
            start += len(part)
        owners, numbers = _shared(keys)
        order = np.argsort(owners, kind="stable")
        self._numbers = numbers[order]
        self._starts = np.searchsorted(owners[order], np.arange(len(texts) + 1))

    def of(self, text: int) -> list[int]:
        """The numbers of a text."""
        numbers: list[int] = self._numbers[self._starts[text] : self._starts[text + 1]].tolist()
        return numbers


def _shared(ways: list[list[tuple[Ints, npt.NDArray[np.uint32]]]]) -> tuple[Ints, Ints]:
    """Texts, and the numbers of their bands that another text has, too. Those of two ways of hashing are not alike."""
    owners, numbers = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    count = 0
    for way in ways:
        hashed = np.concatenate([texts for texts, _ in way]) if way else owners[0]
        for band in np.concatenate([keys for _, keys in way]).T if way else ():
            _, number, times = np.unique(band, return_inverse=True, return_counts=True)
            several = times[number] > 1
            owners.append(hashed[several])
            numbers.append(number[several] + count)
            count += len(times)
    return np.concatenate(owners), np.concatenate(numbers)


def _band_width(similarity: float) -> int:
    """The most minima to a band with which a pair of just that similarity is hardly ever overlooked."""
    widths = (width for width in (16, 8, 4, 2) if (1 - similarity**width) ** (MINIMA // width) <= MISSED)
    return next(widths, 1)


def _grams(texts: list[str]) -> tuple[Ints, Hashes]:
    """The different grams of every text as hashes of 52 bits, with the index of the text each belongs to, in order.

    A text shorter than a gram is one gram; an empty one has none.
    """
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    points = np.append(points, np.zeros(GRAM, dtype=np.uint64))
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    counts = np.where(lengths == 0, 0, np.maximum(lengths - GRAM + 1, 1))
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
    positions = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(len(owners))
    ends = np.repeat(starts + lengths, counts)
    hashes = np.zeros(len(owners), dtype=np.uint64)
    for step, factor in enumerate(FACTORS):
        at = positions + step
        hashes += np.where(at < ends, points[at] + np.uint64(1), np.uint64(0)) * np.uint64(factor)
    both = np.sort(owners << np.uint64(52) | _mix(hashes) >> np.uint64(12))
    both = both[np.diff(both, prepend=NOTHING) != 0]
    return (both >> np.uint64(52)).astype(np.int64), both & np.uint64(2**52 - 1)


def _sketches(owners: Ints, grams: Hashes, texts: int) -> npt.NDArray[np.uint8]:
    bits = np.zeros((texts, BITS), dtype=bool)
    bits[owners, grams.astype(np.int64) % BITS] = True
    return np.packbits(bits, axis=1)


def _minima(owners: Ints, grams: Hashes, texts: int, hashes: int) -> Hashes:
    """The least hash of each text's grams for each first byte, of shape ``[texts, MINIMA]``."""
    least = np.full((texts, MINIMA), NOTHING, dtype=np.uint64)
    for number in range(1, hashes + 1):
        hashed = _mix(grams + np.uint64(number << 52))
        np.minimum.at(least.reshape(-1), owners * MINIMA + (hashed >> np.uint64(56)).astype(np.int64), hashed)
    return least


def _band_keys(minima: Hashes, width: int) -> npt.NDArray[np.uint32]:
    """A hash of each band of ``width`` minima, of shape ``[texts, bands]``."""
    keys = np.zeros((len(minima), MINIMA // width), dtype=np.uint64)
    for some in np.split(minima, width, axis=1):
        keys = _mix(keys ^ some)
    return (keys >> np.uint64(32)).astype(np.uint32)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Index:
    """Finds the near copies of a text among those that were added."""

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        self._texts = texts
        self._similarity = similarity
        self._bands = _Bands(texts, similarity)
        self._with_band: dict[int, dict[int, list[int]]] = defaultdict(dict)  # a band's number to group to texts
        self._grams = functools.lru_cache(CACHED)(self._different_grams)

    def add(self, text: int, group: int = 0) -> None:
        for band in self._bands.of(text):
            self._with_band[band].setdefault(group, []).append(text)

    def copies(self, text: int) -> Iterator[int]:
        """The added texts that are near copies."""
        candidates: set[int] = set()
        for band in self._bands.of(text):
            for texts in self._with_band.get(band, {}).values():
                candidates.update(texts)
        return (other for other in candidates if self._similar(text, other))

    def join_copies(self, text: int, groups: Groups) -> None:
        """Joins the text with the groups of its near copies and adds it.

        One copy in a group is enough, so that a thousand copies of one template do not take a million comparisons.
        """
        compared: set[int] = set()
        for band in self._bands.of(text):
            for group, texts in self._with_band.get(band, {}).items():
                if groups.root(group) == groups.root(text):
                    continue
                fresh = (other for other in texts if other not in compared)
                for other in fresh:
                    compared.add(other)
                    if self._similar(text, other):
                        groups.join(text, other)
                        break
        self.add(text, groups.root(text))

    def _similar(self, one: int, other: int) -> bool:
        ours, theirs = (int.from_bytes(self._bands.sketches[text].tobytes()) for text in (one, other))
        differing = (1 - self._similarity) / (1 + self._similarity) * int(self._bands.sizes[[one, other]].sum())
        if (ours ^ theirs).bit_count() > differing + 1e-9:  # at least as many grams are in one of them alone
            return False
        first, second = self._grams(one), self._grams(other)
        shared = len(first & second)
        return shared >= self._similarity * (len(first) + len(second) - shared)

    def _different_grams(self, text: int) -> frozenset[str]:
        plain = self._texts[text]
        return frozenset(plain[at : at + GRAM] for at in range(max(len(plain) - GRAM + 1, 1 if plain else 0)))
