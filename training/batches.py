"""Which rows make which batch: grouped by length, shuffled, and the same for any number of workers.

A batch is padded to its longest example. Random batches of short texts can be two thirds padding; batches cut from
windows that are sorted by length hardly pad at all, and the windows keep enough chance for training.
"""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

WINDOW = 100
"""Batches in a window that is sorted by length."""


def epoch_batches(lengths: Indices, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """The batches of one epoch: every row once, the last batch smaller where it does not come out even.

    A pure function of its arguments, so that a continued run and every worker see the same plan.

    Args:
        lengths: tokens of each row, shape ``[rows]``.
        batch_size: rows of a batch, over all workers.

    Returns:
        Row indices of each batch, longest row first.
    """
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths))
    batches = []
    for start in range(0, len(shuffled), batch_size * WINDOW):
        window = shuffled[start : start + batch_size * WINDOW]
        ordered = window[np.argsort(-lengths[window], kind="stable")]
        batches += [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    return [batches[at] for at in random.permutation(len(batches))]


def share(batch: Indices, rank: int, world: int) -> tuple[Indices, float]:
    """The rows of a batch that one worker takes, and the weight that makes the workers' mean gradient the batch's.

    Rows are dealt in turn, so every worker gets long and short ones alike. A worker left without a row takes the
    first one with weight 0: it must still take part in the exchange of gradients.

    Returns:
        Row indices, and what the sum of their losses is multiplied by: ``world / rows of the whole batch``, because
        the exchange divides by ``world``.
    """
    own = batch[rank::world]
    if len(own):
        return own, world / len(batch)
    return batch[:1], 0.0


def parts(batch: Indices, lengths: Indices, budget: int | None) -> list[Indices]:
    """The rows of a batch, longest first, in consecutive parts of at most ``budget`` padded tokens; a row at least.

    Args:
        lengths: tokens of each row of the split.
        budget: None for all in one.
    """
    if budget is None:
        return [batch]
    cut = [0]
    for place in range(1, len(batch)):
        if (place - cut[-1] + 1) * lengths[batch[cut[-1]]] > budget:
            cut.append(place)
    return np.split(batch, cut[1:])


def by_length(lengths: Indices, batch_size: int) -> list[Indices]:
    """Batches for reading only: all rows, longest first, so that memory peaks at once and padding is least."""
    ordered = np.argsort(-lengths, kind="stable")
    return [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
