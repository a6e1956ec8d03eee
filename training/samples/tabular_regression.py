"""Made-up flats and what they were sold for: size, place, age, state and the day of the sale."""

import datetime as dt
import math
import random
from pathlib import Path

from training.samples.tabular_classification import Row, write

SEED = 7
FLATS = 2_500
DISTRICTS = {"harbour": 5_600, "old town": 6_400, "mill quarter": 4_100, "north": 3_000, "south": 3_400, "hill": 7_300}
STATES = {"new": 1.15, "renovated": 1.05, "used": 0.95, "to be renovated": 0.78, "": 0.97}


def write_data(data: Path) -> None:
    """Writes ``flats.csv``."""
    draw = random.Random(SEED)
    write(data / "flats.csv", [one_flat(number, draw) for number in range(1, FLATS + 1)])


def one_flat(number: int, draw: random.Random) -> Row:
    """A flat and its price."""
    size, floor, lift = round(draw.lognormvariate(4.25, 0.35), 1), draw.randint(0, 9), draw.random() < 0.5
    district, state, built = draw.choice(list(DISTRICTS)), draw.choice(list(STATES)), draw.randint(1890, 2023)
    sold = dt.date(2019, 1, 1) + dt.timedelta(days=draw.randrange(2_000))
    price = DISTRICTS[district] * size**0.94 * STATES[state]
    price *= 1 + (0.012 if lift else -0.02) * floor
    price *= 1 + 0.05 * (sold.year - 2019) + 0.02 * math.sin(2 * math.pi * sold.timetuple().tm_yday / 365)
    price *= 1.06 if built < 1920 else 0.93 if 1950 <= built < 1980 else 1.0
    return {
        "flat_id": number,
        "size": size,
        "floor": floor,
        "lift": lift,
        "district": district,
        "state": state,
        "built": "" if draw.random() < 0.08 else built,
        "sold": sold.isoformat(),
        "price": round(price * draw.lognormvariate(0, 0.06), -2),
    }
