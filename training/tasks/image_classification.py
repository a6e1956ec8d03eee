"""Image classification: one label, several, a label of an order, or a number for a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoModelForImageClassification, PreTrainedModel

from training import media
from training.images import Pictures, flipped, moved
from training.recipe import Model, Strict
from training.targets import KINDS, Number, Problem, Target, every_metric, load_target
from training.tasks.task import Baseline, Batch, Example, Outputs, Row, Task
from training.text import from_pretrained

if TYPE_CHECKING:
    from training.evaluation.sections import Section


class Options(Strict):
    """What is predicted of a picture, and how pictures are varied while the model learns."""

    problem: Problem = Field("single-label", description="One label, several, one of an ordered set, or a number.")
    separator: str = Field(",", min_length=1, description="What stands between the labels of a multi-label cell.")
    order: list[str] = Field(
        default_factory=list, description="The labels of an ordinal target from least to most; numbers need no order."
    )
    folder: str = Field(
        ".",
        description="What relative names of files in the column start from, relative to the recipe; where it is given, "
        "a job on a cluster takes the folder along.",
    )
    size: int | None = Field(
        None, ge=8, le=4096, description="Pixels of a side, for a base that takes any; default: as the base says."
    )
    flip: bool = Field(False, description="Mirror half of the training pictures, where left and right mean the same.")
    move: float = Field(
        0.0, ge=0, lt=0.5, description="Move training pictures by up to this share of their sides, at random."
    )


class ImageClassification(Task):
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
    lone_answer: ClassVar[bool] = True
    metrics_known: dict[str, str] = every_metric()
    headline: str = KINDS["single-label"].headline

    def __init__(self, pictures: Pictures, target: Target, options: Options) -> None:
        self.pictures, self.target, self.options = pictures, target, options
        self.labels = target.labels
        self.metrics_known, self.headline = target.metrics_known, target.headline
        self.of_probabilities = target.of_probabilities

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options = Options.model_validate(model.options)
        cells = {split: table[model.named_target].to_pylist() for split, table in splits.items()}
        target = KINDS[options.problem].learn(model.named_target, cells, options.model_dump(), unicode)
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

    def encode_target(self, row: Row) -> Any:
        return self.target.encode(row[self.target.column])

    def length(self, example: Example) -> int:
        return self.pictures.tokens

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = {"pixels": self.pictures.stack([example["pixels"] for example in examples])}
        if "target" in examples[0]:
            batch["targets"] = self.target.tensor([example["target"] for example in examples])
        return batch

    def shown(self, example: Example) -> dict[str, str]:
        return {"image": self.pictures.thumbnail(example["pixels"])}

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> PreTrainedModel:
        names = list(self.labels) or [self.target.column]
        return from_pretrained(
            AutoModelForImageClassification,
            base,
            num_labels=self.target.width,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            problem_type=self.target.problem_type,
            ignore_mismatched_sizes=True,  # a base that was a classifier of other labels gets a new head
        )

    def open(self, folder: Path) -> PreTrainedModel:
        return from_pretrained(AutoModelForImageClassification, folder).eval()

    def head(self, model: PreTrainedModel) -> Sequence[torch.nn.Module]:
        return media.all_but_the_base(model)

    def settle(self, model: PreTrainedModel) -> Task:
        if not isinstance(self.target, Number):
            return self
        layers = [layer for module in self.head(model) for layer in module.modules()]
        last = [layer for layer in layers if isinstance(layer, torch.nn.Linear) and layer.out_features == 1][-1]
        return ImageClassification(self.pictures, self.target.settle(last), self.options)

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        pixels = self.pictures.normal(batch["pixels"])
        if model.training and self.options.flip:
            pixels = flipped(pixels)
        if model.training and self.options.move:
            pixels = moved(pixels, self.options.move)
        logits: torch.Tensor = model(pixel_values=pixels).logits
        return logits

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.target.loss(outputs, batch["targets"])

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        return self.target.decode(np.stack(outputs), parameters)

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        return self.target.metrics(np.asarray(outputs), targets)

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import baselines, media_baselines  # a replica does not load scikit-learn

        constant = Baseline(baselines.CONSTANTS[self.target.problem], baselines.majority)
        found = {"majority": constant, "linear": Baseline("Linear model on pixels", media_baselines.on_pixels)}
        if self.pictures.trained:
            found["frozen"] = Baseline("Frozen base + linear head", media_baselines.frozen)
        return found

    @property
    def report_sections(self) -> Sequence["Section"]:
        return self.target.report_sections

    def signature(self) -> dict[str, Any]:
        return {
            "input": media.schema(self.pictures.column, "image"),
            "parameters": self.target.parameters_schema(),
            "output": self.target.answer_schema(),
        }
