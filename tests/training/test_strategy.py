"""One worker, several, parts of a batch, a model in parts: the same curve, and each continues what another began.

Real processes that talk over gloo. Dropout is off, since each worker draws its own.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from tests.training.together import together
from training import checkpoint
from training.batches import parts
from training.data.fuse import fuse
from training.encode import Encoded, encode, open_encoded
from training.loop import make_trainee, predict, train
from training.models.adapt import read_adapt
from training.models.adapter import put_together
from training.recipe import Adapt, Recipe, Train
from training.strategy import is_parted
from training.tasks.text_classification import TextClassification

CPU = torch.device("cpu")
CUT = 9  # a step in the middle of an epoch


@pytest.fixture
def encoded_and_options(make_recipe: Callable[..., Recipe]) -> tuple[Encoded, Train]:
    recipe = make_recipe(rows=101, train={"epochs": 3})
    return encode(recipe, fuse(recipe)), recipe.train


@dataclass(frozen=True)
class Job:
    """One training run of a group of workers.

    Attributes:
        name: the folder below the test's that it writes to.
        changes: of the options.
        begun: the name of the run whose checkpoint it continues.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    adapt: Adapt = "full"
    begun: str | None = None


def run(folder: Path, encoded: Encoded, options: Train, world: int, *jobs: Job) -> list[dict[str, Any]]:
    """Has ``world`` processes train one job after the other; returns losses, outputs and finished weights of each."""
    given = (encoded.folder, encoded.base, options, jobs, folder)
    if world == 1:
        _one_worker(0, *given)
    else:
        together(world, _one_worker, folder, *given)
    return [torch.load(folder / job.name / "found.pt", weights_only=True) for job in jobs]


def _one_worker(rank: int, data: Path, base: Path, options: Train, jobs: tuple[Job, ...], folder: Path) -> None:
    warnings.simplefilter("error", FutureWarning)  # each is printed to whoever trains, once a worker
    encoded = open_encoded(data, base)
    for job in jobs:
        _train(job, encoded, options.model_copy(update=job.changes), folder)


def _train(job: Job, encoded: Encoded, options: Train, folder: Path) -> None:
    trainee = make_trainee(encoded, options, job.adapt, CPU)
    assert is_parted(trainee.model) == (options.strategy == "fsdp")
    for module in trainee.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if job.begun:
        checkpoint.load(folder / job.begun / "kept", trainee)
    losses = []
    for moment in train(trainee, encoded):
        losses.append(moment.loss)
        if moment.step == CUT:
            checkpoint.save(folder / job.name / "kept", trainee)
    outputs = torch.from_numpy(np.stack(predict(trainee, encoded.split("test"))))
    weights = checkpoint.gather(trainee)
    if trainee.rank == 0:
        whole = put_together(trainee.task, encoded.base, trainee.adapt, weights)
        found = {"losses": losses, "outputs": outputs, "whole": whole.state_dict()}
        (folder / job.name).mkdir(exist_ok=True)
        torch.save(found, folder / job.name / "found.pt")


def same_curve(one: dict[str, Any], other: dict[str, Any], start: int = 0) -> None:
    """Equal but for the order of summation.

    AdamW divides each gradient by its own size, so rounding in one near zero moves its weight by up to a learning
    rate: losses agree to 1e-4 of themselves, logits to 1e-3.
    """
    assert other["losses"] == pytest.approx(one["losses"][start:], rel=1e-4)
    np.testing.assert_allclose(other["outputs"], one["outputs"], atol=1e-3)


def test_every_way_of_spreading_gives_the_same_curve(
    encoded_and_options: tuple[Encoded, Train], tmp_path: Path
) -> None:
    encoded, options = encoded_and_options
    assert len(encoded.split("train")) % 8 == 5, "the last batch must be partial for this to prove anything"
    in_parts, recomputed = {"tokens_per_device": 24}, {"activation_checkpointing": True}
    fsdp = {"strategy": "fsdp"}
    one, *others = run(
        *(tmp_path, encoded, options, 1),
        *(Job("one"), Job("parts", in_parts), Job("recomputed", recomputed)),
    )
    others += run(
        *(tmp_path, encoded, options, 2),
        *(Job("ddp"), Job("ddp-parts", in_parts), Job("fsdp", fsdp), Job("fsdp-all", fsdp | in_parts | recomputed)),
    )
    for other in others:
        same_curve(one, other)


def test_a_checkpoint_is_continued_by_any_number_of_workers(
    encoded_and_options: tuple[Encoded, Train], tmp_path: Path
) -> None:
    """What two workers in parts began: the same two bit for bit, one worker within rounding; and the other way."""
    encoded, options = encoded_and_options
    fsdp = {"strategy": "fsdp"}
    lora = read_adapt({"lora": {"r": 4}})
    (whole, lora_whole) = run(tmp_path, encoded, options, 1, Job("whole"), Job("lora-whole", adapt=lora))
    parted, again, back, lora_parted = run(
        *(tmp_path, encoded, options, 2),
        *(Job("parted", fsdp), Job("again", fsdp, begun="parted"), Job("back", fsdp, begun="whole")),
        Job("lora-parted", fsdp, adapt=lora),
    )
    assert len(list((tmp_path / "parted" / "kept").glob("weights-*.safetensors"))) == 2
    assert again["losses"] == parted["losses"][CUT:]
    for name, weight in parted["whole"].items():
        assert torch.equal(weight, again["whole"][name]), name
    same_curve(whole, back, CUT)
    same_curve(parted, run(tmp_path, encoded, options, 1, Job("one", begun="parted"))[0], CUT)
    same_curve(lora_whole, lora_parted)
    for name, weight in lora_whole["whole"].items():
        torch.testing.assert_close(lora_parted["whole"][name], weight, atol=1e-3, rtol=1e-2)


def test_parts_hold_every_row_once_and_fit_the_budget() -> None:
    lengths = np.array([3, 9, 5, 30, 2, 8, 8])
    batch = np.argsort(-lengths, kind="stable")
    cut = parts(batch, lengths, 20)
    assert np.concatenate(cut).tolist() == batch.tolist()
    assert [one.tolist() for one in cut] == [[3], [1, 5], [6, 2], [0, 4]]
    assert parts(batch, lengths, None) == [batch]


def test_a_task_that_compares_the_rows_of_a_batch_cannot_take_it_in_parts(
    encoded_and_options: tuple[Encoded, Train], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, options = encoded_and_options
    monkeypatch.setattr(TextClassification, "whole_batch", True)
    with pytest.raises(UserError, match=r"^train\.tokens_per_device: text-classification compares all rows of a batch"):
        make_trainee(encoded, options.model_copy(update={"tokens_per_device": 64}), "full", CPU)
