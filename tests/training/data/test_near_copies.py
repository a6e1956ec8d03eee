"""Near copies against the definition, written out plainly."""

import functools
import random
import string
from pathlib import Path

import numpy as np
import pytest

from training import mapped
from training.data import near_copies
from training.data.near_copies import comparable, components, copied_in, first_of_copies

CHINESE = (
    "距离川沙公路较近但是交指示不对如果蔡陆线的话会非常麻烦建议用别房间简单商务大床很有宽整体感觉经济实惠错早餐太差"
)


@functools.cache
def grams(text: str) -> set[str]:
    plain = comparable(text)
    return {plain[start : start + 5] for start in range(max(len(plain) - 4, 1))} if plain else set()


def similarity(one: str, other: str) -> float:
    first, second = grams(one), grams(other)
    return len(first & second) / len(first | second) if first and second else 0.0


def made_up(seed: int, letters: str) -> list[str]:
    """Texts of many lengths, and changed copies of them; some are empty, short or equal."""
    chance = random.Random(seed)
    originals = ["".join(chance.choices(letters, k=chance.randrange(0, 120))) for _ in range(60)]
    changed = []
    for text in chance.choices(originals, k=120):
        characters = list(text)
        for _ in range(chance.randrange(0, 4)):
            if characters:
                characters[chance.randrange(len(characters))] = chance.choice(letters)
        changed.append("".join(characters))
    texts = originals + changed
    chance.shuffle(texts)
    return texts


@pytest.mark.parametrize("letters", [string.ascii_lowercase[:6] + " ", CHINESE])
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_all_near_copies_are_found_and_no_others(seed: int, threshold: float, letters: str) -> None:
    texts = made_up(seed, letters)
    pairs = [
        (one, other)
        for other in range(len(texts))
        for one in range(other)
        if similarity(texts[one], texts[other]) >= threshold
    ]
    assert pairs
    kept: dict[int, int] = {}
    for text in range(len(texts)):
        kept[text] = min((one for one, other in pairs if other == text and kept[one] == one), default=text)
    assert first_of_copies(texts, threshold).tolist() == list(kept.values())
    group = list(range(len(texts)))
    for one, other in pairs * 3:  # chains are short: three rounds reach their ends
        group[one] = group[other] = min(group[one], group[other])
    found = components(texts, threshold)
    assert all(found[one] == found[other] for one, other in pairs)
    assert len(set(found.tolist())) == len(set(group))
    expected = [max(similarity(text, other) for other in texts[:50]) >= threshold for text in texts[50:]]
    assert copied_in(texts[50:], texts[:50], threshold).tolist() == expected


def test_texts_that_are_taken_in_parts_have_the_same_copies(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few are taken at a time, and though they lie on the disk."""
    texts = made_up(3, string.ascii_lowercase[:6] + " ")
    at_once = [first_of_copies(texts, 0.8).tolist(), components(texts, 0.8).tolist()]
    for name, value in {"PART": 300, "PART_TEXTS": 7, "CACHED": 2}.items():
        monkeypatch.setattr(near_copies, name, value)
    monkeypatch.setattr(mapped, "PART", 1_000)
    assert [first_of_copies(texts, 0.8).tolist(), components(texts, 0.8).tolist()] == at_once


def test_case_width_and_spacing_are_no_difference() -> None:
    texts = ["Where is my card?", "where  is MY card?", "ｗｈｅｒｅ ｉｓ ｍｙ ｃａｒｄ？", "Where is my cart?"]
    assert first_of_copies(texts, 1.0).tolist() == [0, 0, 0, 3]


def test_nothing_is_a_copy_of_nothing() -> None:
    assert first_of_copies(["", None, " ", "a", "a"], 0.9).tolist() == [0, 1, 2, 3, 3]
    assert components([], 0.9).tolist() == []
    assert not copied_in(["", "a"], [""], 0.9).any()


def test_many_copies_of_one_text_are_no_trouble() -> None:
    template = "dear customer, your order {} has left our house and will reach you within the next three working days, "
    texts = ["the same answer as every time"] * 20_000 + [(template * 2).format(n, n) for n in range(5_000)]
    assert len(np.unique(components(texts, 0.8))) == 2
