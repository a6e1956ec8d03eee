"""Made-up photographs of a metal plate as a camera above a line takes them: fine, scratched, dented or a hole missing.

As untidy as real pictures: light, place and turn differ, plates are grained, a few verdicts are wrong and a few files
are cut short.
"""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

SEED = 7
PLATES = 720
SIZE = 48
VERDICTS = ("fine", "scratch", "dent", "missing hole")
WRONG = 0.02
UNREADABLE = (101, 402)
"""Numbers of pictures whose files end too early."""

Chance = np.random.Generator


def write_data(data: Path) -> None:
    """Writes ``pictures/plate_NNNN.png`` and ``verdicts.csv``, which says what was seen by whom on which shift."""
    chance = np.random.default_rng(SEED)
    (data / "pictures").mkdir()
    rows = []
    for number in range(PLATES):
        verdict = VERDICTS[chance.integers(len(VERDICTS))]
        file = data / "pictures" / f"plate_{number:04}.png"
        plate(verdict, chance).save(file)
        if number in UNREADABLE:
            file.write_bytes(file.read_bytes()[:200])
        said = VERDICTS[chance.integers(len(VERDICTS))] if chance.random() < WRONG else verdict
        rows.append([file.name, said, chance.choice(["early", "late"])])
    with (data / "verdicts.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["picture", "verdict", "shift"])
        writer.writerows(rows)


def plate(verdict: str, chance: Chance) -> Image.Image:
    """One photograph."""
    big = 4 * SIZE  # drawn large and made small, so that edges are soft
    picture = Image.new("L", (big, big), int(chance.integers(20, 60)))
    draw = ImageDraw.Draw(picture)
    bright = int(chance.integers(130, 190))
    draw.rounded_rectangle((24, 24, big - 24, big - 24), 20, fill=bright)
    holes = [(52, 52), (big - 52, 52), (52, big - 52), (big - 52, big - 52)]
    if verdict == "missing hole":
        del holes[chance.integers(4)]
    for x, y in holes:
        draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=30)
    if verdict == "scratch":
        start, end = chance.integers(60, big - 60, (2, 2))
        end = start + (end - start) * 70 // max(int(np.abs(end - start).max()), 1)
        draw.line([*map(int, start), *map(int, end)], fill=bright - 60, width=6)
    if verdict == "dent":
        x, y = map(int, chance.integers(80, big - 80, 2))
        draw.ellipse((x - 20, y - 20, x + 20, y + 20), fill=bright - 40)
        draw.ellipse((x - 14, y - 10, x + 20, y + 20), fill=bright + 25)
    picture = picture.rotate(float(chance.uniform(-8, 8)), fillcolor=40, translate=tuple(chance.integers(-8, 9, 2)))
    return Image.fromarray(_lit(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)), chance))


def _lit(pixels: npt.NDArray[np.uint8], chance: Chance) -> npt.NDArray[np.uint8]:
    """The grain of the metal, and light that falls from one side."""
    left, right = chance.uniform(0.8, 1.15, 2).tolist()
    slope = np.linspace(left, right, SIZE)
    grain = chance.normal(0, 6, (SIZE, SIZE))
    grey = np.clip(pixels * slope[None, :] + grain, 0, 255).astype(np.uint8)
    tint = np.array([1.0, 0.98, 0.95])
    coloured: npt.NDArray[np.uint8] = (grey[..., None] * tint).astype(np.uint8)
    return np.asarray(Image.fromarray(coloured).filter(ImageFilter.GaussianBlur(0.4)))
