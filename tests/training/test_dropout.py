"""The masks of dropout on a processor: the share, what they follow from, and that nothing else is left changed."""

import math

import pytest
import torch
from torch.nn import functional

from training.dropout import keep_share, quick_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1,), (7, 11, 13), (1000, 1000)])
def test_a_mask_keeps_its_share(share: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    mask = keep_share(torch.full(shape, math.nan), share)
    assert set(mask.flatten().tolist()) <= {0.0, 1.0}
    spread = math.sqrt(share * (1 - share) / mask.numel())
    assert mask.mean().item() == pytest.approx(share, abs=5 * spread + 1e-5)


def test_neighbours_are_dropped_independently_of_one_another() -> None:
    """Four values share a drawn number: the share of pairs that are both kept is the square of one's."""
    torch.manual_seed(5)
    mask = keep_share(torch.empty(4_000_000), 0.7)
    for gap in (1, 2, 3, 4, 1024):
        assert (mask[gap:] * mask[:-gap]).mean().item() == pytest.approx(0.49, abs=0.002)


def test_masks_follow_from_the_seed_alone() -> None:
    def drawn() -> list[torch.Tensor]:
        torch.manual_seed(11)
        return [keep_share(torch.empty(5, 3), 0.5) for _ in range(2)]

    first, again = drawn(), drawn()
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(*first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool])
def test_any_kind_of_mask_is_filled_in_place(dtype: torch.dtype) -> None:
    whole = torch.zeros(6, 8, dtype=dtype)
    turned = whole.t()[1:7:2]
    torch.manual_seed(1)
    assert keep_share(turned, 1.0) is turned
    assert whole.sum().item() == turned.numel()
    assert keep_share(torch.empty(0, 4), 0.5).shape == (0, 4)


def test_dropout_scales_what_it_keeps_and_hands_gradients_to_that_alone() -> None:
    values = torch.ones(64, 64, requires_grad=True)
    with quick_dropout(CPU):
        dropped = functional.dropout(values, 0.25)
        dropped.sum().backward()  # type: ignore[no-untyped-call]
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
    assert values.grad is not None
    assert torch.equal(values.grad, dropped)


def test_dropout_inside_attention_draws_so_too() -> None:
    """With the identity for values, attention's output is its own weights."""
    size = 32
    ones, identity = torch.ones(1, size, size), torch.eye(size)[None]
    with quick_dropout(CPU):
        torch.manual_seed(2)
        weights = functional.scaled_dot_product_attention(ones, ones, identity, dropout_p=0.5)
    torch.manual_seed(2)
    expected = keep_share(torch.empty(1, size, size), 0.5) / 0.5 / size
    torch.testing.assert_close(weights, expected)


def test_outside_of_it_pytorch_draws_as_ever() -> None:
    def drawn() -> torch.Tensor:
        torch.manual_seed(4)
        return functional.dropout(torch.ones(100), 0.5)

    before = drawn()
    with quick_dropout(CPU):
        assert not torch.equal(drawn(), before)
    assert torch.equal(drawn(), before)
    with pytest.raises(ZeroDivisionError), quick_dropout(CPU):
        raise ZeroDivisionError
    assert torch.equal(drawn(), before)
    with quick_dropout(torch.device("meta")):  # a device that draws for itself
        assert torch.equal(drawn(), before)
