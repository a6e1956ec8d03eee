"""What an engine is: a batch in, outputs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cluster.errors import UserError
from training.tasks.task import Batch, Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Forward = Callable[[Batch], torch.Tensor]
"""What :meth:`training.tasks.task.Task.infer` says of a batch, in fp32 on the CPU."""


class UnavailableError(Exception):
    """The engine cannot compute this model here; the message says why, for whoever reads the table of engines."""


@dataclass(frozen=True)
class Subject:
    """What an engine is made for.

    Attributes:
        model: in evaluation mode, on the device, in fp32; it is left as it is.
        examples: encoded rows that were held back in training.
        folder: where an engine keeps what is costly to make.
        lanes: how many threads may compute at once, each then with its share of the cores.
    """

    task: Task
    model: "PreTrainedModel"
    device: torch.device
    examples: Sequence[Example]
    folder: Path
    lanes: int = 1


Make = Callable[[Subject], Forward]
"""The engine of a subject; raises :class:`UnavailableError`."""


def checked(forward: Forward) -> Forward:
    """The engine, which fails where an output is not a number.

    Raises:
        UserError: one is. A model that answers at all does so to what is far from all that it has learned.
    """

    def compute(batch: Batch) -> torch.Tensor:
        outputs = forward(batch)
        if not outputs.isfinite().all():
            raise UserError(
                "the answer to one of the inputs is not a number: it is too far from what the model has learned"
            )
        return outputs

    return compute
