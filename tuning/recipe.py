"""What a recipe says about the search for better hyper-parameters."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cluster.settings import Count, Seed, Strict

KINDS = ("log_uniform", "uniform", "int_uniform", "choice")


class Range(Strict):
    """What one field is searched over; exactly one of the four."""

    example: ClassVar[str] = "{choice: [16, 32]}"

    log_uniform: tuple[float, float] | None = Field(None, description="[low, high], evenly over orders of magnitude.")
    uniform: tuple[float, float] | None = Field(None, description="[low, high], evenly.")
    int_uniform: tuple[int, int] | None = Field(None, description="[low, high], whole numbers, both included.")
    choice: list[Any] | None = Field(None, min_length=1, description="One of these values.")

    @property
    def kind(self) -> str:
        """Which of the four was given."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> "Range":
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        limits = self.log_uniform or self.uniform or self.int_uniform
        if limits and not limits[0] < limits[1]:
            raise ValueError(f"the low end must be below the high end, not {list(limits)}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs a low end above 0, not {self.log_uniform[0]:g}")
        return self


class Tune(Strict):
    """A sweep: which fields, how many trials, what counts as better."""

    trials: Count = Field(
        12, ge=1, description="How many combinations are tried. Raise it later and the sweep goes on from where it is."
    )
    metric: str | None = Field(None, description="A metric of the task, on validation. Default: the task's headline.")
    search: dict[str, Range] = Field(min_length=1, description="Recipe field by its dotted name: its range.")
    scheduler: Literal["asha", "none"] = Field(
        "asha",
        description="asha stops the weaker half of the trials after 1, 2, 4, 8, … epochs; needs one number of epochs.",
    )
    algorithm: Literal["optuna", "random", "grid"] = Field(
        "optuna",
        description="How combinations are chosen: learning from earlier trials, blindly, or all of them. Unless all "
        "are tried, the first is the recipe's own where it lies within the ranges.",
    )
    seed: Seed = Field(7, description="What the choices are drawn from.")

    @property
    def judge(self) -> str:
        """The metric of a sweep, which names the task's headline where the recipe names none."""
        assert self.metric is not None
        return self.metric

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler_that_exists(cls, value: Any) -> Any:
        if value == "pbt":
            raise ValueError("pbt is not available in this version; use asha or none")
        return value

    @field_validator("search", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """Also reads ``{train: {learning_rate: …}}``, which is what an override on the command line makes."""
        return dict(_dotted_items(value, "")) if isinstance(value, dict) else value


def _dotted_items(value: dict[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, inner in value.items():
        holds_fields = isinstance(inner, dict) and inner and all(isinstance(below, dict) for below in inner.values())
        if isinstance(inner, dict) and not prefix and "." not in key:  # a section, whatever stands in it
            holds_fields = not inner.keys() & set(KINDS)
        items += _dotted_items(inner, f"{prefix}{key}.") if holds_fields else [(f"{prefix}{key}", inner)]
    return items
