"""Gradients that workers exchange by the rows that were read, against those that PyTorch exchanges whole."""

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.training.together import together
from training.exchange import LARGE, exchange_rows_read

ROWS, WIDTH = 4200, 256
PADDING = 0
SEED = 17


class Words(torch.nn.Module):
    """A large table between smaller weights; ``tied`` makes it the output layer too."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.places = torch.nn.Embedding(50, WIDTH)
        self.words = torch.nn.Embedding(ROWS, WIDTH, padding_idx=PADDING)
        self.inner = torch.nn.Linear(WIDTH, WIDTH)
        self.outer = torch.nn.Linear(WIDTH, ROWS if tied else 7)
        if tied:
            self.outer.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        read = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        scores: torch.Tensor = self.outer(torch.tanh(self.inner(read)).mean(1))
        return scores.square().mean()


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_those_of_a_whole_exchange(world: int, tmp_path: Path) -> None:
    assert ROWS * WIDTH >= LARGE
    together(world, _compare, tmp_path)


def _compare(rank: int) -> None:
    for tied in (False, True):
        expected, found = gradients(rank, tied=tied, rows_alone=False), gradients(rank, tied=tied, rows_alone=True)
        for name, whole in expected.items():
            torch.testing.assert_close(found[name], whole, msg=f"{name}, tied: {tied}, worker {rank}")
        assert expected["words.weight"].any(dim=1).all().item() == tied


def gradients(rank: int, *, tied: bool, rows_alone: bool) -> dict[str, torch.Tensor]:
    """The gradients after two passes, the first of which is not exchanged by itself."""
    torch.manual_seed(SEED)
    model = Words(tied=tied)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    if rows_alone:
        exchange_rows_read(wrapped)
    for _ in range(2):  # PyTorch parts the weights into buckets anew after the first time
        wrapped.zero_grad()
        earlier, last = batches(rank)
        with wrapped.no_sync():
            wrapped(earlier).backward()
        wrapped(last).backward()
    found = {name: weight.grad for name, weight in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def batches(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a worker reads: the second worker nothing but padding, of which the table learns nothing."""
    torch.manual_seed(SEED + rank)
    earlier, last = (torch.randint(1, ROWS, (3, 8)) for _ in range(2))
    return (torch.full_like(earlier, PADDING), torch.full_like(last, PADDING)) if rank == 1 else (earlier, last)
