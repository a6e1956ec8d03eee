"""Made-up bakeries and what each sold on each day: weeks, seasons, holidays, promotions, closed days, growth."""

import datetime as dt
import math
import random
from pathlib import Path

from training.samples.tabular_classification import Row, write

SEED = 7
FIRST = dt.date(2022, 1, 1)
DAYS = 900
SHOPS = {"station": 420, "market": 260, "school": 150, "harbour": 90}
OF_WEEK = {
    "station": [1.1, 1.1, 1.1, 1.1, 1.2, 0.7, 0.6],
    "market": [0.7, 0.8, 0.9, 1.0, 1.2, 1.7, 0.4],
    "school": [1.3, 1.3, 1.3, 1.3, 1.1, 0.2, 0.1],
    "harbour": [0.7, 0.7, 0.8, 0.9, 1.1, 1.5, 1.6],
}
HOLIDAYS = {(1, 1), (5, 1), (8, 15), (12, 25), (12, 26)}


def write_data(data: Path) -> None:
    """Writes ``sales.csv`` and ``calendar.csv``."""
    draw = random.Random(SEED)
    days = [FIRST + dt.timedelta(days=number) for number in range(DAYS)]
    calendar: list[Row] = [{"day": day.isoformat(), "holiday": (day.month, day.day) in HOLIDAYS} for day in days]
    sales = [row for shop in SHOPS for row in sales_of(shop, days, draw)]
    write(data / "calendar.csv", calendar)
    write(data / "sales.csv", sales)


def sales_of(shop: str, days: list[dt.date], draw: random.Random) -> list[Row]:
    """What one shop sold; some days were never written down."""
    rows: list[Row] = []
    mood = 0.0
    for number, day in enumerate(days):
        mood = 0.8 * mood + draw.gauss(0, 0.05)
        promotion = draw.random() < 0.08
        expected = SHOPS[shop] * OF_WEEK[shop][day.weekday()] * (1 + 0.0003 * number)
        expected *= 1 + 0.15 * math.sin(2 * math.pi * (day.timetuple().tm_yday - 100) / 365)
        expected *= (1.35 if promotion else 1) * (0.3 if (day.month, day.day) in HOLIDAYS else 1)
        sold = max(0, round(expected * math.exp(mood + draw.gauss(0, 0.06))))
        if draw.random() > 0.01:
            rows.append({"day": day.isoformat(), "shop": shop, "promotion": promotion, "sold": sold})
    return rows
