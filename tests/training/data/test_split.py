"""What holds of every split, whatever the rows and the way they are parted."""

import datetime as dt
import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import UserError
from training.data.near_copies import copied_in
from training.data.recipe import Split
from training.data.split import SIMILARITY, SPLITS, Parted, split

WORDS = (
    "card money account parcel refund late lost broken login charge cancel upgrade price error page street".split()  # noqa: SIM905
)


def tickets(seed: int, count: int = 300) -> pa.Table:
    """Rows with copies and near copies, uneven labels, groups and times of which some are equal and some missing."""
    chance = random.Random(seed)
    texts = [" ".join(chance.choices(WORDS, k=chance.randrange(4, 20))) for _ in range(count)]
    for _ in range(count // 4):
        texts[chance.randrange(count)] = chance.choice(texts) + chance.choice(["", "!", "?", " "])
    return pa.table(
        {
            "id": list(range(count)),
            "text": texts,
            "label": chance.choices("abcd", weights=[60, 25, 10, 5], k=count),
            "customer": [chance.choice([None, *range(40)]) for _ in range(count)],
            "at": [dt.datetime(2024, 1, 1) + dt.timedelta(days=chance.randrange(60)) for _ in range(count)],
        }
    )


def parted(table: pa.Table, held_out: dict[str, pa.Table] | None = None, **options: Any) -> Parted:
    return split(table, held_out or {}, Split.model_validate(options), ["text"])


WAYS: dict[str, dict[str, Any]] = {
    "random": {},
    "stratified": {"stratify": "label"},
    "by group": {"group": "customer"},
    "by time": {"time": "at"},
    "test alone": {"validation": 0.0, "test": 0.3},
    "no test": {"test": 0.0},
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", WAYS)
def test_no_row_and_no_near_copy_stands_in_two_splits(way: str, seed: int) -> None:
    table = tickets(seed)
    done = parted(table, **WAYS[way])
    ids = [done.tables[name]["id"].to_pylist() for name in SPLITS]
    everywhere = [one for part in ids for one in part]
    assert len(set(everywhere)) == len(everywhere)
    removed = done.report["near_copies"]["removed"]
    assert len(everywhere) + sum(removed.values()) == table.num_rows
    texts = {name: done.tables[name]["text"].to_pylist() for name in SPLITS}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not copied_in(texts[one], texts[other], SIMILARITY).any()
    for name, fraction in (("validation", 0.1), ("test", 0.1)):
        wanted = WAYS[way].get(name, fraction) * table.num_rows
        assert abs(done.tables[name].num_rows + removed[name] - wanted) <= (12 if way in ("by time", "by group") else 2)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_rows_give_the_same_split_in_any_order(way: str) -> None:
    table = tickets(9)
    shuffled = table.take(random.Random(1).sample(range(table.num_rows), table.num_rows))
    first, second = parted(table, **WAYS[way]), parted(shuffled, **WAYS[way])
    for name in SPLITS:
        assert first.tables[name].sort_by("id").equals(second.tables[name].sort_by("id"))
        assert first.tables[name]["id"].to_pylist() == sorted(first.tables[name]["id"].to_pylist())


def test_another_seed_gives_another_split() -> None:
    table = tickets(3)
    assert not parted(table, seed=1).tables["test"].equals(parted(table, seed=2).tables["test"])


def test_rows_that_are_added_move_few_others() -> None:
    table = tickets(4, 1000)
    before = set(parted(table.slice(0, 980)).tables["test"]["id"].to_pylist())
    after = set(parted(table).tables["test"]["id"].to_pylist())
    assert len(before & after) > 0.85 * len(before)


def test_stratified_keeps_the_shares() -> None:
    labels = random.Random(5).choices("abcd", weights=[60, 25, 10, 5], k=1000)
    table = pa.table({"text": [f"{n} {WORDS[n % 16]} {n * n}" for n in range(1000)], "label": labels})
    done = parted(table, stratify="label", test=0.2)
    whole = Counter(table["label"].to_pylist())
    for name, fraction in (("validation", 0.1), ("test", 0.2)):
        found = Counter(done.tables[name]["label"].to_pylist())
        assert all(abs(found[label] - fraction * whole[label]) <= 1 for label in whole)


def test_a_label_with_one_row_is_trained_on() -> None:
    labels = ["a"] * 30 + ["b"] * 30 + [f"once {n}" for n in range(30)] + [None] * 10
    table = pa.table({"text": [f"{n} {WORDS[n % 16]} {n * n}" for n in range(100)], "label": labels})
    done = parted(table, stratify="label")
    assert set(done.tables["train"]["label"].to_pylist()) == set(labels)
    assert done.tables["test"].num_rows == done.tables["validation"].num_rows == 10


def test_a_column_whose_values_hardly_repeat_still_fills_every_split() -> None:
    texts = [f"{n} {WORDS[n % 16]} {n * n}" for n in range(1000)]
    done = parted(pa.table({"text": texts, "label": [n / 7 for n in range(1000)]}), stratify="label")
    assert {name: done.tables[name].num_rows for name in SPLITS} == {"train": 800, "validation": 100, "test": 100}
    assert done.report["unstratified"] == ["test", "validation"]


def test_values_that_stand_once_beside_one_of_many_rows_are_trained_on() -> None:
    texts = [f"{n} {WORDS[n % 16]} {n * n}" for n in range(1000)]
    labels = [max(n, 800) for n in range(1000)]
    done = parted(pa.table({"text": texts, "label": labels}), stratify="label")
    assert set(done.tables["train"]["label"].to_pylist()) == set(labels)
    assert done.report["unstratified"] == []


UNEVEN = {
    "one is too large": ([600, 100, 100, 5], {"train": 600, "validation": 100, "test": 105}),
    "none is small enough": ([400, 300, 105], {"train": 400, "validation": 300, "test": 105}),
    "equal ones": ([100] * 8 + [5], {"train": 600, "validation": 100, "test": 105}),
    "one for each split": ([700, 100, 5], {"train": 700, "validation": 100, "test": 5}),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_groups_of_uneven_sizes_come_near_to_what_was_asked_for(case: str) -> None:
    sizes, expected = UNEVEN[case]
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    texts = [f"{n} {WORDS[n % 16]} {n * n}" for n in range(len(groups))]
    done = parted(pa.table({"text": texts, "customer": groups}), group="customer")
    assert {name: done.tables[name].num_rows for name in SPLITS} == expected
    assert done.report["asked"] == {"test": 80, "validation": 80}


def test_a_group_stays_together_and_no_group_is_nobody() -> None:
    table = tickets(6)
    done = parted(table, group="customer")
    groups = [set(done.tables[name]["customer"].drop_null().to_pylist()) for name in SPLITS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    nobody = pa.table({"text": [f"{n} {WORDS[n % 16]}" for n in range(50)], "customer": pa.nulls(50, pa.int64())})
    assert parted(nobody, group="customer").tables["test"].num_rows == 5


def test_time_goes_on_from_split_to_split() -> None:
    done = parted(tickets(7), time="at")
    ends = {name: (min(times), max(times)) for name in SPLITS if (times := done.tables[name]["at"].to_pylist())}
    assert ends["train"][1] < ends["validation"][0] <= ends["validation"][1] < ends["test"][0]


@pytest.mark.parametrize("kind", ["text", "number", "date"])
def test_time_may_be_written_in_several_ways(kind: str) -> None:
    table = tickets(8)
    times = {
        "text": pa.array([str(at) for at in table["at"].to_pylist()]),
        "number": pa.array([at.timestamp() for at in table["at"].to_pylist()]),
        "date": table["at"].cast(pa.date32()),
    }[kind]
    same = parted(table.set_column(4, "at", times), time="at")
    assert same.tables["test"]["id"].equals(parted(table, time="at").tables["test"]["id"])


def test_rows_without_a_time_are_told_how_to_go() -> None:
    table = pa.table({"text": ["a", "b", "c"], "at": [1, None, 3]})
    with pytest.raises(UserError) as raised:
        parted(table, time="at")
    assert str(raised.value) == (
        "data.split.time: 1 of 3 rows have no 'at' to be ordered by; add data.clean.drop_empty: [at]"
    )


def test_held_out_rows_stay_and_their_copies_leave_the_training_rows() -> None:
    long = "my parcel has been lost somewhere between your house and mine, what now"
    table = pa.table({"text": [long, long + "!", "refund please", *(f"{n} {w}" for n, w in enumerate(WORDS))]})
    test = pa.table({"text": [long.upper(), "a new one"]})
    validation = pa.table({"text": ["refund please", "a new one"]})
    done = parted(table, {"test": test, "validation": validation}, test={"source": "t"}, validation={"source": "v"})
    assert done.tables["test"].equals(test)
    assert done.tables["validation"]["text"].to_pylist() == ["refund please"]
    assert done.tables["train"].num_rows == len(WORDS)
    assert done.report["near_copies"]["removed"] == {"train": 3, "validation": 1, "test": 0}


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_a_handful_of_rows_still_fills_every_split(count: int) -> None:
    done = parted(pa.table({"text": WORDS[:count], "label": (["a", "b"] * 5)[:count]}), stratify="label")
    assert all(done.tables[name].num_rows for name in SPLITS)


def test_too_few_rows_are_told() -> None:
    with pytest.raises(UserError, match="validation would have no rows"):
        parted(pa.table({"text": ["one", "two"]}))
    with pytest.raises(UserError, match="test would have no rows: 5 rows cannot be parted without near copies"):
        parted(pa.table({"text": ["the very same words"] * 5}))
    with pytest.raises(UserError, match="no row is left to train on"):
        parted(pa.table({"text": ["same"]}), {"test": pa.table({"text": ["same"]})}, test={"source": "t"})


def test_inputs_that_are_no_text_have_no_near_copies() -> None:
    table = pa.table({"age": [1, 1, 2, 2] * 10})
    done = split(table, {}, Split(), ["age"])
    assert done.tables["train"].num_rows == 32
