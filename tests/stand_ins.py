"""Small made-up data in the layouts in which the examples' public data sets are published.

With them the recipes of ``examples/``, and what ``examples/prepare.py`` makes of the originals, run on any machine.
"""

import csv
import math
import random
import struct
import wave
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

TOPICS = {
    "card_arrival": ["where is my card", "my card is not here yet", "when will the card come"],
    "exchange_rate": ["what is the rate today", "the rate was wrong", "which rate do you use"],
    "lost_phone": ["my phone is gone", "i lost the phone", "someone took my phone"],
}
ENDINGS = ["please", "today", "since Monday", "for my sister", "again", "at last", "in Berlin", "tell me", "thank you"]


def publish(folder: Path) -> None:
    """Writes every data set into a folder of its name."""
    chance = random.Random(11)
    makers = (banking77, bikes, bitext, cranfield, fsdd, hotel_reviews, olist, telco_churn, wnut17)
    for make in makers:
        make(folder, chance)


def write(path: Path, rows: Iterable[dict[str, Any]], encoding: str = "utf-8") -> None:
    """A CSV file of the rows."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def asked(chance: random.Random, count: int) -> list[tuple[str, str]]:
    """Questions, no two alike, and their topics, which take turns."""
    topics = list(TOPICS)
    return [
        (f"{chance.choice(TOPICS[topic])} {chance.choice(ENDINGS)} {number}", topic)
        for number, topic in ((number, topics[number % len(topics)]) for number in range(count))
    ]


def banking77(folder: Path, chance: random.Random) -> None:
    """Questions to a bank."""
    for name, count in (("train", 90), ("test", 30)):
        rows = [{"text": text, "category": topic} for text, topic in asked(chance, count)]
        write(folder / "banking77" / f"{name}.csv", rows)


def bikes(folder: Path, chance: random.Random) -> None:
    """Three months of hours, busy by day."""
    rows = []
    for hour in range(24 * 90):
        moment = datetime(2011, 1, 1) + timedelta(hours=hour)
        busy = 60 * max(0.0, math.sin((moment.hour - 6) / 24 * 2 * math.pi))
        day = {"dteday": f"{moment.month}/{moment.day}/{moment.year}", "hr": moment.hour, "holiday": 0}
        weather = {"workingday": int(moment.weekday() < 5), "weathersit": 1 + hour % 3, "temp": 0.4, "atemp": 0.4}
        rows.append(day | weather | {"hum": 0.6, "windspeed": 0.1, "cnt": int(busy) + chance.randrange(10)})
    write(folder / "bike_sharing_hourly" / "bike.csv", rows)


def bitext(folder: Path, chance: random.Random) -> None:
    """What customers said and wanted, and what was answered."""
    place, said = folder / "bitext_customer_support", asked(chance, 90)
    intents = [{"flags": "B", "utterance": text, "category": "ORDER", "intent": topic} for text, topic in said]
    write(place / "intents_8k.csv", intents, "utf-8-sig")
    answers = [
        {
            "instruction": text,
            "intent": topic,
            "response": f"We are sorry. About {topic.replace('_', ' ')}: we will see.",
        }
        for text, topic in said
    ]
    write(place / "bitext_responses_v2023-08-18.csv", answers)


def cranfield(folder: Path, chance: random.Random) -> None:
    """Abstracts, queries whose numbers are not their places, and judgements, in the SMART format."""
    place = folder / "cranfield"
    place.mkdir(parents=True)
    subjects = ["wing", "shock wave", "heat", "plate", "jet", "cone"]
    abstracts = [(subject, f"on the {subject} at speed {speed}") for speed in range(4) for subject in subjects]
    records = [
        f".I {number}\n.T\n{title} .\n.A\nsmith,j.\n.B\nj. ae. 1958.\n.W\n{title} .\n we look {title} .\n"
        for number, (_, title) in enumerate(abstracts, 1)
    ]
    (place / "cran.all.1400").write_text("".join(records), encoding="utf-8")
    queries = [f".I {7 * number + 1:03}\n.W\nwhat of the {subject} .\n" for number, subject in enumerate(subjects * 2)]
    (place / "cran.qry").write_text("".join(queries), encoding="utf-8")
    judgements = [
        f"{query} {document} {chance.randrange(1, 5)}"
        for query, subject in enumerate(subjects * 2, 1)
        for document, (about, _) in enumerate(abstracts, 1)
        if about == subject
    ]
    (place / "cranqrel").write_text("\n".join(judgements) + "\n", encoding="utf-8")


def fsdd(folder: Path, chance: random.Random) -> None:
    """A tone for each digit, a little off for each speaker."""
    place = folder / "fsdd" / "recordings"
    place.mkdir(parents=True)
    for speaker, voice in (("ann", 1.0), ("ben", 1.1), ("eve", 1.2), ("joe", 1.3)):
        for digit in range(3):
            for index in (0, 1, 5, 6, 10):
                pitch = 200 * 2**digit * voice + chance.random()
                sound = [int(9000 * math.sin(2 * math.pi * pitch * step / 8000)) for step in range(2400)]
                with wave.open(str(place / f"{digit}_{speaker}_{index}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(8000)
                    file.writeframes(struct.pack(f"<{len(sound)}h", *sound))


def hotel_reviews(folder: Path, chance: random.Random) -> None:
    """Good and bad words about hotels, in Chinese."""
    words = {1: "很好干净满意舒服", 0: "很差吵闹失望太贵"}
    rows = [
        {"label": label, "review": f"酒店{''.join(chance.choices(words[label], k=6))}，第{number}次入住。"}
        for number, label in enumerate([1, 0] * 40)
    ]
    write(folder / "hotel_reviews_zh" / "ChnSentiCorp_htl_all.csv", rows)


def olist(folder: Path, chance: random.Random) -> None:
    """A market place in five tables: a parcel that comes late is liked less."""
    orders, items, reviews, customers = [], [], [], []
    for number in range(120):
        bought = datetime(2017, 1, 1, 12) + timedelta(days=number)
        late = number % 3 == 0
        delivered = bought + timedelta(days=14 if late else 5)
        key, customer = f"o{number}", f"c{number}"
        moments = {"order_purchase_timestamp": bought, "order_delivered_customer_date": delivered}
        moments["order_estimated_delivery_date"] = bought + timedelta(days=10)
        orders.append({"order_id": key, "customer_id": customer, "order_status": "delivered", **moments})
        customers.append({"customer_id": customer, "customer_state": chance.choice(["SP", "RJ", "MG"])})
        item = {"order_id": key, "product_id": f"p{number % 7}", "seller_id": f"s{number % 3}"}
        items.append(item | {"price": chance.randrange(10, 200), "freight_value": chance.randrange(5, 30)})
        told = f"{'não chegou, péssimo' if late else 'chegou bem, recomendo'} {number}"
        review = {"order_id": key, "review_score": (number % 2 + 1) if late else 3 + number % 3}
        reviews.append(review | {"review_comment_title": "", "review_comment_message": told})
    kinds = ["bebes", "moveis", ""]
    products = [
        {"product_id": f"p{number}", "product_category_name": kinds[number % 3], "product_weight_g": 100 * number}
        for number in range(7)
    ]
    sellers = [{"seller_id": f"s{number}", "seller_state": "SP"} for number in range(3)]
    tables: dict[str, Sequence[dict[str, Any]]] = {"orders": orders, "order_items": items, "order_reviews": reviews}
    tables |= {"customers": customers, "products": products, "sellers": sellers}
    for name, rows in tables.items():
        write(folder / "olist" / f"{name}.csv", rows)


def telco_churn(folder: Path, chance: random.Random) -> None:
    """Customers of whom the new ones leave; who came today has a blank instead of a total."""
    services = ["MultipleLines", "InternetService", "OnlineSecurity", "OnlineBackup", "DeviceProtection"]
    services += ["TechSupport", "StreamingTV", "StreamingMovies", "PaperlessBilling", "PhoneService"]
    rows = []
    for number in range(100):
        months = chance.randrange(30)
        person = {"customerID": f"{number:04}-A", "gender": chance.choice(["Female", "Male"]), "SeniorCitizen": 0}
        person |= {"Partner": "Yes", "Dependents": "No", "tenure": months, "Contract": "Month-to-month"}
        paid = {"PaymentMethod": "Mailed check", "MonthlyCharges": 29.85, "TotalCharges": months * 29.85 or " "}
        bought = {service: chance.choice(["Yes", "No"]) for service in services}
        rows.append(person | bought | paid | {"Churn": "Yes" if months < 10 else "No"})
    write(folder / "telco_churn" / "WA_Fn-UseC_-Telco-Customer-Churn.csv", rows)


def wnut17(folder: Path, chance: random.Random) -> None:
    """Sentences with people and places, a token and a tag a line."""
    place = folder / "wnut17"
    place.mkdir(parents=True)
    for name, count in (("wnut17train.conll", 60), ("emerging.dev.conll", 20), ("emerging.test.annotated", 20)):
        sentences = []
        for _ in range(count):
            person, town = chance.choice(["Ann", "Ben", "Eve"]), chance.choice(["Rome", "Oslo"])
            said = [(str(chance.randrange(100_000)), "O"), (person, "B-person"), ("Miller", "I-person")]
            tagged = [*said, ("is", "O"), ("in", "O"), (town, "B-location")]
            sentences.append("\n".join(f"{token}\t{tag}" for token, tag in tagged))
        (place / name).write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
