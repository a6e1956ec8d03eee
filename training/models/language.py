"""What models of language have in common: how likely they find tokens, computed only where somebody asks.

A vocabulary is wide: the logits of a batch of texts are hundreds of times larger than the texts' hidden states, and
most of them are of tokens that nobody asked about. The hidden states are therefore picked before the output layer.
"""

import contextlib
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from transformers import AutoConfig

from cluster.errors import UserError

LIKELIHOOD = {"perplexity": "min", "loss": "min"}
"""The metrics of :func:`likelihood`, and whether more or less is better."""

HIGHEST_LOSS = 700.0  # whose exponential is still a number


def logits_at(
    model: torch.nn.Module, inner: torch.nn.Module, inputs: Mapping[str, Any], chosen: torch.Tensor
) -> torch.Tensor:
    """The logits at some places, in fp32, of shape ``[places, vocabulary]``; the output layer sees no other place.

    Args:
        model: with an output layer that reads each place for itself; as the loop holds it.
        inner: the part of it whose last hidden states, of shape ``[texts, longest, hidden]``, that layer reads.
        inputs: what the model is called with.
        chosen: which places, of shape ``[texts, longest]``; in the order of the texts.
    """
    with _picking(inner, chosen):
        logits: torch.Tensor = model(**inputs).logits
    return logits[0].float()


@contextlib.contextmanager
def _picking(inner: torch.nn.Module, chosen: torch.Tensor) -> Iterator[None]:
    texts, places = chosen.nonzero(as_tuple=True)

    def pick(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[texts, places].unsqueeze(0)
        return output

    handle = inner.register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def scores(logits: torch.Tensor, chosen: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of each text the sum of its tokens' negative log-likelihoods, in nats, and their number: ``[texts, 2]``.

    Args:
        logits: of shape ``[places, vocabulary]``.
        chosen: the places, of shape ``[texts, longest]``.
        tokens: what stands, or should stand, at each place: ``[places]``.
    """
    losses = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    table = torch.zeros(chosen.shape, device=logits.device).masked_scatter(chosen, losses)
    return torch.stack([table.sum(dim=1), chosen.sum(dim=1)], dim=1)


def mean_loss(outputs: torch.Tensor) -> torch.Tensor:
    """The mean loss of each text's tokens, of shape ``[texts]``, from :func:`scores`."""
    return outputs[:, 0] / outputs[:, 1].clamp(min=1)


def likelihood(outputs: Sequence[npt.NDArray[Any]]) -> dict[str, float]:
    """The mean loss of a token, in nats, and its exponential, the perplexity.

    Args:
        outputs: each begins with what :func:`scores` says of its text.

    Returns:
        One number for each name of ``LIKELIHOOD``; nothing where no token was judged.
    """
    total, tokens = (sum(float(one[place]) for one in outputs) for place in (0, 1))
    if not tokens:
        return {}
    loss = total / tokens
    return {"perplexity": math.exp(min(loss, HIGHEST_LOSS)), "loss": loss}


def refuse_other_kinds(base: Path, known: Container[str], wanted: str) -> None:
    """Refuses a base whose architecture cannot do a task.

    Raises:
        UserError: its type is not among those ``known``; ``wanted`` says what would be.
    """
    kind = AutoConfig.from_pretrained(base, trust_remote_code=False).model_type
    if kind not in known:
        raise UserError(f"model.base: a {kind} is no model that {wanted}")


def plain(model: torch.nn.Module) -> Any:
    """The model itself, out of what spreads it over workers."""
    from transformers import PreTrainedModel  # takes seconds to import, which whoever has a model has spent

    return model if isinstance(model, PreTrainedModel) else model.module
