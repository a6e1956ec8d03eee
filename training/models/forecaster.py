"""A network that forecasts: the recent past of a series and what is known of its future, to quantiles of each step.

After the decoder of TiDE (Das et al., "Long-term Forecasting with TiDE", 2023): a residual network says each step to
come from that step's own covariates and from projected ones of the past, beside a linear path from past to future.
Where TiDE squeezes the whole window into one state, a step here sees a choice of it as it was: the newest steps and
those that lie whole seasons before it. One network serves all steps, so that a window teaches it as often as it has
steps, and what repeats need not be learned: each step begins as the mean of the seasons before. Every window is read
relative to its own level and spread, so that one model serves series of any size.
"""

from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig

from cluster.errors import UserError
from training.inputs.text import from_pretrained
from training.models.fusion import Block, FreshModel

PAST_PROJECTED = 4
"""Numbers that the covariates of a past step become; as many as in the paper."""

MOST_LAGS = 16
"""How often each step looks back by one more season, of every length."""

NEWEST = 24
"""Steps at the end of the window that every step to come looks back on."""

LEAST_SPREAD = 0.05
"""Of a window that hardly moves, the share of its level that is taken for its spread."""


class ForecastConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers ships no types that hold
    """What a :class:`ForecastModel` is made of.

    Attributes:
        context: steps of the past that are read.
        horizon: steps that are said.
        past: features of a past step besides the series itself.
        future: features of a step to come.
        seasons: after how many steps things repeat, each at most ``context``.
        series: series that are known by name; one more stands for all others.
        quantiles: those that are said, ascending.
        mean: of the training rows, for a window without a past.
        spread: their standard deviation.
        projected: numbers that the place of a step to come becomes, and the series.
        hidden: width of the network; ``blocks`` of it, with ``dropout``.
    """

    model_type = "headrace-forecast"

    context: int = 1
    horizon: int = 1
    past: int = 0
    future: int = 0
    seasons: list[int] | None = None
    series: int = 0
    quantiles: list[float] | None = None
    mean: float = 0.0
    spread: float = 1.0
    projected: int = 8
    hidden: int = 128
    blocks: int = 2
    dropout: float = 0.1


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
        lags = lags_of(config)
        newest = torch.arange(max(0, config.context - NEWEST), config.context)
        self.lags: torch.Tensor
        self.newest: torch.Tensor
        self.register_buffer("lags", lags)
        self.register_buffer("newest", newest)
        self.past = nn.Linear(config.past, PAST_PROJECTED) if config.past else None
        self.step = nn.Embedding(config.horizon, wide)
        self.series = nn.Embedding(config.series + 1, wide) if config.series else None
        of_each = 2 + (PAST_PROJECTED if config.past else 0)
        read = (lags.shape[1] + len(newest)) * of_each + config.future + wide + (wide if config.series else 0)
        self.entry = nn.Sequential(nn.Linear(read, hidden), nn.GELU(), nn.Dropout(config.dropout))
        self.blocks = nn.ModuleList([Block(hidden, config.dropout) for _ in range(config.blocks)])
        self.norm = nn.LayerNorm(hidden)
        self.exit = nn.Linear(hidden, len(config.quantiles or ()))
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
        looked = [standard.unsqueeze(2), observed.unsqueeze(2)]
        if self.past is not None:
            looked.append(torch.relu(self.past(past)))
        seen = torch.cat(looked, dim=2)
        windows, horizon = values.shape[0], self.config.horizon
        parts = [
            seen[:, self.lags].flatten(2),
            seen[:, self.newest].flatten(1).unsqueeze(1).expand(windows, horizon, -1),
            self.step.weight.expand(windows, -1, -1),
            future,
        ]
        if self.series is not None:
            parts.append(self.series(series).unsqueeze(1).expand(windows, horizon, -1))
        steps = self.entry(torch.cat(parts, dim=2))
        for block in self.blocks:
            steps = block(steps)
        said = self.exit(self.norm(steps)) + self.repeated(self.before(standard, observed))
        quantiles: torch.Tensor = said.float() * spread.unsqueeze(2) + level.unsqueeze(2)
        return quantiles.sort(dim=2).values

    def before(self, standard: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """What lies whole seasons before each step, ``[windows, horizon, lags]``; the others' mean where one is not."""
        values, known = standard[:, self.lags], observed[:, self.lags]
        mean = (values * known).sum(2, keepdim=True) / known.sum(2, keepdim=True).clamp(min=1)
        return torch.where(known > 0, values, mean)

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


def open_forecaster(folder: Path) -> ForecastModel:
    """The model of a bundle.

    Raises:
        UserError: it is of an earlier kind than these.
    """
    model = from_pretrained(ForecastModel, folder, ignore_mismatched_sizes=True)
    if model.new_weights:
        raise UserError(f"{folder}: its network is of an earlier kind; train its recipe again")
    return cast(ForecastModel, model)


def lags_of(config: ForecastConfig) -> torch.Tensor:
    """For each step to come the places in the context that lie whole seasons before it: ``[horizon, lags]``.

    Of every season the newest come first, the shortest season before a longer one.
    """
    ahead = torch.arange(config.horizon).unsqueeze(1)
    found = []
    for season in sorted(config.seasons or [1]):
        back = ahead // season + 1 + torch.arange(max(1, min(MOST_LAGS, config.context // season)))
        found.append(config.context + ahead - back * season)
    return torch.cat(found, dim=1)


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
