"""Image classification: one label, several, a label of an order, or a number for a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoModelForImageClassification

from cluster.settings import Strict
from training.families.predicting import MediaOptions, Predicting
from training.inputs import media
from training.inputs.images import Pictures, flipped, moved
from training.inputs.text import from_pretrained
from training.models.adapt import head_of
from training.recipe import Model
from training.targets import Target, load_target
from training.tasks.task import Baseline, Batch, Example, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Options(MediaOptions):
    """What is predicted of a picture, and how pictures are varied while the model learns."""

    size: int | None = Field(
        None, ge=8, le=4096, description="Pixels of a side, for a base that takes any; default: as the base says."
    )
    flip: bool = Field(False, description="Mirror half of the training pictures, where left and right mean the same.")
    move: float = Field(
        0.0, ge=0, lt=0.5, description="Move training pictures by up to this share of their sides, at random."
    )


class ImageClassification(Predicting):
    """Reads a column of pictures and answers with labels and their probabilities, or with a number.

    Attributes:
        pictures: turns the column into pixels.
        target: turns the target column into tensors, and outputs into answers.
        options: the recipe's.
    """

    name: ClassVar[str] = "image-classification"
    roles: ClassVar[dict[str, str]] = {"image": "the column of pictures: names of files, or their bytes"}
    file_roles: ClassVar[frozenset[str]] = frozenset({"image"})
    compared_roles: ClassVar[frozenset[str] | None] = frozenset()
    options_known: ClassVar[type[Strict]] = Options
    one_row_each: ClassVar[bool] = True
    lone_answer: ClassVar[bool] = True

    def __init__(self, pictures: Pictures, target: Target, options: Options) -> None:
        super().__init__(target)
        self.pictures, self.options = pictures, options

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options = Options.model_validate(model.options)
        target = cls.learn_target(model, splits, unicode)
        column = media.one_column("image", model.inputs["image"])
        return cls(Pictures.learn(column, base, options.size), target, options)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        options = Options.model_validate(settings["options"])
        return cls(Pictures.load(settings["pictures"], folder), load_target(settings["target"]), options)

    def save(self, folder: Path) -> dict[str, Any]:
        options = self.options.model_dump(include={"flip", "move"})
        return {"pictures": self.pictures.save(folder), "target": self.target.save(), "options": options}

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [media.asked(index, value, self.pictures.column, "picture") for index, value in enumerate(inputs)]

    def text(self, row: Row) -> str:
        return media.name(row.get(self.pictures.column))

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [{"pixels": pixels} for pixels in self.pictures.read(rows)]

    def length(self, example: Example) -> int:
        return self.pictures.tokens

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = {"pixels": self.pictures.stack([example["pixels"] for example in examples])}
        return self.with_targets(batch, examples)

    def shown(self, example: Example) -> dict[str, str]:
        return {"image": self.pictures.thumbnail(example["pixels"])}

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        return from_pretrained(
            AutoModelForImageClassification,
            base,
            **self.head_settings(),
        )

    def open(self, folder: Path) -> "PreTrainedModel":
        return from_pretrained(AutoModelForImageClassification, folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return head_of(model, media.all_but_the_base(model))

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        pixels = self.pictures.normal(batch["pixels"])
        if model.training and self.options.flip:
            pixels = flipped(pixels)
        if model.training and self.options.move:
            pixels = moved(pixels, self.options.move)
        logits: torch.Tensor = model(pixel_values=pixels).logits
        return logits

    # --- outputs to answers ---------------------------------------------------------------------------------------

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import baselines, media_baselines  # a replica does not load scikit-learn

        constant = Baseline(baselines.CONSTANTS[self.target.problem], baselines.majority)
        found = {"majority": constant, "linear": Baseline("Linear model on pixels", media_baselines.on_pixels)}
        if self.pictures.trained:
            found["frozen"] = Baseline("Frozen base + linear head", media_baselines.frozen)
        return found

    def input_schema(self) -> dict[str, Any]:
        return media.schema(self.pictures.column, "image")
