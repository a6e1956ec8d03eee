"""What the tasks that read a row of a table have in common: which columns, which model, which baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoModel

from cluster.errors import UserError
from cluster.settings import Count, Strict
from training.families.predicting import Predicting
from training.inputs import media
from training.inputs.cells import Kind
from training.inputs.columns import DATE_FEATURES, Columns
from training.inputs.images import Pictures
from training.inputs.text import Reader, from_pretrained
from training.recipe import Model
from training.targets import Target, load_target
from training.tasks.task import Baseline, Batch, Example, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TableOptions(Strict):
    """How the columns are read, and how large the network over them is."""

    kinds: dict[str, Kind] = Field(
        default_factory=dict, description="Column: number, category or date, where it is not what it looks like."
    )
    size: int | None = Field(
        None, ge=8, le=4096, description="Pixels of a side of pictures, where no base says; by default 224."
    )
    folder: str = Field(
        ".",
        description="What relative names of picture files start from, relative to the recipe; where it is given, a job "
        "on a cluster takes the folder along.",
    )
    bins: int = Field(32, ge=2, le=256, description="Bins of equally many rows that a number is read by.")
    embedding: Count = Field(16, ge=1, description="Numbers that each column becomes.")
    hidden: Count = Field(128, ge=8, description="Width of the network that fuses the columns.")
    blocks: Count = Field(2, ge=0, description="Residual blocks of it.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of its inner values that are left out while it learns.")

    def network(self) -> dict[str, Any]:
        """What of this the model's configuration takes."""
        return self.model_dump(include={"embedding", "hidden", "blocks", "dropout"})


class TabularTask(Predicting):
    """Reads numbers, categories, dates, texts and a picture of a row, and says what its target says.

    What ``model.base`` reads are the texts; where there are none, the pictures. Pictures that it does not read are seen
    by a small network that begins with nothing.

    Attributes:
        columns: turns all columns but those of prose and pictures into numbers.
        reader: turns the columns of prose into tokens, where there are any.
        pictures: turns the column of pictures into pixels, where there is one.
        target: turns the target column into tensors, and outputs into answers.
        network: the size of the model.
        base_sees: whether the pictures are what ``model.base`` reads.
    """

    roles: ClassVar[dict[str, str]] = {"columns": "the columns that are numbers, categories or dates"}
    optional_roles: ClassVar[dict[str, str]] = {
        "text": "the columns that are prose, read by model.base",
        "image": "the column of pictures, names of files or their bytes, read by model.base where there is no prose",
    }
    file_roles: ClassVar[frozenset[str]] = frozenset({"image"})
    compared_roles: ClassVar[frozenset[str] | None] = frozenset({"text"})
    base_needed: ClassVar[bool] = False

    def __init__(
        self,
        columns: Columns,
        reader: Reader | None,
        pictures: Pictures | None,
        target: Target,
        network: Mapping[str, Any],
        *,
        base_sees: bool = False,
    ) -> None:
        super().__init__(target)
        self.columns, self.reader, self.pictures, self.network = columns, reader, pictures, dict(network)
        self.base_sees = base_sees

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options = cast(TableOptions, cls.options_known.model_validate(model.options))
        target = cls.learn_target(model, splits, unicode)
        read = [column for columns in model.inputs.values() for column in columns]
        if model.target in read:
            raise UserError(f"model.inputs: '{model.target}' is the target; a model that reads it learns nothing else")
        texts = model.inputs.get("text", [])
        if texts and model.base is None:
            raise UserError("model.base: missing; the columns under model.inputs.text are read by a pre-trained model")
        columns = Columns.learn(model.inputs["columns"], splits["train"], options.kinds, options.bins, unicode)
        reader = Reader.learn(texts, base, model.max_length, unicode) if texts else None
        pictures, base_sees = None, False
        if "image" in model.inputs:
            column = media.one_column("image", model.inputs["image"])
            base_sees = model.base is not None and not texts
            pictures = Pictures.learn(column, base if base_sees else None, options.size)
        return cls(columns, reader, pictures, target, options.network(), base_sees=base_sees)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        reader = Reader.load(settings["reader"], folder) if settings["reader"] else None
        pictures = Pictures.load(settings["pictures"], folder) if settings.get("pictures") else None
        target = load_target(settings["target"], cls.targets)
        columns, sees = Columns.load(settings["columns"]), settings.get("base_sees", False)
        return cls(columns, reader, pictures, target, settings["network"], base_sees=sees)

    def save(self, folder: Path) -> dict[str, Any]:
        return {
            "columns": self.columns.save(),
            "reader": self.reader.save(folder) if self.reader else None,
            "pictures": self.pictures.save(folder) if self.pictures else None,
            "target": self.target.save(),
            "network": self.network,
            "base_sees": self.base_sees,
        }

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        rows: list[Row] = []
        for index, value in enumerate(inputs):
            row = self.columns.row(index, value)
            if self.reader:
                row |= dict.fromkeys(self.reader.columns - row.keys())  # prose that is not there says nothing
                self.reader.row(index, row)
            if self.pictures:
                name = self.pictures.column
                cell = row.get(name)
                row[name] = None if media.absent(cell) else media.sent(cell, f"inputs[{index}].{name}", "picture")
            rows.append(row)
        return rows

    def text(self, row: Row) -> str:
        read = self.columns.text(row)
        return f"{self.prose(row)} ({read})" if self.reader else read

    def prose(self, row: Row) -> str:
        """What the columns of prose say."""
        return self.reader.text(row) if self.reader else ""

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        examples = self.columns.encode(rows)
        if self.reader:
            for example, tokens in zip(examples, self.reader.read(rows), strict=True):
                example["input_ids"] = tokens
        if self.pictures:
            for example, pixels in zip(examples, self._pixels(rows), strict=True):
                blank = self.pictures.read([{}])[0] if pixels is None else pixels
                example |= {"pixels": blank, "pictured": float(pixels is not None)}
        return examples

    def _pixels(self, rows: Sequence[Row]) -> list[Any]:
        """What each row's picture shows; None where there is none."""
        assert self.pictures is not None
        there = [place for place, row in enumerate(rows) if not media.absent(row.get(self.pictures.column))]
        read: list[Any] = [None] * len(rows)
        for place, pixels in zip(there, self.pictures.read([rows[place] for place in there]), strict=True):
            read[place] = pixels
        return read

    def length(self, example: Example) -> int:
        return max(
            1, (len(example["input_ids"]) if self.reader else 0) + (self.pictures.tokens if self.pictures else 0)
        )

    def shown(self, example: Example) -> dict[str, str]:
        there = self.pictures and example["pictured"]
        return {"image": self.pictures.thumbnail(example["pixels"])} if self.pictures and there else {}

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = self.columns.collate(examples)
        if self.reader:
            batch |= self.reader.pad([example["input_ids"] for example in examples])
        if self.pictures:
            batch["pixels"] = self.pictures.stack([example["pixels"] for example in examples])
            batch["pictured"] = torch.tensor([example["pictured"] for example in examples])
        return self.with_targets(batch, examples)

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        # Model code takes seconds to import, which only whoever computes with a model has to spend.
        from training.models.fusion import SIGHT, FusionConfig, FusionModel, plain, sight_of, without_pooler

        read = without_pooler(self.reader.from_pretrained(AutoModel, base)) if self.reader else None
        sight = sight_of(from_pretrained(AutoModel, base)) if self.base_sees else None
        config = FusionConfig(
            edges=[column.edges for column in self.columns.numbers],
            sizes=[column.size for column in self.columns.categories],
            dates=len(self.columns.dates),
            date_features=DATE_FEATURES,
            base_config=plain(read.config.to_dict()) if read else None,
            sight_config=(plain(sight.config.to_dict()) if sight else SIGHT) if self.pictures else None,
            outputs=self.target.width,
            **self.network,
        )
        model = FusionModel(config)
        model.base = read
        model.sight = sight or model.sight
        return model

    def open(self, folder: Path) -> "PreTrainedModel":
        from training.models.fusion import FusionModel

        return from_pretrained(FusionModel, folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        came = {"base", "sight"} if self.base_sees else {"base"}
        return [module for name, module in model.named_children() if name not in came]

    def last_layer(self, model: "PreTrainedModel") -> torch.nn.Linear:
        return cast(torch.nn.Linear, cast(Any, model).exit)

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        read = {name: tensor for name, tensor in batch.items() if name not in ("targets", "pixels")}
        if self.pictures:
            read["pixel_values"] = self.pictures.normal(batch["pixels"])
        logits: torch.Tensor = model(**read)
        return logits

    # --- outputs to answers ---------------------------------------------------------------------------------------

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import baselines, table_baselines  # they load scikit-learn, which a replica does not

        found = {
            "majority": Baseline(baselines.CONSTANTS[self.target.problem], baselines.majority),
            "trees": Baseline("Gradient-boosted trees on the table alone", table_baselines.trees),
        }
        if self.reader:
            probabilities = self.target.problem in ("ordinal", "regression")
            found["text"] = Baseline(
                "TF-IDF + linear model on the text alone", table_baselines.text, probabilities, of_texts=True
            )
        if self.pictures:
            from training.evaluation import media_baselines  # as above

            found["pictures"] = Baseline("Linear model on the pixels alone", media_baselines.on_pixels)
        return found

    def importance(self, model: "PreTrainedModel", rows: Sequence[Row]) -> dict[str, float]:
        from training.evaluation.importance import sample, shuffled  # only a report asks

        chosen = [dict(row) for row in sample(rows)]

        read = [*(column.name for column in self.columns.columns), *(self.reader.columns if self.reader else [])]
        if self.pictures:
            read.append(self.pictures.column)
            seen = self._pixels(chosen)
            chosen = [row | {self.pictures.column: one} for row, one in zip(chosen, seen, strict=True)]  # decoded once
        return shuffled(self, model, chosen, read)

    def input_schema(self) -> dict[str, Any]:
        row = self.columns.schema()
        if self.reader:
            row["properties"] |= {column: {"type": ["string", "null"]} for column in self.reader.columns}
        if self.pictures:
            row["properties"][self.pictures.column] = media.cell_schema("image") | {"type": ["string", "null"]}
        return row
