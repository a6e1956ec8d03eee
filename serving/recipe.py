"""What a recipe says about hosting its model."""

from pydantic import Field, model_validator

from cluster.settings import Strict


class Replicas(Strict):
    """How many copies of the model answer; Ray Serve moves between the two numbers with the load."""

    min: int = Field(1, ge=1, description="Copies that are always there.")
    max: int = Field(1, ge=1, description="Copies at the highest load.")

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Serve(Strict):
    """How the model is hosted."""

    replicas: Replicas = Field(default_factory=Replicas, description="Autoscaling bounds.")
    max_items: int = Field(128, ge=1, description="Inputs that one request may carry.")
    max_body_bytes: int = Field(2_000_000, ge=1024, description="The largest request body.")
    max_queue: int = Field(2048, ge=1, description="Inputs waiting in one replica before it answers 429.")
    timeout_seconds: float = Field(30, gt=0, description="The longest that a request may wait for its answer.")
