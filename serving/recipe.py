"""What a recipe says about hosting its model."""

from typing import Literal

from pydantic import Field, model_validator

from cluster.settings import Strict

EngineName = Literal["torch-fp32", "torch-bf16", "torch-int8", "onnx-fp32", "onnx-int8"]
Wanted = Literal["fast"] | EngineName


class Replicas(Strict):
    """How many copies of the model answer; Ray Serve moves between the two numbers with the work that waits."""

    min: int = Field(
        1,
        ge=0,
        description="Copies that are always there. With 0 the last one goes when nobody asks; the next request then "
        "waits until one has started.",
    )
    max: int = Field(1, ge=1, description="Copies at the highest load.")
    target_wait_seconds: float = Field(
        0.5,
        gt=0,
        description="There are to be as many copies as bring the wait of a new input, before a model begins with it, "
        "to this: the tokens that wait over the tokens per second that are measured.",
    )
    down_after_seconds: float = Field(
        60, ge=0, description="Copies go when fewer would have sufficed for so long; they come within seconds."
    )
    idle_seconds: float = Field(
        60, gt=0, description="With `min: 0`, the last copy goes after so long without any request."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Serve(Strict):
    """How the model is hosted."""

    replicas: Replicas = Field(default_factory=Replicas, description="Autoscaling bounds.")
    engine: Wanted = Field(
        "torch-fp32",
        description="What computes the answers. torch-fp32: what `predict` computes with; fast: the one that is "
        "measured to be fastest here, of those whose answers agree with torch-fp32 on rows that were held back; or one "
        "by its name. The onnx ones need `pip install 'headrace[onnx]'`.",
    )
    max_items: int = Field(128, ge=1, description="Inputs that one request may carry.")
    max_body_bytes: int = Field(2_000_000, ge=1024, description="The largest request body.")
    max_queue: int = Field(2048, ge=1, description="Inputs waiting in one replica before it answers 429.")
    timeout_seconds: float = Field(30, gt=0, description="The longest that a request may wait for its answer.")


class Hosting(Strict):
    """What a ``serve.yaml`` says: which models share an address, and how they are hosted."""

    models: list[str] = Field(min_length=1, description="Models by name: NAME, NAME@ALIAS, NAME/3, or a bundle folder.")
    serve: Serve = Field(default_factory=Serve, description="How all of them are hosted.")
