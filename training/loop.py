"""The training loop: plain PyTorch, which knows nothing of Ray.

    trainee = make_trainee(encoded, options, adapt="full", device=device)
    for moment in train(trainee, encoded):
        ...  # log it, keep a checkpoint, stop: the caller's business

One process or many: where torch.distributed is initialised, gradients are averaged over the workers and every worker
sees the same moments. A step is a pure function of the weights and its number (the plan of batches, the learning rate
and the random state all follow from it), which is what makes a continued run equal to an undisturbed one.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from cluster.errors import RunError, UserError
from training.batches import Indices, by_length, epoch_batches, parts, share
from training.dropout import quick_dropout
from training.encode import Encoded, EncodedSplit
from training.models.adapt import adapt_model
from training.optimizer import make_optimizer, schedule
from training.precision import autocast, choose_precision, make_scaler
from training.preflight import check_early_stopping
from training.recipe import Adapt, Train
from training.strategy import distributed, even_buffers, gather_batch, is_parted, part_again, whole, without_exchange
from training.tasks.task import Batch, Output, Outputs, Task, parts_misfit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READING_BATCH = 64
"""Rows at once when the model is only read; without gradients twice a training batch fits."""

SHOWN_ROWS = 5
"""Rows of a batch that an error names."""


@dataclass
class Position:
    """Where in its run a trainee stands; with weights and moments, all that a checkpoint holds.

    Attributes:
        step: optimizer steps done.
        epoch: the epoch that the next step belongs to.
        batch: batches of that epoch that are done.
        best: the best value of the early-stopping metric so far.
        best_epoch: the epoch that reached it.
        stopped: early stopping has ended the run.
        scaler: what the gradients' scaler knows, where there is one.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    best_epoch: int = 0
    stopped: bool = False
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """What one step brought.

    Attributes:
        step: steps done, of ``steps``.
        epoch: the epoch the step belonged to, from 0.
        rows: rows of the step's batch, over all workers.
        loss: mean over these rows.
        gradient_norm: before clipping.
        seconds: the step took, validation not counted.
        validation: metrics on the validation split, at an epoch's end.
        best: this epoch is the best so far, or early stopping is off.
        checkpoint_due: a checkpoint belongs here.
        last: no step follows.
    """

    step: int
    steps: int
    epoch: int
    rows: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    validation: dict[str, float] | None = None
    best: bool = False
    checkpoint_due: bool = False
    last: bool = False


@dataclass
class Trainee:
    """A model that learns, and everything that moves while it does.

    Attributes:
        wrapped: what is called in a training step.
        budget: padded tokens that are computed at once; None for all.
    """

    task: Task
    model: "PreTrainedModel"
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    options: Train
    device: torch.device
    precision: torch.dtype
    scaler: torch.amp.GradScaler
    budget: int | None = None
    rank: int = 0
    world: int = 1
    adapt: Adapt = "full"
    position: Position = field(default_factory=Position)


def make_trainee(encoded: Encoded, options: Train, adapt: Adapt, device: torch.device) -> Trainee:
    """The base with a new head, an optimizer over the weights that learn, at step 0.

    Every worker draws the same new weights, from ``options.seed``.

    Raises:
        UserError: the task and the options do not go together.
    """
    if misfit := parts_misfit(encoded.task, options.tokens_per_device):
        raise UserError(f"train.tokens_per_device: {misfit}")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(options.seed)
    task = encoded.task
    model = task.build(encoded.base)
    adapt_model(model, task.head(model), adapt)
    if options.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(
                f"train.activation_checkpointing: a {model.config.model_type} cannot compute its layers twice"
            )
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    wrapped = distributed(model, options.strategy, device)
    if options.compile:
        wrapped.compile(dynamic=True)  # a graph for each length would be compiled more often than it is run
    precision = choose_precision(options.precision, device)
    return Trainee(
        task=task,
        model=model,
        wrapped=wrapped,
        optimizer=make_optimizer(model, task.head(model), options),
        options=options,
        device=device,
        precision=precision,
        scaler=make_scaler(device, precision),
        budget=options.tokens_per_device if options.tokens_per_device != "auto" else None,
        rank=rank,
        world=world,
        adapt=adapt,
    )


def train(trainee: Trainee, encoded: Encoded) -> Iterator[Moment]:
    """Trains from where ``trainee`` stands to the end of its run, and yields after every step.

    Raises:
        RunError: a loss or gradient is not finite; the weights are those before the step.
        UserError: early stopping names a metric that the task does not have, or there is no validation split.
    """
    options, position, rows = trainee.options, trainee.position, encoded.split("train")
    check_early_stopping(trainee.task, options, len(encoded.split("validation")))
    steps = options.epochs * math.ceil(len(rows) / options.batch_size)
    while position.epoch < options.epochs and not position.stopped:
        epoch = position.epoch
        batches = epoch_batches(rows.lengths, options.batch_size, options.seed, epoch)
        for batch in batches[position.batch :]:
            heat = schedule(position.step, steps, options)
            started = time.perf_counter()
            loss, norm = train_step(trainee, rows, batch, heat)
            seconds = time.perf_counter() - started
            position.step += 1
            position.batch += 1
            validation, best = None, False
            if position.batch == len(batches):
                validation = validate(trainee, encoded.split("validation"))
                best = close_epoch(trainee, validation)
            last = position.stopped or position.step == steps
            due = position.step % options.checkpoint_every == 0 or validation is not None
            yield Moment(
                step=position.step,
                steps=steps,
                epoch=epoch,
                rows=len(batch),
                loss=loss,
                learning_rate=heat * options.learning_rate,
                gradient_norm=norm,
                seconds=seconds,
                validation=validation,
                best=best,
                checkpoint_due=due,
                last=last,
            )


def train_step(trainee: Trainee, rows: EncodedSplit, batch: Indices, heat: float) -> tuple[float, float]:
    """One optimizer step on the rows of ``batch``, at a share ``heat`` of the peak learning rates.

    Returns:
        The rows' mean loss and the gradient's norm.

    Raises:
        RunError: the loss or the gradient is not finite; no weight has changed.
    """
    trainee.wrapped.train()
    seed_step(trainee)
    mean_loss = torch.zeros((), device=trainee.device)
    *earlier, last = own_parts(trainee, rows, batch)
    with quick_dropout(trainee.device):
        with without_exchange(trainee.wrapped):
            for part, weight in earlier:
                mean_loss += learn_from(trainee, rows, part, weight, len(batch))
        mean_loss += learn_from(trainee, rows, *last, len(batch))
    mean_loss /= trainee.world
    if trainee.world > 1:
        dist.all_reduce(mean_loss)
    trainee.scaler.unscale_(trainee.optimizer)
    norm = whole(torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), trainee.options.clip_norm))
    overflown = trainee.scaler.is_enabled() and trainee.scaler.get_scale() > 1  # the scaler leaves such a step out
    if not (torch.isfinite(mean_loss) and (torch.isfinite(norm) or overflown)):
        rate = heat * trainee.options.learning_rate
        raise RunError(
            f"step {trainee.position.step + 1}: the loss is {mean_loss.item()} and the gradient's norm {norm.item()} "
            f"at learning rate {rate:.3g}, on training rows {_first_rows(batch)}. No weight was "
            "changed. Lower train.learning_rate, or look at these rows of train.parquet."
        )
    for group in trainee.optimizer.param_groups:
        group["lr"] = heat * group["peak"]
    trainee.scaler.step(trainee.optimizer)
    trainee.scaler.update()
    trainee.optimizer.zero_grad()
    return mean_loss.item(), norm.item()


def _first_rows(batch: Indices) -> str:
    first = ", ".join(map(str, batch[:SHOWN_ROWS].tolist()))
    return f"{first} and {len(batch) - SHOWN_ROWS} more" if len(batch) > SHOWN_ROWS else first


def own_parts(trainee: Trainee, rows: EncodedSplit, batch: Indices) -> list[tuple[Indices, float]]:
    """What this worker computes of a batch, in parts that fit its memory, each with the weight of its losses.

    A parted model is gathered in every forward pass, by all workers together: one with fewer parts than another goes
    through its last one again, with weight 0.
    """

    def of(rank: int) -> list[tuple[Indices, float]]:
        own, weight = share(batch, rank, trainee.world)
        return [(part, weight) for part in parts(own, rows.lengths, trainee.budget)]

    own = of(trainee.rank)
    if is_parted(trainee.model):
        most = max(len(of(rank)) for rank in range(trainee.world))
        own += [(own[-1][0], 0.0)] * (most - len(own))
    return own


def learn_from(trainee: Trainee, rows: EncodedSplit, part: Indices, weight: float, whole_rows: int) -> torch.Tensor:
    """Adds the gradient of a part's loss, times ``weight``; returns that loss."""
    tensors = collate(trainee, rows, part)
    with autocast(trainee.device, trainee.precision):
        outputs = trainee.task.forward(trainee.wrapped, tensors)
    if trainee.task.whole_batch and trainee.world > 1:
        outputs, tensors, weight = gather_batch(outputs, tensors, whole_rows)
    loss = trainee.task.loss(outputs.float(), tensors).sum() * weight
    trainee.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def collate(trainee: Trainee, rows: EncodedSplit, indices: Indices) -> Batch:
    """The rows at ``indices`` as one padded batch, on the trainee's device."""
    return on_device(trainee, trainee.task.collate(rows.examples(indices)))


def on_device(trainee: Trainee, batch: Batch) -> Batch:
    """A batch where the trainee computes."""
    return {name: value.to(trainee.device) for name, value in batch.items()}


def validate(trainee: Trainee, rows: EncodedSplit) -> dict[str, float]:
    """The task's metrics on ``rows``; nothing where there are none."""
    if not len(rows):
        return {}
    return trainee.task.metrics(predict(trainee, rows), rows.targets)


def predict(trainee: Trainee, rows: EncodedSplit, *, final: bool = False) -> Outputs:
    """The model's outputs for every row, in row order, computed by all workers together and known to each.

    Args:
        final: as an answer would be computed: in fp32, and generated where a model generates.
    """
    trainee.model.eval()
    if trainee.world > 1:
        even_buffers(trainee.model)
    read = trainee.task.infer if final else trainee.task.forward
    own: dict[int, Output] = {}
    batches = by_length(rows.lengths, READING_BATCH)
    if is_parted(trainee.model):  # all workers gather it together, so none may read a batch fewer than another
        batches += batches[:1] * (-len(batches) % trainee.world)
    with torch.no_grad(), contextlib.nullcontext() if final else autocast(trainee.device, trainee.precision):
        for batch in batches[trainee.rank :: trainee.world]:
            examples = rows.examples(batch)
            outputs = read(trainee.model, on_device(trainee, trainee.task.collate(examples)))
            own |= zip(batch.tolist(), trainee.task.keep(outputs, examples), strict=True)
    part_again(trainee.model)
    parts = [own]
    if trainee.world > 1:
        parts = [{}] * trainee.world
        dist.all_gather_object(parts, own)
    found = {row: output for part in parts for row, output in part.items()}
    return [found[row] for row in range(len(rows))]


def close_epoch(trainee: Trainee, validation: dict[str, float]) -> bool:
    """Moves to the next epoch, or stops early; returns whether this epoch's weights are the ones to keep."""
    position, stopping = trainee.position, trainee.options.early_stopping
    position.epoch += 1
    position.batch = 0
    if stopping is None:
        return True
    metric = stopping.metric or trainee.task.headline
    value = validation[metric]
    sign = 1 if trainee.task.metrics_known[metric] == "max" else -1
    if position.best is None or sign * value > sign * position.best:
        position.best, position.best_epoch = value, position.epoch - 1
        return True
    position.stopped = position.epoch - 1 - position.best_epoch >= stopping.patience
    return False


def seed_step(trainee: Trainee) -> None:
    """Draws this step's dropout from the seed, the step and the worker, so that no random state needs keeping."""
    parts = [trainee.options.seed, trainee.position.step, trainee.rank]
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1))


def as_record(moment: Moment) -> dict[str, Any]:
    """A moment as one flat JSON object, for logs and charts."""
    record = asdict(moment)
    validation = record.pop("validation") or {}
    return record | {f"validation/{name}": value for name, value in validation.items()}
