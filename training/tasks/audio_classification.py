"""Audio classification: one label, several, a label of an order, or a number for a sound."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoModelForAudioClassification

from cluster.settings import Strict
from training.families.predicting import MediaOptions, Predicting
from training.inputs import media
from training.inputs.sounds import Sounds, masked, shifted
from training.inputs.text import from_pretrained
from training.models.adapt import head_of
from training.recipe import Model
from training.targets import Target, load_target
from training.tasks.task import Baseline, Batch, Example, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Options(MediaOptions):
    """What is predicted of a sound, how it is heard, and how sounds are varied while the model learns."""

    rate: int | None = Field(None, ge=4000, le=48_000, description="Samples a second that a new base hears; or 16000.")
    seconds: float | None = Field(
        None, gt=0, le=600, description="Kept of a sound at most; default: 10, or what the base makes its picture of."
    )
    shift: float = Field(0.0, ge=0, le=10, description="Roll training sounds by up to this many seconds, at random.")
    mask_time: float = Field(0.0, ge=0, lt=1, description="Silence up to this share of a training sound, at random.")
    mask_mels: float = Field(0.0, ge=0, lt=1, description="The same for pitches, where the base hears a spectrogram.")


class AudioClassification(Predicting):
    """Reads a column of sounds and answers with labels and their probabilities, or with a number.

    Attributes:
        sounds: turns the column into what the base hears.
        target: turns the target column into tensors, and outputs into answers.
        options: the recipe's.
    """

    name: ClassVar[str] = "audio-classification"
    roles: ClassVar[dict[str, str]] = {"audio": "the column of sounds: names of files, or their bytes"}
    file_roles: ClassVar[frozenset[str]] = frozenset({"audio"})
    compared_roles: ClassVar[frozenset[str] | None] = frozenset()
    options_known: ClassVar[type[Strict]] = Options
    one_row_each: ClassVar[bool] = True
    lone_answer: ClassVar[bool] = True

    def __init__(self, sounds: Sounds, target: Target, options: Options) -> None:
        super().__init__(target)
        self.sounds, self.options = sounds, options

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options = Options.model_validate(model.options)
        target = cls.learn_target(model, splits, unicode)
        column = media.one_column("audio", model.inputs["audio"])
        heard = splits["train"][column].to_pylist()
        return cls(Sounds.learn(column, base, heard, rate=options.rate, seconds=options.seconds), target, options)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        options = Options.model_validate(settings["options"])
        return cls(Sounds.load(settings["sounds"], folder), load_target(settings["target"]), options)

    def save(self, folder: Path) -> dict[str, Any]:
        options = self.options.model_dump(include={"shift", "mask_time", "mask_mels"})
        return {"sounds": self.sounds.save(folder), "target": self.target.save(), "options": options}

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [media.asked(index, value, self.sounds.column, "sound") for index, value in enumerate(inputs)]

    def text(self, row: Row) -> str:
        return media.name(row.get(self.sounds.column))

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [{"heard": heard} for heard in self.sounds.read(rows)]

    def length(self, example: Example) -> int:
        return self.sounds.tokens(example["heard"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = self.sounds.stack([example["heard"] for example in examples])
        return self.with_targets(batch, examples)

    def shown(self, example: Example) -> dict[str, str]:
        return self.sounds.shown(example["heard"])

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        model = from_pretrained(
            AutoModelForAudioClassification,
            base,
            **self.head_settings(),
        )
        model.config.apply_spec_augment = False  # it would draw from NumPy, which a continued run does not repeat
        model.config.layerdrop = 0.0  # workers that skip different layers wait for each other's gradients for ever
        return model

    def open(self, folder: Path) -> "PreTrainedModel":
        return from_pretrained(AutoModelForAudioClassification, folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return head_of(model, media.all_but_the_base(model))

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if model.training:
            batch = {**batch, "heard": self._varied(batch["heard"])}
        logits: torch.Tensor = model(**self.sounds.named(batch)).logits
        return logits

    def infer(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """As :meth:`forward`, but sounds of other lengths never share a pass where a base normalises over time.

        Their padding would be in its mean, and an answer would depend on who asks beside it.
        """
        if "mask" not in batch or getattr(model.config, "feat_extract_norm", None) != "group":
            return self.forward(model, batch)
        lengths = batch["mask"].sum(1)
        places = [(lengths == length).nonzero()[:, 0] for length in sorted(set(lengths.tolist()))]
        parts = [
            self.forward(model, {name: value[place][:, : int(lengths[place[0]])] for name, value in batch.items()})
            for place in places
        ]
        return torch.cat(parts)[torch.argsort(torch.cat(places))]

    def _varied(self, heard: torch.Tensor) -> torch.Tensor:
        time = self.sounds.time if self.sounds.shape else 0
        if self.options.shift:
            a_second = self.sounds.rate // (160 if self.sounds.shape else 1)
            heard = shifted(heard, round(self.options.shift * a_second), time)
        if self.options.mask_time:
            heard = masked(heard, self.options.mask_time, time)
        if self.options.mask_mels and self.sounds.shape:
            heard = masked(heard, self.options.mask_mels, 1 - time)
        return heard

    # --- outputs to answers ---------------------------------------------------------------------------------------

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import baselines, media_baselines  # a replica does not load scikit-learn

        constant = Baseline(baselines.CONSTANTS[self.target.problem], baselines.majority)
        linear = Baseline("Linear model on log-mel statistics", media_baselines.on_mels)
        found = {"majority": constant, "linear": linear}
        if self.sounds.trained:
            found["frozen"] = Baseline("Frozen base + linear head", media_baselines.frozen)
        return found

    def input_schema(self) -> dict[str, Any]:
        return media.schema(self.sounds.column, "audio")
