"""A model that reads a row of many kinds of columns: an encoder for each kind, and a network that fuses them.

Numbers are embedded by piecewise linear encoding (Gorishniy et al., "On Embeddings for Numerical Features in Tabular
Deep Learning", 2022), categories and dates by a table and a layer of each column's own, texts by the mean of a
pre-trained model's last hidden states, pictures by a model that sees. What is missing has an embedding of its own. The
network is residual, with normalisation before each block (Gorishniy et al., "Revisiting Deep Learning Models for
Tabular Data", 2021).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from training.models.base import CODE_KEYS

CODE = {*CODE_KEYS, "attn_implementation", "experts_implementation"}

FARTHEST = 5.0
"""Standard deviations beyond which a number is as far out as it gets: one outlier must not decide a row."""


class FusionConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers ships no types that hold
    """What a :class:`FusionModel` is made of.

    Attributes:
        edges: for each number the ascending edges of its bins, standardised.
        sizes: for each category its codes.
        dates: date columns.
        date_features: numbers that each of them is.
        base_config: the configuration of the model that reads the texts, where there are any.
        sight_config: the configuration of the model that sees the pictures, where there are any.
        embedding: numbers that each column becomes.
        hidden: width of the network; ``blocks`` of it, with ``dropout``.
        outputs: numbers that are said of a row.
    """

    model_type = "headrace-fusion"

    edges: list[list[float]] | None = None
    sizes: list[int] | None = None
    dates: int = 0
    date_features: int = 0
    base_config: dict[str, Any] | None = None
    sight_config: dict[str, Any] | None = None
    embedding: int = 16
    hidden: int = 128
    blocks: int = 2
    dropout: float = 0.1
    outputs: int = 2


class Numbers(nn.Module):
    """Each number as a vector: a weighted sum of how far it has come through each of its bins, and of itself."""

    def __init__(self, edges: Sequence[Sequence[float]], width: int) -> None:
        super().__init__()
        bins = max(1, *(len(one) - 1 for one in edges))
        low, span = torch.zeros(len(edges), bins), torch.full((len(edges), bins), math.inf)
        for place, one in enumerate(edges):
            values = torch.tensor(one)
            low[place, : len(one) - 1], span[place, : len(one) - 1] = values[:-1], values.diff()
        self.low: torch.Tensor
        self.span: torch.Tensor
        self.register_buffer("low", low)
        self.register_buffer("span", span)  # a bin that is not there is infinitely wide: nothing comes through it
        self.weight = nn.Parameter(torch.empty(len(edges), bins, width))
        self.slope = nn.Parameter(torch.empty(len(edges), width))
        self.bias = nn.Parameter(torch.empty(len(edges), width))
        self.absent = nn.Parameter(torch.empty(len(edges), width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights; what is missing begins as nothing."""
        bound = (self.weight.shape[1] + 1) ** -0.5
        for weight in (self.weight, self.slope, self.bias):
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.absent)

    def forward(self, numbers: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """Vectors of shape ``[rows, columns, width]`` for both of shape ``[rows, columns]``."""
        place = ((numbers.unsqueeze(-1) - self.low) / self.span).clamp(0, 1)
        linear = numbers.clamp(-FARTHEST, FARTHEST).unsqueeze(-1) * self.slope
        vectors = torch.relu(torch.einsum("rcb,cbw->rcw", place, self.weight) + linear + self.bias)
        return vectors + missing.unsqueeze(-1) * self.absent


class Categories(nn.Module):
    """Each category as a vector of its column's own table; unknown and missing begin as nothing."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.starts: torch.Tensor
        self.register_buffer("starts", starts)
        self.weight = nn.Parameter(torch.empty(sum(sizes), width))
        self._blank = [start + code for start in _starts(sizes) for code in (0, 1)]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new vectors."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        with torch.no_grad():
            self.weight[self._blank] = 0.0

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors of shape ``[rows, columns, width]`` for codes of shape ``[rows, columns]``."""
        return nn.functional.embedding(codes + self.starts, self.weight)


class Dates(nn.Module):
    """Each date's features through a layer of its column's own."""

    def __init__(self, columns: int, features: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, features, width))
        self.bias = nn.Parameter(torch.empty(columns, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, dates: torch.Tensor) -> torch.Tensor:
        """Vectors of shape ``[rows, columns, width]`` for features of shape ``[rows, columns, features]``."""
        return torch.relu(torch.einsum("rcf,cfw->rcw", dates, self.weight) + self.bias)


class Seen(nn.Module):
    """What a model saw in each picture as a vector; a picture that is missing is a vector of its own."""

    def __init__(self, seen: int, width: int, dropout: float) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(seen, width), nn.Dropout(dropout))
        self.absent = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What is missing begins as nothing."""
        nn.init.zeros_(self.absent)

    def forward(self, seen: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Vectors of shape ``[rows, width]`` for what was seen, ``[rows, seen]``, where ``there`` is 1."""
        return torch.where(there.unsqueeze(-1) > 0, self.read(seen), self.absent)


class Block(nn.Module):
    """Adds to what is known of a row."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """What is known, ``[…, width]``, and more."""
        inner = self.dropout(nn.functional.gelu(self.inner(self.norm(row))))
        added: torch.Tensor = self.dropout(self.outer(inner))
        return row + added


class FreshModel(PreTrainedModel):  # type: ignore[misc]
    """A model whose modules draw their own weights, unless they were loaded."""

    def _init_weights(self, module: nn.Module) -> None:
        own = list(module.parameters(recurse=False))
        if own and not any(getattr(weight, "_is_hf_initialized", False) for weight in own):
            module.reset_parameters()  # type: ignore[operator]


class FusionModel(FreshModel):
    """Encoders of columns, and the network over all that they say of a row."""

    config_class = FusionConfig

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        width, columns = config.embedding, 0
        self.numbers = Numbers(config.edges, width) if config.edges else None
        self.categories = Categories(config.sizes, width) if config.sizes else None
        self.dates = Dates(config.dates, config.date_features, width) if config.dates else None
        columns = len(config.edges or ()) + len(config.sizes or ()) + config.dates
        self.base: PreTrainedModel | None = None
        self.reading: nn.Module | None = None
        if config.base_config:
            self.base = without_pooler(_made(config.base_config))
            wide = self.base.config.hidden_size
            self.reading = nn.Sequential(nn.Linear(wide, config.hidden), nn.Dropout(config.dropout))
        self.sight: PreTrainedModel | None = None
        self.seen: Seen | None = None
        if config.sight_config:
            self.sight = _made(config.sight_config)
            self.seen = Seen(width_of_sight(self.sight), config.hidden, config.dropout)
        read = sum(config.hidden for one in (config.base_config, config.sight_config) if one)
        self.entry = nn.Linear(columns * width + read, config.hidden)
        self.blocks = nn.ModuleList([Block(config.hidden, config.dropout) for _ in range(config.blocks)])
        self.norm = nn.LayerNorm(config.hidden)
        self.exit = nn.Linear(config.hidden, config.outputs)
        self.post_init()

    def forward(
        self,
        numbers: torch.Tensor | None = None,
        missing: torch.Tensor | None = None,
        categories: torch.Tensor | None = None,
        dates: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pictured: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is said of each row: ``[rows, outputs]``.

        Args:
            numbers: standardised, of shape ``[rows, columns]``, with ``missing`` (1 or 0) of the same shape.
            categories: codes, of the same shape.
            dates: of shape ``[rows, columns, features]``.
            input_ids: tokens of the texts, of shape ``[rows, longest]``, with their ``attention_mask``.
            pixel_values: of the pictures, of shape ``[rows, colours, height, width]``; ``pictured`` is 1 where there
                is one, of shape ``[rows]``.
        """
        parts = []
        if self.numbers is not None:
            assert numbers is not None and missing is not None
            parts.append(self.numbers(numbers, missing).flatten(1))
        if self.categories is not None:
            parts.append(self.categories(categories).flatten(1))
        if self.dates is not None:
            parts.append(self.dates(dates).flatten(1))
        if self.base is not None:
            assert attention_mask is not None and self.reading is not None
            hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            parts.append(self.reading(mean_pooled(hidden, attention_mask)))
        if self.sight is not None:
            assert pictured is not None and self.seen is not None
            parts.append(self.seen(looked(self.sight, pixel_values), pictured))
        row = self.entry(torch.cat(parts, dim=1))
        for block in self.blocks:
            row = block(row)
        logits: torch.Tensor = self.exit(self.norm(row))
        return logits


SIGHT = {"model_type": "convnext", "hidden_sizes": [32, 64, 128], "depths": [1, 1, 2], "num_stages": 3}
"""A small network of convolutions (Liu et al., "A ConvNet for the 2020s", 2022), for pictures that no base sees."""


def looked(sight: PreTrainedModel, pixel_values: torch.Tensor | None) -> torch.Tensor:
    """What a model sees in each picture, ``[rows, width_of_sight]``: its summary, or its states' mean."""
    said = sight(pixel_values=pixel_values)
    summary: torch.Tensor | None = getattr(said, "pooler_output", None)
    if summary is not None:
        return summary.flatten(1)
    states: torch.Tensor = said.last_hidden_state
    return states.mean((2, 3)) if states.ndim == 4 else states.mean(1)


def sight_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a base that sees, where it also reads."""
    part: PreTrainedModel = getattr(model, "vision_model", model)
    return part


def width_of_sight(sight: PreTrainedModel) -> int:
    """How many numbers :func:`looked` says of a picture."""
    config = sight.config
    return int(config.hidden_sizes[-1] if getattr(config, "hidden_sizes", None) else config.hidden_size)


def _made(config: Mapping[str, Any]) -> PreTrainedModel:
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(**plain(config)), trust_remote_code=False)
    return model


def mean_pooled(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of hidden states over what the mask holds: ``[rows, hidden]``; nothing where it holds nothing."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """The model without a part that only its pre-training asked, and that no gradient would reach."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a base, kept inside another one, without what could have a library run or fetch code."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in CODE}


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:place]) for place in range(len(sizes))]
