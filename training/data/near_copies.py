"""Texts that differ only in a few characters.

Two texts are near copies when the Jaccard similarity of their sets of character 5-grams reaches a threshold; case,
width of characters and spacing are ignored. Nothing depends on words, so Chinese is compared as well as English.

Candidates are found by prefix filtering (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007): with the
grams of every text sorted from the rarest to the commonest, two sets x and y of similarity t or more share a gram among
the first |x| - ceil(t |x|) + 1 of x and the like of y. Unlike MinHash this misses no pair, and the rare grams that it
looks up are shared by few texts. Every candidate is then compared exactly.

Grams take many times the memory of their texts. So those of a part of the texts at a time are made, and made again for
each of three passes: how rare is each, which of the rare ones stand in two texts, and in which texts do those stand.
"""

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

GRAM = 5
STEPS = [step * 0x9E3779B97F4A7C15 % 2**64 for step in range(1, GRAM + 1)]  # tells a gram's characters apart

PART = 1_000_000
"""Characters whose grams are made at once; some hundred bytes each."""

KEPT = 5 * PART
"""Characters whose grams are not made again, but kept from pass to pass."""

BUCKETS = 2**22
"""Grams are counted by this many numbers. Two that share one seem more common than they are, which costs time alone."""

CACHED = 2_048
"""Texts whose grams are kept while candidates are compared."""

BITS = 512
"""Of a text's sketch, which has the bit of each of its grams set: most candidates differ in more bits than two near
copies can, and are not compared further."""

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def first_of_copies(texts: Sequence[str | None], similarity: float) -> Ints:
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


def components(texts: Sequence[str | None], similarity: float) -> Ints:
    """A number for each text, equal for texts linked by a chain of near copies: the smallest index among them."""
    distinct = _Distinct(texts)
    groups = Groups(len(distinct.texts))
    seen = _Index(distinct.texts, similarity)
    for text in range(len(distinct.texts)):
        seen.join_copies(text, groups)
    return distinct.spread(groups.numbers())


def copied_in(texts: Sequence[str | None], others: Sequence[str | None], similarity: float) -> npt.NDArray[np.bool_]:
    """Which of ``texts`` are near copies of any of ``others``."""
    distinct = _Distinct([*others, *texts])
    index = _Index(distinct.texts, similarity)
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


class _RareGrams:
    """Of every text those of its rarest grams that stand among the rarest of another text, too, by number.

    Attributes:
        sizes: how many different grams each text has.
        sketches: of each text, as bytes: shape ``[texts, BITS / 8]``.
    """

    def __init__(self, texts: list[str], similarity: float) -> None:
        self._texts = texts
        self._parts = list(self._made()) if sum(map(len, texts)) <= KEPT else None
        self.sizes = np.zeros(len(texts), dtype=np.int64)
        self.sketches = np.zeros((len(texts), BITS // 8), dtype=np.uint8)
        counts = np.zeros(BUCKETS, dtype=np.int64)
        for owners, hashes in self._all():
            self._describe(owners, hashes)
            _count(counts, hashes)
        common = np.zeros(BUCKETS, dtype=np.int64)
        rare = functools.partial(self._rare, counts, similarity)
        kept = list(rare()) if self._parts is not None else None
        for _, hashes in kept or rare():
            _count(common, hashes)
        found = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64))]
        for owners, hashes in kept or rare():
            again = common[_bucket(hashes)] > 1
            found.append((owners[again], hashes[again]))
        owners, hashes = np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])
        _, numbers, texts_with = np.unique(hashes, return_inverse=True, return_counts=True)
        several = texts_with[numbers] > 1
        order = np.argsort(owners[several], kind="stable")
        self._numbers = numbers[several][order]
        self._starts = np.searchsorted(owners[several][order], np.arange(len(texts) + 1))

    def of(self, text: int) -> list[int]:
        """The numbers of a text's grams; equal grams have equal numbers."""
        numbers: list[int] = self._numbers[self._starts[text] : self._starts[text + 1]].tolist()
        return numbers

    def _describe(self, owners: Ints, hashes: Hashes) -> None:
        """Notes the sizes and sketches of a part's texts."""
        if not len(owners):
            return
        first, last = int(owners[0]), int(owners[-1]) + 1
        self.sizes[first:last] = np.bincount(owners - first, minlength=last - first)
        bits = np.zeros((last - first, BITS), dtype=bool)
        bits[owners - first, (hashes >> np.uint64(32)).astype(np.int64) % BITS] = True
        self.sketches[first:last] = np.packbits(bits, axis=1)

    def _rare(self, counts: Ints, similarity: float) -> Iterator[tuple[Ints, Hashes]]:
        """Part by part the grams of each text's prefix. Any order will do that is the same for all texts."""
        lengths = np.where(self.sizes > 0, self.sizes - np.ceil(similarity * self.sizes - 1e-9).astype(np.int64) + 1, 0)
        for owners, hashes in self._all():
            order = np.lexsort((counts[_bucket(hashes)], owners))  # of equal ones the lower hash, as they came
            begins = np.flatnonzero(np.diff(owners, prepend=-1))
            place = np.arange(len(owners)) - np.repeat(begins, np.diff(begins, append=len(owners)))
            first = place < lengths[owners]
            yield owners[first], hashes[order][first]

    def _all(self) -> Iterator[tuple[Ints, Hashes]]:
        return iter(self._parts) if self._parts is not None else self._made()

    def _made(self) -> Iterator[tuple[Ints, Hashes]]:
        """Part by part the different grams of each text, and the texts that they belong to."""
        start = 0
        while start < len(self._texts):
            end, characters = start, 0
            while end < len(self._texts) and characters < PART:
                characters += len(self._texts[end])
                end += 1
            owners, hashes = _grams(self._texts[start:end])
            order = np.lexsort((hashes, owners))
            owners, hashes = owners[order] + start, hashes[order]
            new = np.ones(len(owners), dtype=bool)
            new[1:] = (owners[1:] != owners[:-1]) | (hashes[1:] != hashes[:-1])
            yield owners[new], hashes[new]
            start = end


def _bucket(hashes: Hashes) -> Ints:
    return (hashes % np.uint64(BUCKETS)).astype(np.int64)


def _count(counts: Ints, hashes: Hashes) -> None:
    counts += np.bincount(_bucket(hashes), minlength=BUCKETS)


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

    def __init__(self, texts: list[str], similarity: float) -> None:
        self._texts = texts
        self._similarity = similarity
        self._rare = _RareGrams(texts, similarity)
        self._with_gram: dict[int, dict[int, list[int]]] = defaultdict(dict)  # gram to group to texts
        self._grams = functools.lru_cache(CACHED)(self._different_grams)

    def add(self, text: int, group: int = 0) -> None:
        for gram in self._rare.of(text):
            self._with_gram[gram].setdefault(group, []).append(text)

    def copies(self, text: int) -> Iterator[int]:
        """The added texts that are near copies."""
        candidates: set[int] = set()
        for gram in self._rare.of(text):
            for texts in self._with_gram.get(gram, {}).values():
                candidates.update(texts)
        return (other for other in candidates if self._similar(text, other))

    def join_copies(self, text: int, groups: Groups) -> None:
        """Joins the text with the groups of its near copies and adds it.

        One copy in a group is enough, so that a thousand copies of one template do not take a million comparisons.
        """
        compared: set[int] = set()
        for gram in self._rare.of(text):
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
        sizes = self._rare.sizes
        small, large = sorted((int(sizes[one]), int(sizes[other])))
        needed = self._similarity / (1 + self._similarity) * (small + large)
        if small < needed - 1e-9:
            return False
        ours, theirs = (int.from_bytes(self._rare.sketches[text].tobytes()) for text in (one, other))
        if min(sizes[one] - (ours & ~theirs).bit_count(), sizes[other] - (theirs & ~ours).bit_count()) < needed - 1e-9:
            return False
        shared = len(self._grams(one) & self._grams(other))
        return shared >= self._similarity * (small + large - shared)

    def _different_grams(self, text: int) -> frozenset[str]:
        plain = self._texts[text]
        return frozenset(plain[at : at + GRAM] for at in range(max(len(plain) - GRAM + 1, 1 if plain else 0)))
