"""Made-up recordings of pumps: they run well, draw in air, have a fluttering valve or a worn bearing, or stand still.

As untidy as real recordings: every pump has a pitch and a room of its own, there is noise, lengths differ, a few
labels are wrong and one file is none.
"""

import csv
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

SEED = 7
RATE = 8_000
PUMPS = 12
EACH = 50
"""Recordings of each pump."""

STATES = ("running", "air", "valve", "bearing", "still")
WRONG = 0.02
UNREADABLE = 77

Chance = np.random.Generator
Floats = npt.NDArray[np.float64]


def write_data(data: Path) -> None:
    """Writes ``recordings/{pump}_{number}.wav`` and ``states.csv``, which says in which state the pump was."""
    chance = np.random.default_rng(SEED)
    (data / "recordings").mkdir()
    rows = []
    for pump in range(PUMPS):
        pitch, room = chance.uniform(70, 140), chance.uniform(0.5, 2.0)
        for turn in range(EACH):
            number = pump * EACH + turn
            state = STATES[chance.integers(len(STATES))]
            file = data / "recordings" / f"pump{pump:02}_{number:04}.wav"
            write_wav(file, recording(state, pitch, room, chance))
            if number == UNREADABLE:
                file.write_bytes(b"the recorder was full\n")
            said = STATES[chance.integers(len(STATES))] if chance.random() < WRONG else state
            rows.append([f"{number:04}", said])
    with (data / "states.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["number", "state"])
        writer.writerows(rows)


def recording(state: str, pitch: float, room: float, chance: Chance) -> Floats:
    """About a second of a pump, from -1 to 1."""
    time = np.arange(int(RATE * chance.uniform(0.7, 1.0))) / RATE
    noise = chance.normal(0, 1, len(time))
    sound = room * 0.02 * np.cumsum(noise - noise.mean()) / 20 + 0.02 * noise
    if state != "still":
        pitch = pitch * chance.uniform(0.95, 1.05)
        for harmonic, height in enumerate((0.3, 0.2, 0.12, 0.06), 1):
            sound += height * np.sin(2 * np.pi * pitch * harmonic * time + chance.uniform(0, 6))
    if state in ("air", "valve"):  # bursts of hiss, slow or fast
        beat = chance.uniform(2.5, 4) if state == "air" else chance.uniform(9, 12)
        bursts = np.sin(2 * np.pi * beat * time + chance.uniform(0, 6)) > 0.3
        sound += 0.25 * bursts * np.diff(noise, prepend=0.0)
    if state == "bearing":  # a ring at every turn
        turns = (time * pitch * 0.3 + chance.random()) % 1 / (pitch * 0.3)
        sound += 0.6 * np.exp(-turns * 120) * np.sin(2 * np.pi * chance.uniform(2200, 2800) * turns)
    return sound * chance.uniform(0.5, 0.9)


def write_wav(file: Path, sound: Floats) -> None:
    """16 bits, one channel."""
    samples = (np.clip(sound, -1, 1) * 32_767).astype("<i2")
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples.tobytes())
