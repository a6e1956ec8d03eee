"""Time-series forecasting: what follows a series, as quantiles of each step to come."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field, field_validator

from cluster.errors import FewRowsError, UserError
from cluster.settings import Count, Strict
from training.evaluation import metrics
from training.inputs import windows
from training.inputs.cells import Kind, read_label, read_number
from training.inputs.columns import Columns
from training.inputs.timeline import Timeline
from training.inputs.windows import FUTURE, HISTORY, Shape, by_series, cut, features, lines, numbers, seasonal_errors
from training.models.forecaster import ForecastConfig, ForecastModel, open_forecaster, pinball
from training.recipe import Model
from training.tasks.task import Baseline, Batch, Example, Output, Outputs, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.evaluation.sections import Section

BINS = 2
"""Of a number, which is read standardised here and by no bins."""

Floats = npt.NDArray[np.float32]


class Options(Strict):
    """How far to forecast, how far to look back, and how large the network is."""

    horizon: Count = Field(ge=1, description="Steps that are forecast at once.")
    context: Count | None = Field(
        None, ge=1, description="Steps that are looked back on. Default: four horizons, and a season at least."
    )
    season: Count | None = Field(
        None, ge=1, description="Steps until things repeat. Default: what suits the steps, as 24 hours or 12 months."
    )
    stride: Count | None = Field(
        None,
        ge=1,
        description="Steps from one forecast to the next, in every split. Default: an eighth of the horizon.",
    )
    quantiles: list[float] = Field(default=[0.1, 0.5, 0.9], description="What is said of each step; 0.5 among them.")
    kinds: dict[str, Kind] = Field(
        default_factory=dict, description="Column: number, category or date, where it is not what it looks like."
    )
    hidden: Count = Field(128, ge=8, description="Width of the network.")
    blocks: Count = Field(2, ge=0, description="Residual blocks of it.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of its inner values that are left out while it learns.")

    @field_validator("quantiles")
    @classmethod
    def _ordered(cls, quantiles: list[float]) -> list[float]:
        if 0.5 not in quantiles or not all(0 < one < 1 for one in quantiles) or len(set(quantiles)) < len(quantiles):
            raise ValueError("different numbers between 0 and 1 are needed, 0.5 among them")
        return sorted(quantiles)


class TimeSeriesForecasting(Task):
    """Reads the recent past of a series, and what is known of its future, and answers with the steps to come.

    Attributes:
        shape: which columns a window has, and how long it is.
        timeline: the steps that time is counted in.
        columns: turns covariates into numbers.
        scales: for each series that is known the mean error of the seasonal-naive forecast on the training rows.
        season: steps until things repeat.
        quantiles: what is said of each step, ascending.
        network: the size of the model, and what it falls back on for a window without a past.
    """

    name: ClassVar[str] = "time-series-forecasting"
    roles: ClassVar[dict[str, str]] = {"time": "the column of moments, equally far apart"}
    optional_roles: ClassVar[dict[str, str]] = {
        "series": "the column that tells series apart",
        "known": "columns that are known of the future, such as holidays and prices",
        "past": "columns that are known of the past alone",
    }
    compared_roles: ClassVar[frozenset[str] | None] = frozenset()
    options_known: ClassVar[type[Strict]] = Options
    base_needed: ClassVar[bool] = False
    metrics_known: dict[str, str] = metrics.FORECAST
    headline: str = "mae"
    of_probabilities: frozenset[str] = frozenset({"pinball", "coverage_error", "loss"})

    def __init__(
        self,
        shape: Shape,
        timeline: Timeline,
        columns: Columns,
        scales: Mapping[str, float],
        season: int,
        quantiles: Sequence[float],
        network: Mapping[str, Any],
    ) -> None:
        self.shape, self.timeline, self.columns = shape, timeline, columns
        self.scales, self.season, self.quantiles = dict(scales), season, list(quantiles)
        self.network = dict(network)
        self._numbers = {name: number for number, name in enumerate(self.scales, 1)}
        self._scale = float(np.mean(list(self.scales.values())))
        self._covariates = {column.name: column for column in columns.columns}
        self._calendar = self.timeline.calendar(np.zeros(1, dtype=np.int64)).shape[1]

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options, train = Options.model_validate(model.options), splits["train"]
        time, series = _one(model, "time"), _one(model, "series")
        assert time is not None
        moments = [table[time].to_pylist() for table in by_series(train, series)]
        timeline = Timeline.learn(moments, time)
        season = options.season or timeline.season
        shape = Shape(
            time=time,
            series=series,
            target=model.named_target,
            known=tuple(model.inputs.get("known", [])),
            past=tuple(model.inputs.get("past", [])),
            context=options.context or max(4 * options.horizon, season),
            horizon=options.horizon,
            stride=options.stride or max(1, options.horizon // 8),
        )
        lines(shape, timeline, splits)  # that the splits lie one after the other is told before anything is learned
        covariates = [*shape.known, *shape.past]
        columns = Columns.learn(covariates, train, options.kinds, BINS, unicode)
        values = np.array(numbers(train[shape.target].to_pylist(), shape.target), dtype=np.float64)
        if np.isnan(values).all():
            raise FewRowsError(f"model.target: '{shape.target}' has no value in any training row")
        network = options.model_dump(include={"hidden", "blocks", "dropout"})
        network |= {"mean": float(np.nanmean(values)), "spread": float(np.nanstd(values)) or 1.0}
        network["floor"] = 0.0 if np.nanmin(values) >= 0 else None
        scales = seasonal_errors(shape, timeline, train, values, season)
        return cls(shape, timeline, columns, scales, season, options.quantiles, network)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        shape = dict(settings["shape"])
        shape |= {"known": tuple(shape["known"]), "past": tuple(shape["past"])}
        return cls(
            Shape(**shape),
            Timeline(**settings["timeline"]),
            Columns.load(settings["columns"]),
            settings["scales"],
            settings["season"],
            settings["quantiles"],
            settings["network"],
        )

    def save(self, folder: Path) -> dict[str, Any]:
        return {
            "shape": vars(self.shape),
            "timeline": self.timeline.save(),
            "columns": self.columns.save(),
            "scales": self.scales,
            "season": self.season,
            "quantiles": self.quantiles,
            "network": self.network,
        }

    def questions(self, splits: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        return cut(self.shape, self.timeline, splits)

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self._row(index, value) for index, value in enumerate(inputs)]

    def _row(self, index: int, value: Any) -> Row:
        where = f"inputs[{index}]"
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: an object with '{HISTORY}' is needed, not {type(value).__name__}")
        for part, names in self.shape.parts.items():
            self._check_part(f"{where}.{part}", value.get(part), names)
        return value

    def _check_part(self, where: str, part: Any, names: Sequence[str]) -> None:
        if not isinstance(part, Mapping):
            raise UserError(f"{where}: an object with a list for each of {', '.join(names)} is needed")
        for name in names:
            if not isinstance(part.get(name), list | tuple):
                raise UserError(f"{where}.{name}: a list is needed, with a value for each step")
            if len(part[name]) != len(part[self.shape.time]):
                raise UserError(f"{where}.{name}: as many values are needed as there are in {self.shape.time}")
            column = self._covariates.get(name)
            try:
                for cell in part[name]:
                    if column:
                        column.read(cell)
                    elif name == self.shape.target:
                        read_number(cell)
            except ValueError:
                wanted = column.wanted if column else "a number is needed"
                raise UserError(f"{where}.{name}: {wanted} at each step") from None
        try:
            self.timeline.places(part[self.shape.time], self.shape.time)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def text(self, row: Row) -> str:
        last = max(self.timeline.places(row[HISTORY][self.shape.time], self.shape.time))
        whose = f"{read_label(row[self.shape.series])}, " if self.shape.series else ""
        return f"{whose}from {self.timeline.moment(int(last) + 1)}"

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [self._example(row) for row in rows]

    def _example(self, row: Row) -> Example:
        """``past`` and ``future`` as fp32 of shape ``[steps, features]``, the series' number and the last place.

        The first feature of the past is the series itself, not a number where it is not known.
        """
        shape = self.shape
        history, future = ((row.get(part) or {shape.time: []}) for part in (HISTORY, FUTURE))
        places = self.timeline.places(history[shape.time], shape.time)
        last = int(places.max()) if len(places) else 0
        steps = np.arange(last + 1 - shape.context, last + 1)
        values = numbers(history.get(shape.target, []), shape.target)
        past = [
            self._on(steps, places, np.array(values, dtype=np.float64)[:, None], np.nan),
            *(self._told(name, history, places, steps) for name in (*shape.known, *shape.past)),
            self.timeline.calendar(steps),
        ]
        coming = np.arange(last + 1, last + 1 + shape.horizon)
        told = self.timeline.places(future.get(shape.time, []), shape.time)
        ahead = [*(self._told(name, future, told, coming) for name in shape.known), self.timeline.calendar(coming)]
        name = row.get(shape.series) if shape.series else ""
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and then nothing answers it
            before, after = (np.concatenate(one, axis=1).astype(np.float32).tobytes() for one in (past, ahead))
        return {
            "past": before,
            "future": after,
            "series": self._numbers.get("" if name is None else read_label(name), 0),
            "last": last,
        }

    def _told(self, name: str, part: Mapping[str, Any], places: Any, steps: Any) -> npt.NDArray[np.float64]:
        """The features of a covariate on the grid; nothing where it is not told."""
        return self._on(steps, places, features(self._covariates[name], part.get(name, [])), 0.0)

    @staticmethod
    def _on(steps: Any, places: Any, values: Any, missing: float) -> npt.NDArray[np.float64]:
        grid = np.full((len(steps), values.shape[1]), missing)
        at = places - steps[0]
        inside = (at >= 0) & (at < len(steps))
        grid[at[inside]] = values[inside]
        return grid

    def encode_target(self, row: Row) -> list[float]:
        """The truth at each step, not a number where it is not known, and the scale of the series."""
        truth = numbers(row[self.shape.target], self.shape.target)
        name = read_label(row[self.shape.series]) if self.shape.series else ""
        return [*truth, self.scales.get(name, self._scale)]

    def length(self, example: Example) -> int:
        return 1

    def collate(self, examples: Sequence[Example]) -> Batch:
        past = _stacked([one["past"] for one in examples], self.shape.context)
        values = past[:, :, 0]
        observed = (~values.isnan()).float()
        batch = {
            "values": values.nan_to_num(),
            "observed": observed,
            "past": past[:, :, 1:],
            "future": _stacked([one["future"] for one in examples], self.shape.horizon),
            "series": torch.tensor([one["series"] for one in examples], dtype=torch.int64),
        }
        if "target" in examples[0]:
            targets = [one["target"] for one in examples]
            batch["targets"] = torch.tensor(targets, dtype=torch.float64).float()
        return batch

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        width = {name: features(column, []).shape[1] for name, column in self._covariates.items()}
        known = sum(width[name] for name in self.shape.known)
        config = ForecastConfig(
            context=self.shape.context,
            horizon=self.shape.horizon,
            past=known + sum(width[name] for name in self.shape.past) + self._calendar,
            future=known + self._calendar,
            seasons=windows.seasons(self.timeline, self.season, self.shape.context),
            series=len(self.scales) if self.shape.series else 0,
            quantiles=self.quantiles,
            **{name: value for name, value in self.network.items() if name != "floor"},
        )
        return ForecastModel(config)

    def open(self, folder: Path) -> "PreTrainedModel":
        return open_forecaster(folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return list(model.children())

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        said: torch.Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "targets"})
        return said

    def keep(self, outputs: torch.Tensor, examples: Sequence[Example]) -> list[Output]:
        said = outputs.float().cpu().numpy()
        return list(said if self.network["floor"] is None else np.maximum(said, self.network["floor"]))

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        targets = batch["targets"]
        return pinball(outputs, targets[:, :-1], self.quantiles) / targets[:, -1]

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        steps = self._steps(parameters)
        middle = self.quantiles.index(0.5)
        return [
            {
                "time": [self.timeline.moment(example["last"] + 1 + step) for step in range(steps)],
                "median": [float(value) for value in said[:steps, middle]],
                "quantiles": {
                    f"{quantile:g}": [float(value) for value in said[:steps, place]]
                    for place, quantile in enumerate(self.quantiles)
                },
            }
            for said, example in zip(outputs, examples, strict=True)
        ]

    def _steps(self, parameters: Mapping[str, Any]) -> int:
        for name in parameters:
            if name != "horizon":
                raise UserError(f"parameters.{name}: unknown; this task takes horizon")
        steps = parameters.get("horizon", self.shape.horizon)
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= self.shape.horizon:
            raise UserError(f"parameters.horizon: a whole number from 1 to {self.shape.horizon} is needed")
        return steps

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        if not targets:
            return {}
        known = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
        return metrics.forecast(np.asarray(outputs, dtype=np.float64), known[:, :-1], known[:, -1:], self.quantiles)

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import forecasts  # it loads scikit-learn, which a replica does not

        return {
            "naive": Baseline(f"As {self.season} steps before", forecasts.seasonal_naive, probabilities=False),
            "trees": Baseline("Gradient-boosted trees on lags and calendar", forecasts.trees, probabilities=False),
        }

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import forecasts  # as above

        return forecasts.sections_for(self.quantiles)

    def signature(self) -> dict[str, Any]:
        shape = self.shape
        cells = {name: column.schema() for name, column in self._covariates.items()}
        cells |= {shape.time: {"type": ["string", "integer"]}, shape.target: {"type": ["number", "null"]}}
        parts = {
            part: {
                "type": "object",
                "properties": {name: {"type": "array", "items": cells[name]} for name in names},
                "required": names,
            }
            for part, names in shape.parts.items()
        }
        name = {shape.series: {"type": ["string", "number", "null"]}} if shape.series else {}
        numbers = {"type": "array", "items": {"type": "number"}}
        said = {
            "time": {"type": "array", "items": {"type": ["string", "integer"]}},
            "median": numbers,
            "quantiles": {"type": "object", "properties": {f"{one:g}": numbers for one in self.quantiles}},
        }
        horizon = {"type": "integer", "minimum": 1, "maximum": shape.horizon, "default": shape.horizon}
        return {
            "input": {"type": "object", "properties": {**parts, **name}, "required": list(parts)},
            "parameters": {"type": "object", "properties": {"horizon": horizon}, "additionalProperties": False},
            "output": {"type": "object", "properties": said, "required": list(said)},
        }


def _stacked(parts: Sequence[bytes], steps: int) -> torch.Tensor:
    whole = np.frombuffer(b"".join(parts), dtype=np.float32).reshape(len(parts), steps, -1)
    return torch.from_numpy(whole.copy())


def _one(model: Model, role: str) -> str | None:
    columns = model.inputs.get(role, [])
    if len(columns) > 1:
        raise UserError(f"model.inputs.{role}: one column is needed, not {', '.join(columns)}")
    return columns[0] if columns else None
