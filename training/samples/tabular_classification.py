"""Made-up subscribers: who they are, what they used, and who left.

Leaving follows from both tables, with chance on top. The data are as untidy as real ones: ages that are blank text,
customers without any use, countries that are written in two ways, copies.
"""

import csv
import math
import random
from pathlib import Path

SEED = 7
CUSTOMERS = 3_000
PLANS = {"monthly": 0.9, "yearly": -0.9, "two years": -1.6}
PAYMENTS = {"card": 0.0, "transfer": 0.2, "invoice": 0.6, "": 0.2}
COUNTRIES = {"AT": 0.0, "CH": -0.3, "DE": 0.1, "FR": 0.4, "IT": 0.2, "it": 0.2}

Row = dict[str, object]


def write_data(data: Path) -> None:
    """Writes ``customers.csv`` and ``usage.csv``."""
    draw = random.Random(SEED)
    customers, usage = [], []
    for number in range(1, CUSTOMERS + 1):
        customer, months = one_customer(number, draw)
        customers.append(customer)
        usage += months
    customers += [dict(one) for one in draw.sample(customers, 20)]  # told twice
    write(data / "customers.csv", customers)
    write(data / "usage.csv", usage)


def one_customer(number: int, draw: random.Random) -> tuple[Row, list[Row]]:
    """A customer, and what was used in each of three months."""
    plan = draw.choices(list(PLANS), [5, 3, 2])[0]
    payment, country = draw.choice(list(PAYMENTS)), draw.choice(list(COUNTRIES))
    tenure, age, tickets = draw.randint(1, 72), draw.randint(18, 85), min(6, int(draw.expovariate(0.9)))
    price = round(draw.choice([9.9, 19.9, 29.9]) * draw.uniform(0.9, 1.1), 2)
    hours = draw.lognormvariate(2.2, 0.6)
    trend = draw.gauss(0, 0.35)
    risk = PLANS[plan] + PAYMENTS[payment] + COUNTRIES[country] - 0.035 * tenure + 0.5 * tickets + 0.03 * price
    risk += -2.2 * trend + (0.8 if age < 28 and plan == "monthly" else 0) - 0.9
    left = draw.random() < 1 / (1 + math.exp(-1.4 * risk))
    customer: Row = {
        "customer_id": number,
        "since": f"{2024 - tenure // 12}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}",
        "age": " " if draw.random() < 0.06 else age,
        "country": country,
        "plan": plan,
        "payment": payment,
        "price": price,
        "tenure": tenure,
        "tickets": tickets,
        "left": "Yes" if left else "No",
    }
    months: list[Row] = [
        {
            "customer_id": number,
            "month": month,
            "hours": round(hours * math.exp(trend * month) * draw.uniform(0.8, 1.2), 1),
        }
        for month in (1, 2, 3)
    ]
    return customer, months if draw.random() > 0.03 else []


def write(path: Path, rows: list[Row]) -> None:
    """A CSV file with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
