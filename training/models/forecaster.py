"""A network that forecasts: the recent past of a series and what is known of its future, to quantiles of each step.

After TiDE (Das et al., "Long-term Forecasting with TiDE", 2023): covariates of each step are projected, a residual
network reads the whole window at once, and each step to come is decoded together with its own covariates, beside a
linear path from past to future. Besides, each step sees the values that lie whole seasons before it, and begins as
their mean: what repeats need not be learned. Every window is read relative to its own level and spread, so that one
model serves series of any size.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig

from training.models.fusion import Block, FreshModel

PAST_PROJECTED = 4
"""Numbers that the covariates of a past step become; as many as in the paper."""

MOST_LAGS = 16
"""Seasons that each step looks back on."""

LEAST_SPREAD = 0.05
"""Of a window that hardly moves, the share of its level that is taken for its spread."""


class ForecastConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers ships no types that hold
    """What a :class:`ForecastModel` is made of.

    Attributes:
        context: steps of the past that are read.
        horizon: steps that are said.
        past: features of a past step besides the series itself.
        future: features of a step to come.
        season: steps until things repeat; at most ``context``.
        series: series that are known by name; one more stands for all others.
        quantiles: those that are said, ascending.
        mean: of the training rows, for a window without a past.
        spread: their standard deviation.
        projected: numbers that the covariates of a step to come become.
        hidden: width of the network; ``blocks`` of it, with ``dropout``.
    """

    model_type = "headrace-forecast"

    context: int = 1
    horizon: int = 1
    past: int = 0
    future: int = 0
    season: int = 1
    series: int = 0
    quantiles: list[float] | None = None
    mean: float = 0.0
    spread: float = 1.0
    projected: int = 8
    hidden: int = 128
    blocks: int = 2
    dropout: float = 0.1


class FromNothing(nn.Linear):
    """A layer that says nothing until it has learned."""

    def reset_parameters(self) -> None:
        """Begins at zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class FromMean(nn.Linear):
    """A layer that says the mean of what it reads until it has learned better."""

    def reset_parameters(self) -> None:
        """Begins as the mean."""
        nn.init.constant_(self.weight, 1 / self.in_features)
        nn.init.zeros_(self.bias)


class ForecastModel(FreshModel):
    """Reads a window and says quantiles of each step that follows it."""

    config_class = ForecastConfig

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__(config)
        wide, hidden = config.projected, config.hidden
        quantiles = len(config.quantiles or ())
        lags = lags_of(config)
        self.lags: torch.Tensor
        self.register_buffer("lags", lags)
        self.past = nn.Linear(config.past, PAST_PROJECTED) if config.past else None
        self.future = nn.Linear(config.future, wide) if config.future else None
        self.series = nn.Embedding(config.series + 1, wide) if config.series else None
        read = 2 * config.context + (config.context * PAST_PROJECTED if config.past else 0)
        read += (config.horizon * wide if config.future else 0) + (wide if config.series else 0)
        self.entry = nn.Linear(read, hidden)
        self.blocks = nn.ModuleList([Block(hidden, config.dropout) for _ in range(config.blocks)])
        self.norm = nn.LayerNorm(hidden)
        self.unfold = nn.Linear(hidden, config.horizon * wide)
        self.exit = nn.Sequential(
            nn.Linear(wide + (wide if config.future else 0) + lags.shape[1], hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, quantiles),
        )
        self.direct = FromNothing(config.context, config.horizon)
        self.repeated = FromMean(lags.shape[1], 1)
        self.post_init()

    def forward(
        self,
        values: torch.Tensor,
        observed: torch.Tensor,
        past: torch.Tensor,
        future: torch.Tensor,
        series: torch.Tensor,
    ) -> torch.Tensor:
        """Quantiles in the series' own unit, ascending: ``[windows, horizon, quantiles]``.

        Args:
            values: the past, of shape ``[windows, context]``, oldest first.
            observed: 1 where it is known, else 0; of the same shape.
            past: features of its steps, of shape ``[windows, context, features]``.
            future: features of the steps to come, of shape ``[windows, horizon, features]``.
            series: the number of each window's series, 0 for an unknown one.
        """
        level, spread = self.scale(values, observed)
        standard = ((values - level) / spread) * observed
        parts = [standard, observed]
        if self.past is not None:
            parts.append(torch.relu(self.past(past)).flatten(1))
        coming = torch.relu(self.future(future)) if self.future is not None else None
        if coming is not None:
            parts.append(coming.flatten(1))
        if self.series is not None:
            parts.append(self.series(series))
        window = self.entry(torch.cat(parts, dim=1))
        for block in self.blocks:
            window = block(window)
        steps = self.unfold(self.norm(window)).unflatten(1, (self.config.horizon, self.config.projected))
        before = standard[:, self.lags]
        said = self.exit(torch.cat([steps, before] if coming is None else [steps, before, coming], dim=2))
        said = said + self.direct(standard).unsqueeze(2) + self.repeated(before)
        quantiles: torch.Tensor = said.float() * spread.unsqueeze(2) + level.unsqueeze(2)
        return quantiles.sort(dim=2).values

    def scale(self, values: torch.Tensor, observed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each window, both ``[windows, 1]``; of all training rows for an empty one."""
        count = observed.sum(1, keepdim=True)
        level = (values * observed).sum(1, keepdim=True) / count.clamp(min=1)
        variance = ((values - level).square() * observed).sum(1, keepdim=True) / count.clamp(min=1)
        least = LEAST_SPREAD * level.abs() + 1e-6 * self.config.spread
        spread = torch.maximum(variance.sqrt(), least)
        empty = count == 0
        level = torch.where(empty, torch.full_like(level, self.config.mean), level)
        return level, torch.where(empty, torch.full_like(spread, self.config.spread), spread)


def lags_of(config: ForecastConfig) -> torch.Tensor:
    """For each step to come the places in the context that lie whole seasons before it, the newest first."""
    lags = max(1, min(MOST_LAGS, config.context // config.season))
    ahead = torch.arange(config.horizon)
    seasons = (ahead // config.season + 1).unsqueeze(1) + torch.arange(lags)
    return config.context + ahead.unsqueeze(1) - seasons * config.season


def pinball(said: torch.Tensor, truth: torch.Tensor, quantiles: list[float]) -> torch.Tensor:
    """The pinball loss of each window (Koenker and Bassett, "Regression Quantiles", 1978): ``[windows]``.

    Args:
        said: of shape ``[windows, horizon, quantiles]``.
        truth: of shape ``[windows, horizon]``, not a number where it is not known.
    """
    known = ~truth.isnan()
    off = torch.where(known, truth, 0.0).unsqueeze(2) - said
    wanted = torch.tensor(quantiles, device=said.device, dtype=said.dtype)
    losses = torch.maximum(wanted * off, (wanted - 1) * off).mean(2) * known
    return losses.sum(1) / known.sum(1).clamp(min=1)
