"""The loop against references: a hand-written one, itself interrupted, and itself over two processes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import RunError, UserError
from tests.training.together import together
from training import checkpoint
from training.batches import epoch_batches
from training.data.fuse import fuse
from training.encode import Encoded, encode, open_encoded
from training.loop import Moment, make_trainee, predict, train, validate
from training.optimizer import schedule
from training.recipe import Recipe, Train

CPU = torch.device("cpu")
MakeRecipe = Callable[..., Recipe]


def encoded_for(recipe: Recipe) -> Encoded:
    return encode(recipe, fuse(recipe))


def without_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def test_it_learns_and_says_where_it_stands(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(rows=300, train={"epochs": 12, "learning_rate": 3e-3})
    encoded = encoded_for(recipe)
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    moments = list(train(trainee, encoded))
    rows = len(encoded.split("train"))
    assert [moment.step for moment in moments] == list(range(1, moments[0].steps + 1))
    assert sum(moment.rows for moment in moments) == 12 * rows
    assert [moment.last for moment in moments] == [False] * (len(moments) - 1) + [True]
    assert [moment.epoch for moment in moments if moment.validation] == list(range(12))
    assert validate(trainee, encoded.split("test"))["accuracy"] > 0.9


def test_a_step_equals_a_hand_written_one(make_recipe: MakeRecipe) -> None:
    """AdamW on the batch's mean cross-entropy: gradient clipped to norm 1, decay on matrices only, a warmer head."""
    recipe = make_recipe(train={"epochs": 1, "warmup": 0, "weight_decay": 0.1, "head_learning_rate": 1e-2})
    encoded = encoded_for(recipe)
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    without_dropout(trainee.model)
    first = next(train(trainee, encoded))

    reference = make_trainee(encoded, recipe.train, "full", CPU)
    without_dropout(reference.model)
    model = reference.model.train()
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in model.bert.parameters() if weight.ndim > 1]},
        {"params": [weight for weight in model.bert.parameters() if weight.ndim <= 1], "weight_decay": 0.0},
        {"params": [model.classifier.weight], "lr": 1e-2},
        {"params": [model.classifier.bias], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    rows = encoded.split("train")
    batch = encoded.task.collate(rows.examples(epoch_batches(rows.lengths, 8, recipe.train.seed, 0)[0]))
    loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["targets"]).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert first.loss == pytest.approx(loss.item(), rel=1e-6)
    for (name, ours), theirs in zip(trainee.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("stop_at", [1, 9, 10, 17])
def test_a_continued_run_equals_an_undisturbed_one_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path, stop_at: int
) -> None:
    """With dropout on: weights, moments, learning rate, batch order and random state all come back."""
    recipe = make_recipe()
    encoded = encoded_for(recipe)
    undisturbed = make_trainee(encoded, recipe.train, "full", CPU)
    losses = [moment.loss for moment in train(undisturbed, encoded)]

    interrupted = make_trainee(encoded, recipe.train, "full", CPU)
    for moment in train(interrupted, encoded):
        if moment.step == stop_at:
            checkpoint.save(tmp_path / "kept", interrupted)
            break
    continued = make_trainee(encoded, recipe.train, "full", CPU)
    checkpoint.load(tmp_path / "kept", continued)
    assert [moment.loss for moment in train(continued, encoded)] == losses[stop_at:]
    for ours, theirs in zip(continued.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_head_only_leaves_the_base_untouched(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(train={"epochs": 1})
    encoded = encoded_for(recipe)
    trainee = make_trainee(encoded, recipe.train, "head", CPU)
    before = {name: weight.clone() for name, weight in trainee.model.named_parameters()}
    list(train(trainee, encoded))
    moved = {name for name, weight in trainee.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    encoded = encoded_for(recipe)
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    moments = train(trainee, encoded)
    next(moments)
    with torch.no_grad():
        trainee.model.classifier.bias[0] = math.inf
    before = [weight.clone() for weight in trainee.model.parameters()]
    with pytest.raises(
        RunError,
        match=r"^step 2: the loss is nan .* learning rate 0\.00\d+, on training rows (\d+, ){4}\d+ and \d+ more\. No",
    ):
        next(moments)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(trainee.model.parameters(), before, strict=True))


def test_early_stopping_keeps_the_best_epoch_and_ends_the_run(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        train={
            "epochs": 30,
            "learning_rate": 1e-9,
            "head_learning_rate": 1e-9,
            "early_stopping": {"metric": "accuracy", "patience": 3},
        }
    )
    encoded = encoded_for(recipe)
    closings = [m for m in train(make_trainee(encoded, recipe.train, "full", CPU), encoded) if m.validation]
    assert [moment.best for moment in closings] == [True, False, False, False]
    assert closings[-1].last


def test_early_stopping_without_validation_rows_is_refused(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        data={
            "sources": {"sentences": {"read": "sentences.csv"}},
            "split": {"validation": 0, "test": 0.2},
        },
        train={"early_stopping": {}},
    )
    encoded = encoded_for(recipe)
    with pytest.raises(UserError, match="there are no validation rows to watch"):
        next(train(make_trainee(encoded, recipe.train, "full", CPU), encoded))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.5, 1.0] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]),
        ("constant", [0.5] + [1.0] * 9),
    ],
)
def test_the_heat_of_each_step(name: str, expected: list[float]) -> None:
    options = Train.model_validate({"warmup": 0.2, "schedule": name})
    assert [schedule(step, 10, options) for step in range(10)] == pytest.approx(expected)


def test_the_curve_is_the_one_that_was_pinned(make_recipe: MakeRecipe) -> None:
    """Batches, dropout, schedule, clipping and optimizer, in numbers: none of them may change without being meant to.

    Another BERT of transformers' or generator of torch's moves it too. Without a processor's wide instructions it
    differs by 1e-4 of itself.
    """
    encoded = encoded_for(recipe := make_recipe(rows=101, train={"epochs": 8, "warmup": 0.2, "learning_rate": 1e-2}))
    losses = [moment.loss for moment in train(make_trainee(encoded, recipe.train, "full", CPU), encoded)]
    assert losses[::10] == pytest.approx(
        [1.103753, 1.097111, 1.168996, 0.470526, 0.200561, 0.070142, 0.030993], rel=1e-3
    )


def test_two_workers_equal_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Without dropout (each worker draws its own) the curves differ by rounding alone.

    The order of summation moves a loss by 1e-7 of itself. AdamW divides each gradient by its own size, so that
    rounding in a gradient near zero moves its weight by up to a learning rate: losses agree to 1e-4, logits to 1e-3.
    """
    recipe = make_recipe(rows=101, train={"epochs": 5})
    encoded = encoded_for(recipe)
    for world in (1, 2):
        together(world, _one_worker, tmp_path, world, encoded.folder, encoded.base, recipe.train, tmp_path)
    one, two = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    assert len(encoded.split("train")) % 8 == 5, "the last batch must be partial for this to prove anything"
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    torch.testing.assert_close(one["outputs"], two["outputs"], rtol=0, atol=1e-3)


def _one_worker(rank: int, world: int, folder: Path, base: Path, options: Train, out: Path) -> None:
    encoded = open_encoded(folder, base)
    trainee = make_trainee(encoded, options, "full", CPU)
    without_dropout(trainee.model)
    moments: list[Moment] = list(train(trainee, encoded))
    outputs = predict(trainee, encoded.split("test"))
    if rank == 0:
        kept = {"losses": [moment.loss for moment in moments], "outputs": torch.from_numpy(np.stack(outputs))}
        torch.save(kept, out / f"{world}.pt")
