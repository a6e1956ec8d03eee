"""Stretches of a long text: cover it, overlap enough, and each token belongs to where it is farthest from an edge."""

import itertools

import pytest

from training.inputs.stretches import OVERLAP, cut, owners


@pytest.mark.parametrize("room", [8, 13, 62])
def test_every_text_is_covered_by_as_few_stretches_as_do(room: int) -> None:
    overlap = int(room * OVERLAP)
    for tokens in range(1, 12 * room):
        stretches = cut(tokens, room)
        assert stretches[0][0] == 0
        assert stretches[-1][1] == tokens
        assert len({end - start for start, end in stretches}) == 1
        assert all(end - start <= room for start, end in stretches)
        for (_, end), (start, _) in itertools.pairwise(stretches):
            assert end - start >= overlap
        assert len(stretches) == 1 or overlap + (len(stretches) - 1) * (room - overlap) < tokens, (
            "one stretch less would do"
        )


@pytest.mark.parametrize("room", [8, 13, 62])
def test_a_token_belongs_to_the_stretch_where_it_is_farthest_from_an_edge(room: int) -> None:
    for tokens in range(1, 9 * room):
        stretches = cut(tokens, room)
        for token, own in enumerate(owners(stretches).tolist()):
            depths = [depth(token, stretch, tokens) for stretch in stretches]
            assert depths[own] == max(depths)


def depth(token: int, stretch: tuple[int, int], tokens: int) -> float:
    """How far from an edge of the stretch; the ends of the text are none. Negative outside."""
    start, end = stretch
    left = token - start if start or token < start else float("inf")
    right = end - 1 - token if end < tokens or token >= end else float("inf")
    return min(left, right)


def test_no_text_is_one_empty_stretch() -> None:
    assert cut(0, 62) == [(0, 0)]
    assert owners([(0, 0)]).tolist() == []
