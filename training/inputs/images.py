"""Pictures as a model sees them: decoded, brought to the base's size, normalised as its processor says.

Examples keep the resized pixels as bytes, so that no later epoch and no other node opens a file. What comes after the
resizing is arithmetic on the device, together with the random changes of training.
"""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from transformers import AutoConfig

from cluster.errors import UserError
from training.inputs import media
from training.inputs.media import UnreadableError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded; other formats that the library knows have run programs or read other files."""

MOST_PIXELS = 50_000_000
"""Of one picture: about what the largest cameras take. A small file can unpack to many more."""

USUAL_SIZE = 224
"""Pixels of a side where neither the recipe nor the base says."""

PIXELS_PER_TOKEN = 256
"""A patch of 16 x 16, the measure that a batch of pictures is budgeted by."""

PROCESSOR = ("preprocessor_config.json", "processor_config.json")

Pixels = npt.NDArray[Any]


class Kept(bytes):
    """What :meth:`Pictures.read` gave for a cell; to read it again gives the same, without decoding."""


class Pictures:
    """Reads one column of pictures.

    Attributes:
        column: holds names of files, bytes, or both.
        processor: of transformers, from the base or made for it.
        shape: channels, height and width of what it gives.
        plain: what it does after resizing is to scale pixels; else its finished numbers are kept.
        trained: the base came with a processor, so somebody has trained it.
    """

    def __init__(self, column: str, processor: Any, shape: Sequence[int], *, plain: bool, trained: bool) -> None:
        self.column, self.processor, self.plain, self.trained = column, processor, plain, trained
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))

    @classmethod
    def learn(cls, column: str, base: Path | None, size: int | None = None) -> Self:
        """The reader of a base, or of a model that has none.

        Args:
            size: pixels of a side, where there is no base, or for one that is new or can take any.

        Raises:
            UserError: the base takes no pictures of one size in three colours.
        """
        trained = base is not None and any((base / name).exists() for name in PROCESSOR)
        if base is None:
            processor = _square(size or USUAL_SIZE, size or USUAL_SIZE)
        elif trained:
            processor = _opened(base)
            if size is not None:
                processor.size = {"height": size, "width": size}
                processor.crop_size = {"height": size, "width": size}
        else:
            processor = _made(base, size)
        shape, plain = _examined(processor)
        return cls(column, processor, shape, plain=plain, trained=trained)

    @classmethod
    def load(cls, settings: Mapping[str, Any], folder: Path) -> Self:
        """The reader that :meth:`save` kept in ``folder`` and ``settings``."""
        return cls(processor=_opened(folder), **settings)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the processor to ``folder`` and returns the rest as JSON."""
        self.processor.save_pretrained(folder)
        return {"column": self.column, "shape": list(self.shape), "plain": self.plain, "trained": self.trained}

    # --- rows to pixels -----------------------------------------------------------------------------------------

    def read(self, rows: Sequence[Mapping[str, Any]]) -> list[Kept]:
        """The pixels of each row's picture, as bytes of ``shape``.

        Raises:
            UnreadableError: one cannot be read; names the file where there is one.
        """
        return media.each(self._read, [row.get(self.column) for row in rows])

    def _read(self, cell: Any) -> Kept:
        if isinstance(cell, Kept):
            return cell
        if cell in (None, ""):  # nobody's picture, which asks only whether the model answers
            return Kept(int(np.prod(self.shape)) * (1 if self.plain else 4))
        try:
            pixels = _processed(self.processor, opened(media.content(cell)), finished=not self.plain)
        except UnreadableError as error:
            raise UnreadableError(f"{media.name(cell) or 'picture'}: {error}") from None
        if pixels.shape != self.shape:
            raise UnreadableError(f"{media.name(cell) or 'picture'}: becomes {pixels.shape}, not {self.shape}")
        return Kept(np.ascontiguousarray(pixels, np.uint8 if self.plain else np.float32).tobytes())

    def array(self, pixels: bytes) -> Pixels:
        """Kept bytes as an array of ``shape``."""
        return np.frombuffer(pixels, np.uint8 if self.plain else np.float32).reshape(self.shape)

    def stack(self, pixels: Sequence[bytes]) -> torch.Tensor:
        """Kept bytes of several pictures as a tensor ``[pictures, channels, height, width]``."""
        return torch.from_numpy(np.stack([self.array(one) for one in pixels]))

    @property
    def tokens(self) -> int:
        """The length of every picture, in patches."""
        return max(1, self.shape[1] * self.shape[2] // PIXELS_PER_TOKEN)

    # --- on the device ------------------------------------------------------------------------------------------

    def normal(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels as the base was trained on them."""
        if not self.plain:
            return pixels
        shift, scale = _scaling(self.processor, self.shape[0])
        return (pixels.float() - torch.tensor(shift, device=pixels.device).view(-1, 1, 1)) * torch.tensor(
            scale, device=pixels.device
        ).view(-1, 1, 1)

    def thumbnail(self, pixels: bytes) -> str:
        """A kept picture as a ``data:`` address."""
        array = self.array(pixels).astype(np.float32)
        low, high = (0.0, 255.0) if self.plain else (float(array.min()), float(array.max()))
        shown = ((array - low) / max(high - low, 1e-6) * 255).astype(np.uint8).transpose(1, 2, 0)
        return as_address(Image.fromarray(shown))


def opened(data: bytes) -> Image.Image:
    """The picture in the bytes of a file: upright, in three colours.

    Raises:
        UnreadableError: it is none, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that nobody asked for
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > MOST_PIXELS:
                raise UnreadableError(f"it has {picture.width} x {picture.height} pixels; {MOST_PIXELS:,} are allowed")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UnreadableError:
        raise
    except Exception as error:  # noqa: BLE001  decoders raise whatever a damaged file makes them stumble over
        known = ", ".join(FORMATS)
        raise UnreadableError(f"it is no picture that can be read ({type(error).__name__}); {known} can") from None


def flipped(pixels: torch.Tensor) -> torch.Tensor:
    """Half of the pictures mirrored, drawn from torch's random state."""
    chosen = (torch.rand(len(pixels)) < 0.5).to(pixels.device)
    return torch.where(chosen.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def moved(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Every picture moved by up to ``share`` of its sides; its edge fills the gap. Drawn from torch's random state."""
    height, width = pixels.shape[-2:]
    most = (round(share * height), round(share * width))
    padded = torch.nn.functional.pad(pixels, (most[1], most[1], most[0], most[0]), mode="replicate")
    drawn = torch.rand(len(pixels), 2)
    starts = [[int(part * (2 * side + 1)) for part, side in zip(one, most, strict=True)] for one in drawn.tolist()]
    return torch.stack(
        [one[:, top : top + height, left : left + width] for one, (top, left) in zip(padded, starts, strict=True)]
    )


def as_address(picture: Image.Image) -> str:
    """A picture as a ``data:`` address that a page can show by itself."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _opened(folder: Path) -> Any:
    from transformers import AutoImageProcessor  # loads model code, which takes seconds

    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def _made(base: Path, size: int | None) -> Any:
    """A processor for a base that has none."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if getattr(config, "num_channels", 3) != 3:
        raise UserError(f"model.base: it sees {config.num_channels} colours; pictures are read in 3")
    own = getattr(config, "image_size", None) or size or USUAL_SIZE
    height, width = own if isinstance(own, list | tuple) else (own, own)
    if size is not None and (height, width) != (size, size):
        raise UserError(f"model.options.size: the base takes pictures of {height} x {width}, not of {size} x {size}")
    return _square(height, width)


def _square(height: int, width: int) -> Any:
    """A processor that gives pictures of one size, pixels from -1 to 1."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": height, "width": width})


def _processed(processor: Any, picture: Image.Image, *, finished: bool) -> Pixels:
    settings = {} if finished else {"do_rescale": False, "do_normalize": False}
    pixels: Pixels = np.asarray(processor(images=picture, return_tensors="np", **settings)["pixel_values"][0])
    return pixels


def _examined(processor: Any) -> tuple[tuple[int, ...], bool]:
    """The shape that a processor gives pictures, and whether it does nothing but scale them after resizing."""
    noise = np.random.default_rng(7).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    wide, tall = (Image.fromarray(one) for one in (noise, noise.transpose(1, 0, 2).copy()))
    try:
        finished = _processed(processor, wide, finished=True)
        same = _processed(processor, tall, finished=True).shape == finished.shape
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"model.base: its processor gives no picture ({type(error).__name__})") from None
    if finished.ndim != 3 or finished.shape[0] != 3 or not same:
        raise UserError(f"model.base: its processor gives pictures of many sizes ({finished.shape}); one is needed")
    resized = _processed(processor, wide, finished=False)
    shift, scale = _scaling(processor, 3)
    by_hand = (resized.astype(np.float32) - np.reshape(shift, (3, 1, 1))) * np.reshape(scale, (3, 1, 1))
    whole = bool(np.all(resized == np.round(resized)) and resized.min() >= 0 and resized.max() <= 255)
    return finished.shape, whole and bool(np.allclose(by_hand, finished, atol=1e-4))


def _scaling(processor: Any, channels: int) -> tuple[list[float], list[float]]:
    """What is taken from the pixels of each channel, and what they are then multiplied by."""
    factor = float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0
    normalises = getattr(processor, "do_normalize", False)
    mean = np.broadcast_to(processor.image_mean if normalises else 0.0, channels)
    spread = np.broadcast_to(processor.image_std if normalises else 1.0, channels)
    return [float(one) / factor for one in mean], [factor / float(one) for one in spread]
