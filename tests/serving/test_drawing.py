"""Tokens are drawn with the probabilities that they have, and what is told of them is true."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from serving.drawing import Sampling, gumbel, processors

WIDTH = 12


def chosen(scores: torch.Tensor, told: list[dict[str, Any]], written: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The engine's next token for each row, and the probability that it tells; (rows,) each."""
    made = processors()
    states = [SimpleNamespace(logit_processor_kwargs=one, generated_tokens=list(range(written))) for one in told]
    requests: Any = [SimpleNamespace(has_new_token=True, state=state) for state in states]
    stored = torch.zeros(made.tensors_required, len(told), dtype=torch.int32)
    made.fill_defaults(stored)
    ids: Any = None
    rows = made(ids, scores.clone(), made.prepare_tensor_args(requests, stored)).softmax(-1)
    return rows.argmax(-1), rows.max(-1).values


def draws(count: int, **how: Any) -> list[dict[str, Any]]:
    return [Sampling(**how, seed=seed).of_text(0, None) for seed in range(count)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    scores = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    expected = (scores / temperature).softmax(-1)
    tokens, told = chosen(scores.expand(20_000, -1), draws(20_000, temperature=temperature))
    counted = np.bincount(tokens.numpy(), minlength=WIDTH)
    assert chisquare(counted, expected.double().numpy() / expected.double().sum().item() * len(tokens)).pvalue > 1e-3
    torch.testing.assert_close(told, expected[tokens].clamp(min=2 / WIDTH))


def test_what_top_p_leaves_out_is_never_drawn() -> None:
    scores = torch.tensor([3.0, 2.9, 0.0, -1.0]).expand(5_000, -1)
    tokens, _ = chosen(scores, draws(5_000, temperature=1.0, top_p=0.9))
    assert set(tokens.tolist()) == {0, 1}


def test_rows_that_do_not_draw_are_left_as_they_are() -> None:
    scores = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))
    told = [Sampling().of_text(0, None), Sampling(temperature=5.0, seed=1).of_text(0, None), {}]
    tokens, likely = chosen(scores, told)
    for row in (0, 2):
        assert tokens[row] == scores[row].argmax()
        torch.testing.assert_close(likely[row], scores[row].softmax(-1).max())


def test_a_draw_depends_on_seed_text_and_place_alone() -> None:
    scores = torch.zeros(1, 10_000)
    how = Sampling(temperature=1.0, seed=11)
    alone = chosen(scores, [how.of_text(0, None)])[0][0]
    beside = chosen(scores.expand(3, -1), [how.of_text(1, None), Sampling().of_text(0, None), how.of_text(0, None)])[0]
    assert beside[2] == alone
    others = {
        int(alone),
        int(beside[0]),
        int(chosen(scores, [how.of_text(0, None)], written=1)[0][0]),
        int(chosen(scores, [Sampling(temperature=1.0, seed=12).of_text(0, None)])[0][0]),
    }
    assert len(others) == 4
    unseeded = {int(chosen(scores, [Sampling(temperature=1.0).of_text(0, None)])[0][0]) for _ in range(3)}
    assert len(unseeded) > 1


def test_the_noise_is_gumbels_and_rows_have_nothing_to_do_with_one_another() -> None:
    keys = torch.tensor([1, 2, 3, -7, 2**31 - 1], dtype=torch.int32)
    noise = gumbel(keys, 100_000)
    for row in noise:
        assert kstest(row.numpy(), "gumbel_r").pvalue > 1e-3
    between = np.corrcoef(noise.numpy()) - np.eye(len(keys))
    assert np.abs(between).max() < 0.02  # five of its standard errors, 1 / sqrt(100,000), and more
