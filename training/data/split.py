"""Rows parted into train, validation and test, so that no row and no near copy of one stands in two of them.

A test that has seen the training rows measures memory. Two ways keep them apart:

- random and stratified: near copies stay together as one unit, which goes to one split as a whole;
- by group, by time and with held out sources the side of a row is given. There a copy is removed from the side
  that matters less: from train first, then from validation; the test split is measured as it comes.
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from training.data.near_copies import components, copied_in
from training.data.recipe import Split
from training.data.rows import digests, ranks, texts
from training.mapped import filtered
from training.recipe import Model

SPLITS = ("train", "validation", "test")
SIMILARITY = 0.9
"""From here on two inputs are near copies. High, because a pair of different questions may differ in one word."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parted:
    """The three splits, and how they were kept apart.

    Attributes:
        tables: split to its rows, in the order that they had.
        report: how the rows were parted; ``removed`` counts by split the near copies that were taken out of it,
            ``asked`` the rows that it was to get, and ``unstratified`` names those that strata could not fill.
    """

    tables: dict[str, pa.Table]
    report: dict[str, Any]


def compared_columns(model: Model) -> list[str]:
    """The columns that tell near copies: what the model reads as text. Two rows of equal categories are no copies."""
    from training.tasks.task import task_class  # it loads torch, which the rest of this stage does without

    roles = task_class(model.task).compared_roles
    named = [column for role, columns in model.inputs.items() if roles is None or role in roles for column in columns]
    return list(dict.fromkeys(named))


def split(table: pa.Table, held_out: dict[str, pa.Table], options: Split, compared: list[str]) -> Parted:
    """Parts ``table``; ``held_out`` holds the splits that are sources of their own.

    Args:
        compared: the columns that decide, where they are of text, what near copies are.

    Raises:
        UserError: there are too few rows, groups or times for the splits that are asked for.
    """
    columns = [name for name in compared if pa.types.is_string(table.schema.field(name).type)]
    apart = _Apart(columns)
    test = held_out.get("test")
    validation = held_out.get("validation")
    if test is not None and validation is not None:
        validation = apart.without_copies("validation", validation, [test])
    references = [part for part in (test, validation) if part is not None]
    rest = apart.without_copies("train", table, references) if references else table
    fractions = _fractions(options, held_out)
    asked = {name: _share(rest.num_rows, fraction) for name, fraction in fractions.items()}
    side, unstratified = _sides(rest, fractions, options, apart)
    parts = {name: filtered(rest, side == name) for name in SPLITS}
    parts |= {name: part for name, part in (("test", test), ("validation", validation)) if part is not None}
    if options.group or options.time:
        parts = _drop_copies(parts, fractions, apart)
    _check(parts, fractions, options)
    return Parted(parts, {"by": _way(options), "asked": asked, "unstratified": unstratified, **apart.report()})


class _Apart:
    """Keeps count of what was done to hold near copies apart."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.removed = dict.fromkeys(SPLITS, 0)
        self.together = 0

    def without_copies(self, name: str, table: pa.Table, references: list[pa.Table]) -> pa.Table:
        """``table`` without the rows that are near copies of one in ``references``."""
        if not self.columns or not table.num_rows:
            return table
        others = itertools.chain.from_iterable(texts(reference, self.columns) for reference in references)
        copied = copied_in(texts(table, self.columns), others, SIMILARITY)
        self.removed[name] += int(copied.sum())
        return filtered(table, ~copied)

    def units(self, table: pa.Table) -> Ints:
        """A number for each row, equal for rows that must stay together."""
        if not self.columns:
            return np.arange(table.num_rows)
        units = components(texts(table, self.columns), SIMILARITY)
        sizes = np.bincount(units, minlength=1)
        self.together = int(sizes[sizes > 1].sum())
        return units

    def report(self) -> dict[str, Any]:
        return {
            "near_copies": {
                "columns": self.columns,
                "similarity": SIMILARITY,
                "removed": self.removed,
                "kept_together": self.together,
            }
        }


def _fractions(options: Split, held_out: dict[str, pa.Table]) -> dict[str, float]:
    """The splits that are drawn from the rows, the test first: it matters most that it is well filled."""
    wanted = {"test": options.test, "validation": options.validation}
    return {n: f for n, f in wanted.items() if n not in held_out and isinstance(f, float) and f > 0}


def _way(options: Split) -> str:
    for way in ("stratify", "group", "time"):
        if column := getattr(options, way):
            return f"{way} {column}"
    return "random"


def _share(rows: int, fraction: float) -> int:
    return max(1, round(rows * fraction))


def _sides(
    table: pa.Table, fractions: dict[str, float], options: Split, apart: _Apart
) -> tuple[npt.NDArray[np.str_], list[str]]:
    """The split of each row, and the splits that strata could not fill."""
    if not fractions or not table.num_rows:
        return np.full(table.num_rows, "train"), []
    if options.time:
        return _by_time(table, fractions, options.time), []
    units = _groups(table[options.group]) if options.group else apart.units(table)
    strata = _strata(table, units, options.stratify)
    # drawn by a hash of their content, so that neither their order nor other rows matter
    return _draw(units, strata, fractions, digests(table, salt=f"{options.seed}:"))


def _groups(column: pa.ChunkedArray) -> Ints:
    """A number for each row by its value; a row without a value is a group of its own."""
    groups = ranks(column)
    missing = np.asarray(column.is_null().to_numpy(), dtype=bool)
    groups[missing] = len(groups) + 1 + np.arange(int(missing.sum()))
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def _strata(table: pa.Table, units: Ints, column: str | None) -> Ints:
    """The stratum of each row's unit: the commonest label in it (the first of several equally common ones)."""
    if column is None:
        return np.zeros(len(units), dtype=np.int64)
    pairs, counts = np.unique(np.stack([units, ranks(table[column])], axis=1), axis=0, return_counts=True)
    best = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    known, first = np.unique(pairs[best, 0], return_index=True)
    return np.asarray(pairs[best, 1][first][np.searchsorted(known, units)], dtype=np.int64)


def _draw(
    units: Ints, strata: Ints, fractions: dict[str, float], keys: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.str_], list[str]]:
    """Draws whole units, stratum by stratum, until each split has its share of the rows.

    Where that gives a split less than half of its share, as of a column whose values hardly repeat, the rest of it is
    drawn from all units alike.
    """
    _, first, places, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    lowest = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, places, keys)
    order = np.argsort(lowest, kind="stable").tolist()  # of equal ones the earlier unit
    stratum, held = strata[first], Counter(dict.fromkeys(np.unique(strata).tolist(), 0))
    for number, size in zip(stratum.tolist(), sizes.tolist(), strict=True):
        held[number] += size
    drawn = _Drawn(order, sizes.tolist(), stratum.tolist())
    unstratified = []
    for later, (name, target) in zip(reversed(range(len(fractions))), _targets(held, fractions).items(), strict=True):
        wanted = _share(len(units), fractions[name])
        taken = drawn.by_stratum(name, target)
        if len(held) == 1 or taken < wanted / 2:
            drawn.fill_up(name, wanted - taken, later)
            unstratified += [name] if len(held) > 1 else []
    return np.array(drawn.chosen)[places], unstratified


def _targets(strata: Counter[int], fractions: dict[str, float]) -> dict[str, dict[int, int]]:
    """How many rows of each stratum each split gets: the whole part of its share, then the largest remainders.

    At least one row of a stratum stays to be learned from.
    """
    total = sum(strata.values())
    room = {stratum: max(size - 1, 0) for stratum, size in strata.items()}
    targets = {}
    for name, fraction in fractions.items():
        wanted = _share(total, fraction)
        target = {stratum: min(int(size * fraction), room[stratum]) for stratum, size in strata.items()}
        remainders = sorted(strata, key=lambda stratum: (-((strata[stratum] * fraction) % 1), stratum))
        for stratum in remainders:
            if sum(target.values()) >= wanted:
                break
            target[stratum] += target[stratum] < room[stratum]
        for stratum in strata:
            room[stratum] -= target[stratum]
        targets[name] = target
    return targets


class _Drawn:
    """Units in their drawn order, and the split that each was chosen for."""

    def __init__(self, order: list[int], sizes: list[int], strata: list[int]) -> None:
        self.order = order
        self.sizes = sizes
        self.strata = strata
        self.chosen = ["train"] * len(sizes)

    def by_stratum(self, name: str, target: dict[int, int]) -> int:
        """Chooses units as long as they fit their stratum's share; returns how many rows those are."""
        taken: Counter[int] = Counter()
        for unit in self._free():
            stratum = self.strata[unit]
            if taken[stratum] + self.sizes[unit] <= target[stratum]:
                self.chosen[unit] = name
                taken[stratum] += self.sizes[unit]
        return taken.total()

    def fill_up(self, name: str, lacking: int, later: int) -> None:
        """Chooses units of any stratum as long as they fit, then one that comes nearer to what is asked for than none.

        That leaves a unit to each of the ``later`` splits and one to be learned from. A split that has nothing gets the
        smallest unit.
        """
        for unit in self._free()[:-1]:
            if self.sizes[unit] <= lacking:
                self.chosen[unit] = name
                lacking -= self.sizes[unit]
        free = self._free()
        nearest = min(free, key=lambda unit: abs(lacking - self.sizes[unit]), default=None)
        if nearest is not None and len(free) > 1 + later and abs(lacking - self.sizes[nearest]) < lacking:
            self.chosen[nearest] = name
        elif len(free) > 1 and name not in self.chosen:
            self.chosen[min(free, key=lambda unit: self.sizes[unit])] = name

    def _free(self) -> list[int]:
        return [unit for unit in self.order if self.chosen[unit] == "train"]


def _by_time(table: pa.Table, fractions: dict[str, float], column: str) -> npt.NDArray[np.str_]:
    """The newest rows test, those before validate. Rows of one time stay together."""
    moments = _moments(table[column], column)
    order = np.argsort(moments, kind="stable")
    ordered = moments[order]
    starts = np.flatnonzero(np.r_[False, ordered[1:] != ordered[:-1]])  # where a new time begins
    side = np.full(len(order), "train", dtype="<U10")
    end = len(order)
    for name, fraction in fractions.items():
        possible = starts[starts < end]
        if not len(possible):
            raise UserError(
                f"data.split.time: '{column}' has too few different times to hold rows out for {name}; "
                f"set data.split.{name}: 0 or split another way"
            )
        wanted = end - max(1, round(len(order) * fraction))
        begin = int(possible[np.argmin(np.abs(possible - wanted))])
        side[order[begin:end]] = name
        end = begin
    return side


def _moments(column: pa.ChunkedArray, name: str) -> Ints:
    if column.null_count:
        raise UserError(
            f"data.split.time: {column.null_count} of {len(column)} rows have no '{name}' to be ordered by; "
            f"add data.clean.drop_empty: [{name}]"
        )
    if pa.types.is_string(column.type):
        try:
            column = pc.cast(column, pa.timestamp("us"))
        except pa.ArrowInvalid:
            raise UserError(
                f"data.split.time: '{name}' is text that does not read as times; "
                f"add data.clean.types: {{{name}: timestamp}}"
            ) from None
    return ranks(column)


def _drop_copies(parts: dict[str, pa.Table], fractions: dict[str, float], apart: _Apart) -> dict[str, pa.Table]:
    kept = dict(parts)
    if "test" in fractions and "validation" in fractions:
        kept["validation"] = apart.without_copies("validation", kept["validation"], [kept["test"]])
    drawn = [kept[name] for name in fractions]
    if drawn:
        kept["train"] = apart.without_copies("train", kept["train"], drawn)
    return kept


def _check(parts: dict[str, pa.Table], fractions: dict[str, float], options: Split) -> None:
    rows = {name: part.num_rows for name, part in parts.items()}
    if not rows["train"]:
        raise UserError(
            f"data.split: no row is left to train on (validation {rows['validation']}, test {rows['test']}); "
            "bring more rows, or ask for smaller splits"
        )
    for name in fractions:
        if not rows[name]:
            why = f"by {_way(options)} " if options.group else ""
            raise UserError(
                f"data.split: {name} would have no rows: {rows['train']} rows cannot be parted {why}without near "
                f"copies on both sides; bring more rows or set data.split.{name}: 0"
            )
