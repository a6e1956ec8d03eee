"""Sounds: read, resampled, refused, learned, answered as transformers answers, alone and beside others."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from transformers import ASTFeatureExtractor, pipeline

from cluster.errors import UserError
from serving.predictor import Predictor
from tests.training.tasks.tones import KINDS, RATE, tiny_ast, tiny_wav2vec2, tone, tone_recipe, write_tones
from training.bundle import open_bundle, write_bundle
from training.data.fuse import fuse
from training.encode import encode, located_rows
from training.evaluation.baselines import measure
from training.inputs import media
from training.inputs.media import UnreadableError
from training.inputs.sounds import Sounds, as_floats, log_mels, masked, opened, resampled, shifted
from training.loop import make_trainee, train, validate
from training.recipe import Recipe

CPU = torch.device("cpu")


def wav(values: Any, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, values)
    return file.getvalue()


@pytest.fixture
def recipe(tmp_path: Path, home: Path) -> Callable[..., Recipe]:
    write_tones(tmp_path)
    tiny_wav2vec2(tmp_path / "wav2vec2")
    tiny_wav2vec2(tmp_path / "group", "group")
    tiny_ast(tmp_path / "ast")
    return lambda base, **sections: tone_recipe(tmp_path, tmp_path / base, **sections)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "float64"])
def test_samples_of_every_kind_have_one_scale(kind: str) -> None:
    wave = np.sin(np.arange(800) / 7) / 2
    whole = {"uint8": wave * 128 + 128, "int16": wave * 2**15, "int32": wave * 2**31}.get(kind, wave)
    rate, heard = opened(wav(np.asarray(whole).astype(kind)), 10)
    assert rate == 16_000
    np.testing.assert_allclose(heard, wave, atol=0.01 if kind == "uint8" else 1e-4)


def test_channels_are_mixed() -> None:
    left, right = np.full(400, 1000), np.full(400, 3000)
    heard = opened(wav(np.stack([left, right], axis=1).astype(np.int16)), 10)[1]
    np.testing.assert_allclose(heard, 2000 / 2**15, atol=1e-6)


def test_another_rate_keeps_the_pitch() -> None:
    """A tone of 440 Hz has its peak at 440 Hz after resampling, and its height."""
    for rate in (8_000, 22_050, 44_100, 48_000):
        wave = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
        heard = resampled(wave, rate, 16_000)
        assert len(heard) == 16_000
        spectrum = np.abs(np.fft.rfft(heard))
        assert spectrum.argmax() == 440
        np.testing.assert_allclose(heard[1000:-1000].max(), 1, atol=0.01)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"RIFF and no more", "it is no sound that can be read"),
        (wav(np.zeros(0, np.int16)), "it holds no sound"),
        (wav(np.array([0, np.nan], np.float32)), "it holds values that are no numbers"),
        (wav(np.zeros(100, np.int16), 20), "it claims 20 samples a second; 1,000 to 384,000 are read"),
        (b"fLaC" + bytes(100), "no sound that can be read|it is no WAV file; `pip install soundfile`"),
    ],
)
def test_what_is_no_sound_is_told(data: bytes, message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        opened(data, 10)


def test_damage_of_any_kind_is_a_plain_error() -> None:
    chance = np.random.default_rng(5)
    whole = wav(tone("rise", chance))
    for _ in range(300):
        broken = bytearray(whole[: chance.integers(8, len(whole) + 1)])
        for place in chance.integers(0, min(len(broken), 60), 3):
            broken[place] = chance.integers(0, 256)
        try:
            opened(bytes(broken), 10)
        except UnreadableError:
            continue


def test_flac_is_read_where_its_reader_is_installed() -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    wave = as_floats(tone("rise", np.random.default_rng(1)))
    soundfile.write(file, wave, RATE, format="FLAC")
    rate, heard = opened(file.getvalue(), 10)
    assert rate == RATE
    np.testing.assert_allclose(heard, wave, atol=1e-4)


# --- what the base hears ----------------------------------------------------------------------------------------------


def test_log_mels_are_those_of_transformers() -> None:
    wave = as_floats(tone("fall", np.random.default_rng(1), 16_000))
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=30, do_normalize=False)
    theirs = extractor(wave, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    ours = log_mels(wave, 16_000, 32)
    np.testing.assert_allclose(ours[: len(theirs)], theirs[: len(ours)], atol=1e-4)


def test_a_new_spectrogram_has_the_scale_of_the_training_sounds(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    files = sorted(map(str, (tmp_path / "tones").glob("*.wav")))
    sounds = Sounds.learn("file", tmp_path / "ast", files)
    assert sounds.shape == (48, 32)
    heard = [sounds.array(one) for one in sounds.read([{"file": file} for file in files])]
    lengths = [1 + (len(sounds.samples(file)) - 400) // 160 for file in files]
    inside = np.concatenate([one[:length] for one, length in zip(heard, lengths, strict=True)])
    assert inside.mean() == pytest.approx(0, abs=1e-3)
    assert inside.std() == pytest.approx(0.5, abs=1e-2)  # AST divides by two spreads


def test_samples_are_kept_cut_at_the_bases_rate(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    sounds = Sounds.learn("file", tmp_path / "wav2vec2", [], seconds=0.3)
    assert (sounds.shape, sounds.rate) == (None, 16_000)
    kept = sounds.array(sounds._read(wav(np.ones(RATE, np.int16), RATE)))
    assert (str(kept.dtype), len(kept)) == ("int16", 4800)
    assert len(sounds.array(sounds._read(wav(np.ones(5, np.int16), RATE)))) == 1600
    assert sounds.tokens(kept.tobytes()) == 15
    shown = sounds.shown(kept.tobytes())
    assert shown["sound"].startswith("data:audio/wav;base64,")
    assert shown["image"].startswith("data:image/png;base64,")


def test_changes_of_training_are_drawn_from_torch() -> None:
    heard = torch.arange(1, 1 + 2 * 10 * 6, dtype=torch.float32).reshape(2, 10, 6)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append((shifted(heard, 3, 0), masked(heard, 0.9, 0), masked(heard, 0.9, 1)))
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)
    rolled, in_time, in_pitch = drawn[0]
    assert sorted(rolled.flatten().tolist()) == sorted(heard.flatten().tolist())
    for hidden, across in ((in_time, (2,)), (in_pitch, (1,))):
        whole = (hidden == 0).all(dim=across)
        assert whole.any()
        assert torch.equal((hidden == 0).any(dim=across), whole), "a stretch is silent as a whole"


# --- from folders to answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["ast", "wav2vec2", "group"])
def test_a_model_learns_and_transformers_gives_the_same_answers(
    recipe: Callable[..., Recipe], tmp_path: Path, base: str
) -> None:
    options = {"shift": 0.02, "mask_time": 0.1, "mask_mels": 0.1} if base == "ast" else {}
    made = recipe(base, train={"epochs": 16 if base == "ast" else 2}, model={"options": options})
    fused = fuse(made)
    sides = [set(fused.split(name)["speaker"].to_pylist()) for name in ("train", "validation", "test")]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    encoded = encode(made, fused)
    trainee = make_trainee(encoded, made.train, made.model.adapt, CPU)
    list(train(trainee, encoded))
    if base == "ast":
        baselines = measure(encoded.task, encoded.base, encoded.kept(located_rows(made, fused.tables())))
        assert set(baselines) == {"majority", "linear"}
        assert baselines["linear"]["test/accuracy"] > 0.8
        assert validate(trainee, encoded.split("test"))["accuracy"] > baselines["majority"]["test/accuracy"]

    folder = tmp_path / "bundle"
    folder.mkdir()
    task = encoded.task.settle(trainee.model)
    write_bundle(folder, model=trainee.model, task=task, name="m", recipe={}, metrics={}, baselines={}, data={})
    assert (folder / "preprocessor_config.json").exists()
    predictor = Predictor(open_bundle(folder))
    chance = np.random.default_rng(8)
    sounds = [tone(kind, chance, 16_000) for kind in KINDS * 2]
    theirs = pipeline("audio-classification", str(folder))
    together = predictor.predict([wav(sound) for sound in sounds], {"top_k": 3})
    for ours, sound in zip(together, sounds, strict=True):
        other = theirs(as_floats(sound), top_k=3)
        assert [entry["label"] for entry in ours] == [entry["label"] for entry in other]
        assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in other], rel=1e-3)


def test_a_continued_run_repeats_the_changes_of_an_undisturbed_one(recipe: Callable[..., Recipe]) -> None:
    """Also for a base whose own changes are drawn from elsewhere: they are off."""
    made = recipe("wav2vec2", model={"options": {"shift": 0.05, "mask_time": 0.2}}, train={"epochs": 1})
    encoded = encode(made, fuse(made))
    whole = make_trainee(encoded, made.train, made.model.adapt, CPU)
    list(train(whole, encoded))
    again = make_trainee(encoded, made.train, made.model.adapt, CPU)
    next(train(again, encoded))
    torch.rand(1000)
    np.random.rand(1000)
    list(train(again, encoded))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_sound_that_cannot_be_read_is_put_aside(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "tones" / "fall_s0_0.wav").write_bytes(b"RIFF")
    strict = recipe("wav2vec2")
    with pytest.raises(UserError, match="1 of 48 rows have files that cannot be used"):
        encode(strict, fuse(strict))
    made = recipe("wav2vec2", data={**strict.data.model_dump(exclude_unset=True), "max_rejected": 0.1})
    encoded = encode(made, fuse(made))
    assert sum(len(encoded.split(name)) for name in ("train", "validation", "test")) == 47


@pytest.mark.parametrize("value", ["/etc/passwd", {"file": "/etc/passwd"}, {"file": {"path": "/etc/passwd"}}])
def test_a_request_never_names_a_file(recipe: Callable[..., Recipe], value: Any) -> None:
    task = encode(recipe("wav2vec2"), fuse(recipe("wav2vec2"))).task
    with pytest.raises(UserError, match="a sound is "):
        task.rows([value])


def test_the_head_is_all_but_the_base_whatever_that_is_called() -> None:
    from transformers import CLIPConfig, CLIPForImageClassification, WhisperConfig, WhisperForAudioClassification

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    clip = CLIPForImageClassification(CLIPConfig(vision_config={**small, "image_size": 32, "patch_size": 16}))
    assert media.all_but_the_base(clip) == [clip.classifier]
    sizes = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    whisper = WhisperForAudioClassification(WhisperConfig(**sizes, decoder_layers=1, classifier_proj_size=8))
    assert media.all_but_the_base(whisper) == [whisper.projector, whisper.classifier]
