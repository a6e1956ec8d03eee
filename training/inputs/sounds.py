"""Sounds as a model hears them: decoded, mixed to one channel, brought to the base's rate, cut to a longest length.

A base hears either samples (wav2vec2 and its kin) or a picture of them, a log-mel spectrogram (AST, Whisper). Examples
keep what it hears, the samples as 16-bit numbers, so that no later epoch and no other node opens a file.
"""

import base64
import importlib
import io
import warnings
from collections.abc import Mapping, Sequence
from math import ceil, gcd
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoFeatureExtractor

from cluster.errors import UserError
from training.inputs import media
from training.inputs.media import UnreadableError

SLOWEST, FASTEST = 1_000, 384_000
"""Samples a second that a file may claim; outside it resampling would fill the memory with made-up samples."""

USUAL_RATE = 16_000
USUAL_SECONDS = 10.0
MOST_SECONDS = 60.0
"""Of a base that makes its own picture of a sound and cuts that."""

SHORTEST = 0.1
"""Seconds; a shorter sound is followed by silence, because convolutions need something to slide over."""

FULL = 2**15
SAMPLES_PER_TOKEN = 320  # at 16 kHz the 20 ms that wav2vec2's convolutions make one of
VALUES_PER_TOKEN = 256  # a patch of 16 x 16 of a spectrogram
LISTENED = 200
"""Training sounds by which a new spectrogram's scale is set."""

EXTRACTOR = "preprocessor_config.json"

Samples = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]


class Sounds:
    """Reads one column of sounds.

    Attributes:
        column: holds names of files, bytes, or both.
        extractor: of transformers, from the base or made for it.
        seconds: what is kept of a sound.
        shape: of the spectrogram that the base hears, ``-1`` where it is as long as the sound; nothing for samples.
        trained: the base came with an extractor, so somebody has trained it.
    """

    def __init__(
        self, column: str, extractor: Any, seconds: float, shape: Sequence[int] | None, *, trained: bool
    ) -> None:
        self.column, self.extractor, self.seconds, self.trained = column, extractor, seconds, trained
        self.shape = tuple(shape) if shape else None

    @classmethod
    def learn(
        cls, column: str, base: Path, cells: Sequence[Any], *, rate: int | None = None, seconds: float | None = None
    ) -> Self:
        """The reader of a base.

        Args:
            cells: of the training rows, by which a new spectrogram's scale is set.
            rate: samples a second, for a base that is new.
            seconds: what is kept of a sound at most.

        Raises:
            UserError: the base cannot hear at this rate.
        """
        trained = (base / EXTRACTOR).exists()
        if trained:
            extractor = AutoFeatureExtractor.from_pretrained(base, trust_remote_code=False)
            if rate is not None and rate != extractor.sampling_rate:
                raise UserError(f"model.options.rate: the base hears {extractor.sampling_rate} samples a second")
        else:
            extractor = _made(base, rate or USUAL_RATE)
        shape = _shape(extractor)
        sounds = cls(column, extractor, seconds or (MOST_SECONDS if shape else USUAL_SECONDS), shape, trained=trained)
        if not trained and shape and hasattr(extractor, "mean"):
            extractor.mean, extractor.std = sounds._scale([cell for cell in cells if cell][:LISTENED])
        return sounds

    @classmethod
    def load(cls, settings: Mapping[str, Any], folder: Path) -> Self:
        """The reader that :meth:`save` kept in ``folder`` and ``settings``."""
        return cls(extractor=AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False), **settings)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the extractor to ``folder`` and returns the rest as JSON."""
        self.extractor.save_pretrained(folder)
        return {
            "column": self.column,
            "seconds": self.seconds,
            "shape": list(self.shape) if self.shape else None,
            "trained": self.trained,
        }

    @property
    def rate(self) -> int:
        """Samples a second that the base hears."""
        return int(self.extractor.sampling_rate)

    @property
    def time(self) -> int:
        """Which dimension of a spectrogram ``[·, ·]`` is time."""
        mels = getattr(self.extractor, "num_mel_bins", None) or self.extractor.feature_size
        return 0 if self.shape and self.shape[1] == mels else 1

    # --- rows to what is heard ----------------------------------------------------------------------------------

    def read(self, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """What the base hears of each row: 16-bit samples, or the numbers of a spectrogram, as bytes.

        Raises:
            UnreadableError: one cannot be read; names the file where there is one.
        """
        return media.each(self._read, [row.get(self.column) for row in rows])

    def _read(self, cell: Any) -> bytes:
        samples = self.samples(cell)
        if self.shape is None:
            return samples.tobytes()
        heard = self._heard([as_floats(samples)])[self._input]
        return np.ascontiguousarray(heard[0], np.float32).tobytes()

    def samples(self, cell: Any) -> Samples:
        """A cell's sound at the base's rate, cut to ``seconds``; silence where there is none.

        Raises:
            UnreadableError: it cannot be read.
        """
        if cell in (None, ""):  # nobody's sound, which asks only whether the model answers
            return np.zeros(ceil(SHORTEST * self.rate), np.int16)
        try:
            rate, waves = opened(media.content(cell), self.seconds)
        except UnreadableError as error:
            raise UnreadableError(f"{media.name(cell) or 'sound'}: {error}") from None
        waves = resampled(waves, rate, self.rate)[: round(self.seconds * self.rate)]
        waves = np.pad(waves, (0, max(0, ceil(SHORTEST * self.rate) - len(waves))))
        return np.clip(np.round(waves * FULL), -FULL, FULL - 1).astype(np.int16)

    def array(self, heard: bytes) -> npt.NDArray[Any]:
        """Kept bytes as samples ``[time]`` or as a spectrogram."""
        return (
            np.frombuffer(heard, np.int16)
            if self.shape is None
            else np.frombuffer(heard, np.float32).reshape(self.shape)
        )

    def tokens(self, heard: bytes) -> int:
        """The length of a sound, in the steps or patches that a model makes of it."""
        each = 2 * SAMPLES_PER_TOKEN if self.shape is None else 4 * VALUES_PER_TOKEN
        return max(1, len(heard) // each)

    def stack(self, heard: Sequence[bytes]) -> dict[str, torch.Tensor]:
        """Kept bytes of several sounds as ``heard``, padded, and ``mask`` where their lengths may differ."""
        arrays = [self.array(one) for one in heard]
        if self.shape is None:
            batch = self._heard([as_floats(one) for one in arrays], padding=True, return_attention_mask=True)
            return {
                "heard": torch.from_numpy(np.asarray(batch[self._input], np.float32)),
                "mask": torch.from_numpy(np.asarray(batch["attention_mask"], np.int64)),
            }
        if -1 not in self.shape:
            return {"heard": torch.from_numpy(np.stack(arrays))}
        longest = max(map(len, arrays))
        padded = [np.pad(one, ((0, longest - len(one)), (0, 0))) for one in arrays]
        mask = [np.arange(longest) < len(one) for one in arrays]
        return {"heard": torch.from_numpy(np.stack(padded)), "mask": torch.from_numpy(np.stack(mask)).long()}

    @property
    def _input(self) -> str:
        return str(self.extractor.model_input_names[0])

    def named(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch by the names that the model gives its inputs."""
        named = {self._input: batch["heard"]}
        return named | ({"attention_mask": batch["mask"]} if "mask" in batch else {})

    def _heard(self, waves: list[Floats], **settings: Any) -> Any:
        return self.extractor(waves, sampling_rate=self.rate, return_tensors="np", **settings)

    def _scale(self, cells: Sequence[Any]) -> tuple[float, float]:
        """Mean and spread of the log-mel values of sounds, without the padding."""
        values = [self._frames(cell) for cell in cells]
        heard = [one for one in values if one is not None]
        if not heard:
            return self.extractor.mean, self.extractor.std
        whole = np.concatenate(heard)
        return float(whole.mean()), max(float(whole.std()), 1e-3)

    def _frames(self, cell: Any) -> Floats | None:
        try:
            samples = as_floats(self.samples(cell))
        except UnreadableError:
            return None  # the row is put aside when it is encoded, with the reason
        frames: Floats = log_mels(samples, self.rate, self.extractor.num_mel_bins, self.extractor)
        return frames[: self.extractor.max_length]

    # --- for people ---------------------------------------------------------------------------------------------

    def shown(self, heard: bytes) -> dict[str, str]:
        """A sound as ``data:`` addresses: a picture of its spectrogram and, where samples are kept, itself."""
        from PIL import Image

        from training.inputs.images import as_address

        array = self.array(heard)
        mels = array.T if self.shape and self.time == 0 else array
        if self.shape is None:
            mels = log_mels(as_floats(array), self.rate, 40).T
        low, high = np.percentile(mels, [5, 99.5])
        grey = np.clip((mels[::-1] - low) / max(high - low, 1e-6), 0, 1)
        picture = Image.fromarray((255 * (1 - grey)).astype(np.uint8)).resize((320, 96))
        return {"image": as_address(picture)} | ({} if self.shape else {"sound": _as_wav(array, self.rate)})


def opened(data: bytes, seconds: float) -> tuple[int, Floats]:
    """The samples in the bytes of a file, from -1 to 1, its channels mixed, and their rate; about ``seconds`` of it.

    Raises:
        UnreadableError: it is no sound, is damaged, is empty, or is in a format that needs a package which is missing.
    """
    try:
        rate, values = _riff(data) if data[:4] in (b"RIFF", b"RIFX", b"RF64") else _other(data, seconds)
    except UnreadableError:
        raise
    except Exception as error:  # noqa: BLE001  readers raise whatever a damaged file makes them stumble over
        raise UnreadableError(f"it is no sound that can be read ({type(error).__name__})") from None
    if not SLOWEST <= rate <= FASTEST:
        raise UnreadableError(f"it claims {rate:,} samples a second; {SLOWEST:,} to {FASTEST:,} are read")
    values = values[: ceil((seconds + 1) * rate)]
    waves: npt.NDArray[Any]
    if values.dtype == np.uint8:
        waves = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        waves = values.astype(np.float32) / float(2 ** (8 * values.dtype.itemsize - 1))
    else:
        waves = values.astype(np.float32)
    waves = np.asarray(waves.mean(axis=1) if waves.ndim > 1 else waves, np.float32)
    if not len(waves) or not np.isfinite(waves).all():
        raise UnreadableError("it holds no sound" if not len(waves) else "it holds values that are no numbers")
    return rate, waves


def _riff(data: bytes) -> tuple[int, npt.NDArray[Any]]:
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chunks that say who recorded it, and of a missing last byte
        rate, values = wavfile.read(io.BytesIO(data))
    return int(rate), values


def _other(data: bytes, seconds: float) -> tuple[int, npt.NDArray[Any]]:
    """FLAC, Ogg and MP3, whose reader is an optional package."""
    try:
        soundfile: Any = importlib.import_module("soundfile")
    except ImportError:
        raise UnreadableError("it is no WAV file; `pip install soundfile` for FLAC, Ogg and MP3") from None
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        values: Floats = file.read(ceil((seconds + 1) * file.samplerate), dtype="float32")
        return int(file.samplerate), values


def resampled(waves: Floats, rate: int, wanted: int) -> Floats:
    """Samples at another rate, by a polyphase filter."""
    if rate == wanted:
        return waves
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    return np.asarray(resample_poly(waves, wanted // common, rate // common), np.float32)


def as_floats(samples: npt.NDArray[Any]) -> Floats:
    """16-bit samples from -1 to 1."""
    return np.asarray(samples.astype(np.float32) / FULL, np.float32)


def log_mels(waves: Floats, rate: int, mels: int, extractor: Any = None) -> Floats:
    """Log-mel spectrogram ``[time, mels]``, as Kaldi and AST compute it: windows of 400 samples, every 160.

    Args:
        extractor: AST's, whose own filters are then used.
    """
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = getattr(extractor, "mel_filters", None)
    if filters is None:
        filters = mel_filter_bank(257, mels, 20, rate // 2, rate, None, "kaldi", triangularize_in_mel_space=True)
    waves = np.pad(waves, (0, max(0, 400 - len(waves))))
    values: Floats = spectrogram(
        waves,
        window_function(400, "hann", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    )
    return values.T


# --- random changes of training, on the device ------------------------------------------------------------------------


def shifted(heard: torch.Tensor, most: int, axis: int) -> torch.Tensor:
    """Every sound rolled along its time by up to ``most`` steps, drawn from torch's random state."""
    steps = torch.randint(-most, most + 1, (len(heard),)).tolist()
    return torch.stack([one.roll(step, axis) for one, step in zip(heard, steps, strict=True)])


def masked(heard: torch.Tensor, share: float, axis: int) -> torch.Tensor:
    """Of every sound one stretch of up to ``share`` along an axis set to 0, its mean (SpecAugment, Park et al., 2019).

    Drawn from torch's random state.
    """
    size = heard.shape[axis + 1]
    widths, starts = torch.rand(2, len(heard))
    widths = widths * share * size
    starts = starts * (size - widths)
    place = torch.arange(size)
    hidden = (place >= starts[:, None]) & (place < (starts + widths)[:, None])
    shape = [len(heard), *(size if dimension == axis + 1 else 1 for dimension in range(1, heard.ndim))]
    return heard.masked_fill(hidden.view(shape).to(heard.device), 0.0)


# --- new extractors ---------------------------------------------------------------------------------------------------


def _made(base: Path, rate: int) -> Any:
    """An extractor for a base that has none, as its configuration needs it."""
    from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if config.model_type == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length, sampling_rate=rate)
    if config.model_type == "whisper":
        seconds = config.max_source_positions * 2 * 160 // rate
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins, sampling_rate=rate, chunk_length=seconds)
    if config.model_type == "wav2vec2-bert":
        raise UserError(
            "model.base.new: wav2vec2-bert cannot be made new; take wav2vec2 or audio-spectrogram-transformer"
        )
    return Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=True, return_attention_mask=True)


def _shape(extractor: Any) -> tuple[int, int] | None:
    """The shape of the spectrogram that an extractor makes; nothing where it leaves samples."""
    rate, name = extractor.sampling_rate, extractor.model_input_names[0]
    noise = np.random.default_rng(7).normal(size=2 * rate).astype(np.float32) / 10
    made = [
        np.asarray(extractor([one], sampling_rate=rate, return_tensors="np")[name][0]) for one in (noise, noise[:rate])
    ]
    if made[0].ndim == 1:
        return None
    if made[0].shape == made[1].shape:
        return made[0].shape[0], made[0].shape[1]
    return -1, made[0].shape[1]


def _as_wav(samples: Samples, rate: int) -> str:
    from scipy.io import wavfile

    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()
