"""The page on SQL: every statement of it runs, and does what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest

from training.data.joined import Fusion
from training.data.landing import Landed
from training.data.recipe import Source
from training.data.sources import land

PAGE = (Path(__file__).parents[3] / "docs" / "sql.md").read_text(encoding="utf-8")
STATEMENTS = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
FILES = {
    "tickets": """id,text,label,customer,seen
1, My CARD is lost 77,card,a,2024-01-05 10:00:00
2,where is my card?,,unknown,2024-01-06 10:00:00
3,no login,login,b,2024-02-06 10:00:00
""",
    "customers": "customer,plan\na,basic\nb,gold\n",
    "orders": 'id,customer,amount,day\n1,a,"1,234.50",20240131\n2,a,7,20240201\n3,b,2,20240229\n',
    "calls": "Reason of call,标签,customer\nlost card,卡,a\n",
}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Landed]:
    for name, text in FILES.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    return {name: land(name, Source(read=f"{name}.csv"), tmp_path, tmp_path) for name in FILES}


ROWS: list[dict[str, list[Any]]] = [
    {"plan": ["basic", None, "gold"], "spent": [7.0, None, 2.0]},
    {"amount": ["7", None, "2"]},
    {"text": ["lost card"], "label": ["卡"], "customer": ["A"]},
    {"amount": [1234.5, 7.0, 2.0]},
    {
        "text": ["my card is lost 77", "where is my card?", "no login"],
        "label": ["card", "none", "login"],
        "customer": ["a", None, "b"],
        "start": [" My CA", "where ", "no log"],
        "masked": [" My CARD is lost #", "where is my card?", "no login"],
        "place": [-1, 12, -1],
    },
    {"size": [19, 17], "half": [0.5, 1.0], "month": [1, 1]},
]


def test_each_statement_is_followed() -> None:
    assert len(ROWS) == len(STATEMENTS)


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
def test_a_statement_of_the_page_does_what_it_says(number: int, sources: dict[str, Landed]) -> None:
    table = Fusion(STATEMENTS[number], sources, set()).rows().table
    assert {name: table[name].to_pylist() for name in ROWS[number]} == ROWS[number]
