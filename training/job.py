"""What a driver gives its workers; light, for a driver that has none of what they compute with."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.encode import Encoded, open_encoded
from training.models.base import EARLIER, resolve_base
from training.recipe import NewBase, Recipe


@dataclass(frozen=True)
class Job:
    """What a worker is given; plain values only.

    Attributes:
        encoded: the folder of the encoded data.
        base: the recipe's base, which every node finds for itself, and the folder that it is relative to.
        run: the run's folder.
        adapt: which weights learn, as the recipe says it.
        options: the recipe's ``train`` section.
        adapter: what was learned is kept without the base.
        threads: that this worker may compute with.
    """

    encoded: str
    base: tuple[str | None, str]
    run: str
    adapt: Any
    options: dict[str, Any]
    adapter: bool = False
    threads: int = 1

    @classmethod
    def of(cls, recipe: Recipe, encoded: Encoded, run: Path) -> "Job":
        """The job of a recipe."""
        name = recipe.model.base
        if isinstance(name, NewBase) or (name or "").startswith(EARLIER):
            name = str(encoded.base)  # it lies in the home, which every node sees, and whatever an alias says by then
        base = (name, str(recipe.folder))
        adapt = recipe.model.model_dump()["adapt"]
        apart = recipe.model.bundle == "adapter"
        return cls(str(encoded.folder), base, str(run), adapt, recipe.train.model_dump(), apart)

    def as_config(self) -> dict[str, Any]:
        """For ``train_loop_config``."""
        return asdict(self)

    def open(self) -> Encoded:
        """The encoded data, and the base on this node."""
        name, folder = self.base
        return open_encoded(Path(self.encoded), resolve_base(name, Path(folder)))


def checkpoints(run: Path) -> Path:
    """Where a run keeps its checkpoints: inside what Ray Train takes for its own, so that it accepts them."""
    return run / "ray" / "checkpoints"
