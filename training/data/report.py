"""The data stage's report: what became of every row. Its numbers add up, and it says in words what deserves a look."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from training.data import describe
from training.data.clean import Cleaned
from training.data.joined import Fusion
from training.data.landing import Landed
from training.data.rows import Rows
from training.data.split import SPLITS, Parted
from training.recipe import Recipe

FORMAT = 3
"""Raised whenever the same recipe and data would give other rows: earlier results are then made again."""

MAIN = "fused"
"""What the report calls the table that the splits are drawn from, beside the held out sources by their names."""

MUCH = 0.2  # a share of rows without a partner, or without a value, that deserves a word
COPIED = 0.05
LOPSIDED = 0.9
SPELLINGS_SHOWN = 3
UNEVEN = 2  # times as many rows, or as few, as a split was to get


def make_report(
    recipe: Recipe,
    landed: dict[str, Landed],
    fusion: Fusion,
    fused: dict[str, Rows],
    cleaned: dict[str, Cleaned],
    parted: Parted,
    corpus: pa.Table | None = None,
    noted: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of ``fuse.json``.

    - ``rows`` and ``splits``: what is left, in all and by split;
    - ``sources``: by source ``read`` = ``rejected`` + ``rows``, its ``kind``, ``files``, ``columns``, ``warnings``;
    - ``main``: of the source whose rows become fused rows, how many are ``used`` and how many ``fused_rows`` they make,
      or None where that cannot be told;
    - ``joins``: see :func:`training.data.joins.measure`;
    - ``casts``: see :func:`training.data.casts.measure`;
    - ``cleaned``: for the ``fused`` table and each held out source, ``rows``, the ``cleaning`` steps with what each
      ``removed``, and what is ``kept``;
    - ``split``: how the rows were parted, and the near copies ``removed`` to hold the splits apart;
    - ``rejected``, ``target``, ``inputs``, ``labels`` by split, ``columns``;
    - ``corpus``: its ``rows`` and ``columns``, where the recipe names one;
    - ``notes``: sentences for a person, those that were ``noted`` before among them.
    """
    tables = parted.tables
    whole = pa.concat_tables([tables[name] for name in SPLITS], promote_options="permissive")
    report = {
        "format": FORMAT,
        "rows": whole.num_rows,
        "splits": {name: tables[name].num_rows for name in SPLITS},
        "sources": {name: _source(source) for name, source in landed.items()},
        "main": _main(fusion, fused[MAIN]),
        "joins": fusion.joins(),
        "casts": fusion.casts(),
        "cleaned": {name: _fused(fused[name], cleaned[name]) for name in fused},
        "split": parted.report,
        "rejected": _rejected(landed, cleaned),
        "target": recipe.model.target,
        "inputs": recipe.model.inputs,
        "labels": {name: describe.labels(tables[name], recipe.model.target) for name in SPLITS},
        "columns": describe.columns(whole),
    }
    if corpus is not None:
        report["corpus"] = {"rows": corpus.num_rows, "columns": corpus.column_names}
    _check_sums(report)
    on_types = [note for source in landed.values() for note in source.notes]
    return {**report, "notes": [*on_types, *noted, *notes(report)]}


def _source(source: Landed) -> dict[str, Any]:
    report: dict[str, Any] = {
        "kind": source.kind,
        "files": source.files,
        "read": source.rows + source.rejected_rows,
        "rejected": source.rejected_rows,
        "rows": source.rows,
        "columns": {field.name: describe.type_name(field.type) for field in source.schema},
    }
    return report | ({"warnings": source.warnings} if source.warnings else {})


def _main(fusion: Fusion, rows: Rows) -> dict[str, Any] | None:
    """None where fused rows are not the rows of a source (GROUP BY, UNION). Where its rows come through a subquery,
    which ones are used is not known, but more rows than it has are."""
    if fusion.main is None or not (fusion.main in rows.origins or fusion.multiplied(len(rows))):
        return None
    numbers = rows.origins.get(fusion.main)
    used = None if numbers is None else len(set(numbers[numbers > 0].tolist()))
    total = fusion.sources[fusion.main].rows
    unused = None if used is None else total - used
    return {"source": fusion.main, "rows": total, "used": used, "unused": unused, "fused_rows": len(rows)}


def _fused(rows: Rows, cleaned: Cleaned) -> dict[str, Any]:
    return {"rows": len(rows), "cleaning": cleaned.steps, "kept": len(cleaned.rows)}


def _rejected(landed: dict[str, Landed], cleaned: dict[str, Cleaned]) -> dict[str, Any]:
    reading = {name: source.rejected_rows for name, source in landed.items()}
    rules = {name: part.rejected_rows for name, part in cleaned.items()}
    return {"rows": sum(reading.values()) + sum(rules.values()), "reading": reading, "rules": rules}


def _check_sums(report: dict[str, Any]) -> None:
    """Where the numbers do not add up, a step has lost or made up rows."""
    for name, source in report["sources"].items():
        assert source["read"] == source["rejected"] + source["rows"], f"rows of {name} do not add up"
    for name, part in report["cleaned"].items():
        removed = sum(step["removed"] for step in part["cleaning"])
        assert part["rows"] == removed + part["kept"], f"rows cleaned of {name} do not add up"
    for join in report["joins"]:
        for side in (join["left"], join["right"]):
            if "rows" in side:
                assert side["rows"] == side["matched"] + side["unmatched"] + side["without_key"], join["on"]
                assert side["keys"] == side["matched_keys"] + side["unmatched_keys"], join["on"]
    kept = sum(part["kept"] for part in report["cleaned"].values())
    copies = sum(report["split"]["near_copies"]["removed"].values())
    assert kept == copies + report["rows"] == copies + sum(report["splits"].values()), "rows split do not add up"


# --- in words --------------------------------------------------------------------------------------------------------


def notes(report: dict[str, Any]) -> list[str]:
    """What a careful colleague would point at."""
    return [
        *(warning for source in report["sources"].values() for warning in source.get("warnings", [])),
        *_on_rejects(report),
        *_on_joins(report),
        *_on_casts(report),
        *_on_columns(report),
        *_on_splits(report),
        *_on_copies(report),
        *_on_labels(report),
    ]


def _on_rejects(report: dict[str, Any]) -> list[str]:
    counts = {**report["rejected"]["reading"]}
    counts |= {
        "fused rows" if name == MAIN else f"fused rows of {name}": count
        for name, count in report["rejected"]["rules"].items()
    }
    return [f"{name}: {count:,} rows rejected" for name, count in counts.items() if count]


def _on_joins(report: dict[str, Any]) -> list[str]:
    said = []
    for join in report["joins"]:
        left, right = join["left"], join["right"]
        if "rows" not in left or "rows" not in right:
            continue
        what = f"{left['table']} with {right['table']} ON {join['on']}"
        if left["rows"] and not left["matched"]:
            said.append(f"{what}: no key matches; compare what the two columns hold")
        elif left["rows"] - left["matched"] > MUCH * left["rows"]:
            lonely = left["rows"] - left["matched"]
            said.append(f"{what}: {lonely:,} of {left['rows']:,} rows of {left['table']} find no partner")
        if "types" in join:
            said.append(f"{what}: {join['types']}")
    main = report["main"]
    used = main and (main["rows"] if main["used"] is None else main["used"])
    if main and main["fused_rows"] > used:
        repeated = [join["right"]["table"] for join in report["joins"] if join["right"].get("repeated_keys")]
        said.append(
            f"{used:,} rows of {main['source']} became {main['fused_rows']:,} fused rows: a join found several "
            f"partners ({', '.join(dict.fromkeys(repeated)) or 'see joins'}); aggregate them first if that is not meant"
        )
    return said


def _on_casts(report: dict[str, Any]) -> list[str]:
    return [
        f"fuse: {cast['cast']} makes {cast['missing']:,} of {cast['values']:,} values of {cast['source']} missing, as "
        f"'{cast['example']}'"
        for cast in report["casts"]
    ]


def _on_columns(report: dict[str, Any]) -> list[str]:
    used = dict.fromkeys(column for columns in report["inputs"].values() for column in columns)
    return [
        f"{column}: {report['columns'][column]['missing']:,} of {report['rows']:,} rows have no value"
        for column in used
        if report["columns"][column]["missing"] > MUCH * report["rows"]
    ]


def _on_splits(report: dict[str, Any]) -> list[str]:
    said = []
    by, asked, unstratified = (report["split"][key] for key in ("by", "asked", "unstratified"))
    if unstratified:
        said.append(
            f"data.split.{by.replace(' ', ': ', 1)}: too few rows share a value to keep the shares; "
            f"{' and '.join(unstratified)} were filled up without regard to it"
        )
    for name, wanted in asked.items():
        rows = report["splits"][name]
        if not wanted / UNEVEN <= rows <= wanted * UNEVEN:
            said.append(
                f"{name}: {rows:,} rows where {wanted:,} were asked for; rows of one group, of one time and near "
                "copies of each other stay together or are left out"
            )
    return said


def _on_copies(report: dict[str, Any]) -> list[str]:
    said = []
    for step in (step for part in report["cleaned"].values() for step in part["cleaning"]):
        if step.get("conflicting"):
            said.append(
                f"{step['step']}: {step['conflicting']:,} of {step['removed']:,} removed copies had another "
                f"{report['target']} than the row that was kept"
            )
    removed = report["split"]["near_copies"]["removed"]["train"]
    if removed > COPIED * (removed + report["splits"]["train"]):
        said.append(f"{removed:,} training rows were near copies of validation or test rows and were left out")
    return said


def _on_labels(report: dict[str, Any]) -> list[str]:
    train = report["labels"]["train"]
    if not train:
        return []
    total, kinds = sum(train.values()), report["columns"][report["target"]].get("distinct", 0)
    said = _on_spellings(report)
    if total and max(train.values()) > LOPSIDED * total:
        label = next(iter(train))
        said.append(f"{report['target']}: {train[label] / total:.0%} of the training rows are '{label}'")
    single = [label for label, count in train.items() if count == 1]
    if single and kinds < report["rows"] / 2:
        said.append(f"{report['target']}: {len(single)} values have a single training row, e.g. '{single[0]}'")
    if kinds >= report["rows"] / 2 and kinds > 2:
        said.append(
            f"{report['target']}: {kinds:,} different values in {report['rows']:,} rows; is it the right column?"
        )
    for name in ("validation", "test"):
        unknown = [label for label in report["labels"][name] if label not in train]
        if unknown and kinds <= describe.MOST_VALUES:
            said.append(
                f"{report['target']}: '{unknown[0]}' stands in {name} and not in train ({len(unknown)} such values)"
            )
    return said


def _on_spellings(report: dict[str, Any]) -> list[str]:
    """Labels that a person would take for one."""
    counts: Counter[str] = Counter()
    for labels in report["labels"].values():
        counts.update(labels)
    spellings: dict[str, list[str]] = {}
    for label in counts:
        spellings.setdefault(" ".join(label.casefold().split()), []).append(label)
    several = [sorted(same, key=lambda label: (-counts[label], label)) for same in spellings.values() if len(same) > 1]
    if not several:
        return []
    shown = "; ".join(", ".join(f"'{one}' ({counts[one]:,})" for one in same) for same in several[:SPELLINGS_SHOWN])
    more = f" and {len(several) - SPELLINGS_SHOWN} more" if len(several) > SPELLINGS_SHOWN else ""
    return [f"{report['target']}: values that differ only by case or blanks count as different: {shown}{more}"]
