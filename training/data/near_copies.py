"""Texts that differ only in a few characters.

Two texts are near copies when the Jaccard similarity of their sets of character 5-grams reaches a threshold; case,
width of characters and spacing are ignored. Nothing depends on words, so Chinese is compared as well as English.

Candidates are found by prefix filtering (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007): with the
grams of every text sorted from the rarest to the commonest, two sets x and y of similarity t or more share a gram among
the first |x| - ceil(t |x|) + 1 of x and the like of y. Unlike MinHash this misses no pair, and the rare grams that it
looks up are shared by few texts. Every candidate is then compared exactly.
"""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

GRAM = 5
STEPS = [step * 0x9E3779B97F4A7C15 % 2**64 for step in range(1, GRAM + 1)]  # tells a gram's characters apart

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def first_of_copies(texts: Sequence[str | None], similarity: float) -> Ints:
    """For each text the index of the earliest kept text that it is a near copy of, or its own where it is kept.

    A text is kept when no kept text before it is a near copy. An empty text is a copy of nothing.
    """
    distinct = _Distinct(texts)
    first = np.arange(len(distinct.texts))
    kept = _Index(_GramSets(distinct.texts), similarity)
    for text in range(len(distinct.texts)):
        earliest = min(kept.copies(text), default=None)
        if earliest is None:
            kept.add(text)
        else:
            first[text] = earliest
    return distinct.spread(first)


def components(texts: Sequence[str | None], similarity: float) -> Ints:
    """A number for each text, equal for texts linked by a chain of near copies: the smallest index among them."""
    distinct = _Distinct(texts)
    groups = Groups(len(distinct.texts))
    seen = _Index(_GramSets(distinct.texts), similarity)
    for text in range(len(distinct.texts)):
        seen.join_copies(text, groups)
    return distinct.spread(groups.numbers())


def copied_in(texts: Sequence[str | None], others: Sequence[str | None], similarity: float) -> npt.NDArray[np.bool_]:
    """Which of ``texts`` are near copies of any of ``others``."""
    distinct = _Distinct([*others, *texts])
    index = _Index(_GramSets(distinct.texts), similarity)
    known = int(distinct.of[: len(others)].max(initial=-1)) + 1  # the distinct texts of `others` come first
    for other in range(known):
        index.add(other)
    copied = np.array(
        [text < known or any(True for _ in index.copies(text)) for text in range(len(distinct.texts))], bool
    )
    nothing = np.array([not text for text in distinct.texts], bool)
    found: npt.NDArray[np.bool_] = (copied & ~nothing)[distinct.of[len(others) :]]
    return found


def comparable(text: str | None) -> str:
    """What is compared of a text."""
    return " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())


class _Distinct:
    """The texts that differ at all, in the order of their first appearance: equal ones need not be compared.

    Attributes:
        texts: what is compared of each.
        of: for each given text the index of its distinct one. Each empty text is distinct.
    """

    def __init__(self, texts: Sequence[str | None]) -> None:
        self.texts: list[str] = []
        self._first: list[int] = []
        place: dict[str, int] = {}
        of = []
        for index, text in enumerate(texts):
            plain = comparable(text)
            if not plain or plain not in place:
                place[plain] = len(self.texts)
                self.texts.append(plain)
                self._first.append(index)
            of.append(place[plain])
        self.of = np.array(of, dtype=np.int64)

    def spread(self, indices: Ints) -> Ints:
        """For each given text the first given text that equals the distinct one its own points to."""
        first = np.array(self._first, dtype=np.int64)
        return np.asarray(first[indices[self.of]] if len(first) else first, dtype=np.int64)


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


class _GramSets:
    """The grams of every text as ranks, sorted from the rarest gram to the commonest."""

    def __init__(self, texts: list[str]) -> None:
        owners, hashes = _grams(texts)
        unique, codes, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        rank = np.empty(len(unique), dtype=np.int64)
        rank[np.lexsort((unique, counts))] = np.arange(len(unique))
        pairs = np.unique(owners * max(len(unique), 1) + rank[codes])  # sorted by text, then by rank; no gram twice
        self._ranks = pairs % max(len(unique), 1)
        self._starts = np.searchsorted(pairs // max(len(unique), 1), np.arange(len(texts) + 1))
        self._sets: dict[int, frozenset[int]] = {}

    def ranks(self, text: int) -> Ints:
        return self._ranks[self._starts[text] : self._starts[text + 1]]

    def size(self, text: int) -> int:
        return int(self._starts[text + 1] - self._starts[text])

    def set(self, text: int) -> frozenset[int]:
        if text not in self._sets:
            self._sets[text] = frozenset(self.ranks(text).tolist())
        return self._sets[text]


def _grams(texts: list[str]) -> tuple[Ints, Hashes]:
    """Every text's grams as 64-bit hashes, with the index of the text each belongs to.

    A text shorter than a gram is one gram. Hashes of different grams are taken to be different: with a million
    grams the chance of one collision is 3e-8.
    """
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    counts = np.where(lengths == 0, 0, np.maximum(lengths - GRAM + 1, 1))
    owners = np.repeat(np.arange(len(texts)), counts)
    offsets = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = starts[owners] + offsets
    ends = starts[owners] + lengths[owners]
    hashes = np.zeros(len(owners), dtype=np.uint64)
    for step in range(GRAM):
        at = positions + step
        inside = at < ends
        value = np.where(inside, points[np.minimum(at, max(len(points) - 1, 0))] if len(points) else 0, 0)
        hashes = _mix(hashes ^ (value.astype(np.uint64) + np.uint64(STEPS[step])))
    return owners, hashes


def _mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): each bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Index:
    """Finds the near copies of a text among those that were added."""

    def __init__(self, sets: _GramSets, similarity: float) -> None:
        self._sets = sets
        self._similarity = similarity
        self._with_gram: dict[int, dict[int, list[int]]] = defaultdict(dict)  # gram to group to texts

    def add(self, text: int, group: int = 0) -> None:
        for gram in self._prefix(text):
            self._with_gram[gram].setdefault(group, []).append(text)

    def copies(self, text: int) -> Iterator[int]:
        """The added texts that are near copies."""
        candidates: set[int] = set()
        for gram in self._prefix(text):
            for texts in self._with_gram.get(gram, {}).values():
                candidates.update(texts)
        return (other for other in candidates if self._similar(text, other))

    def join_copies(self, text: int, groups: Groups) -> None:
        """Joins the text with the groups of its near copies and adds it.

        One copy in a group is enough, so that a thousand copies of one template do not take a million comparisons.
        """
        compared: set[int] = set()
        for gram in self._prefix(text):
            for group, texts in self._with_gram.get(gram, {}).items():
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
        small, large = sorted((self._sets.size(one), self._sets.size(other)))
        if small < self._similarity * large:
            return False
        shared = len(self._sets.set(one) & self._sets.set(other))
        return shared >= self._similarity * (small + large - shared)

    def _prefix(self, text: int) -> list[int]:
        size = self._sets.size(text)
        length = size - math.ceil(self._similarity * size - 1e-9) + 1 if size else 0
        ranks: list[int] = self._sets.ranks(text)[:length].tolist()
        return ranks
