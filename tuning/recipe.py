"""What a recipe says about the search for better hyper-parameters."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from training.recipe import Strict

KINDS = ("log_uniform", "uniform", "int_uniform", "choice")


class Range(Strict):
    """What one field is searched over; exactly one of the four."""

    log_uniform: tuple[float, float] | None = Field(None, description="[low, high], evenly over orders of magnitude.")
    uniform: tuple[float, float] | None = Field(None, description="[low, high], evenly.")
    int_uniform: tuple[int, int] | None = Field(None, description="[low, high], whole numbers, both included.")
    choice: list[Any] | None = Field(None, min_length=1, description="One of these values.")

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

    trials: int = Field(12, ge=1, description="How many combinations are tried.")
    metric: str = Field("accuracy", description="A metric of the task, on validation.")
    search: dict[str, Range] = Field(min_length=1, description="Recipe field by its dotted name: its range.")
    scheduler: Literal["asha", "none"] = Field("asha", description="asha stops weak trials after each epoch.")
    algorithm: Literal["optuna", "random", "grid"] = Field("optuna", description="How combinations are chosen.")
    seed: int = Field(7, ge=0, description="What the choices are drawn from.")

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler_that_exists(cls, value: Any) -> Any:
        if value == "pbt":
            raise ValueError("pbt is not available in this version; use asha or none")
        return value
