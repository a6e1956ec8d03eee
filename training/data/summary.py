"""The report of a fusion as a person reads it on a terminal: one line for each thing that happened to the rows."""

from collections.abc import Iterator, Mapping
from typing import Any

LABELS_SHOWN = 12


def summary(report: Mapping[str, Any]) -> list[str]:
    """The lines for a report as :func:`training.data.fuse.fuse` and :func:`training.data.fuse.inspect` make it."""
    return [
        *_sources(report["sources"]),
        *_joins(report["joins"]),
        *_cleaning(report["cleaned"]),
        *_splits(report),
        *_columns(report["columns"]),
        *_labels(report),
        *(f"note       {note}" for note in report["notes"]),
    ]


def _sources(sources: Mapping[str, Any]) -> Iterator[str]:
    for name, source in sources.items():
        rejected = f", {source['rejected']:,} rejected" if source["rejected"] else ""
        yield f"source     {name}: {source['rows']:,} rows ({source['kind']}{rejected})"


def _joins(joins: list[dict[str, Any]]) -> Iterator[str]:
    for join in joins:
        left = join["left"]
        if "matched" not in left:
            yield f"join       {join['on'] or left['table'] + ' with ' + join['right']['table']}: {join['note']}"
            continue
        yield (
            f"join       {join['on']}: {left['matched']:,} rows of {left['table']} found a partner, "
            f"{left['unmatched']:,} did not"
        )


def _cleaning(cleaned: Mapping[str, Any]) -> Iterator[str]:
    for table, one in cleaned.items():
        for step in one["cleaning"]:
            if step["removed"]:
                where = step.get("column") or ", ".join(step.get("columns", []))
                yield f"clean      {table}: {step['step']} ({where}) removed {step['removed']:,}"


def _splits(report: Mapping[str, Any]) -> Iterator[str]:
    parts = ", ".join(f"{name} {rows:,}" for name, rows in report["splits"].items())
    yield f"split      {report['rows']:,} rows: {parts}"


def _columns(columns: Mapping[str, Any]) -> Iterator[str]:
    for name, column in columns.items():
        missing = f", {column['missing']:,} missing" if column["missing"] else ""
        lengths = column.get("characters")
        length = f", a median of {lengths['median']:.0f} characters (longest {lengths['max']:,})" if lengths else ""
        yield f"column     {name}: {column['type']}, {column.get('distinct', 0):,} different{length}{missing}"


def _labels(report: Mapping[str, Any]) -> Iterator[str]:
    labels = (report.get("labels") or {}).get("train") or {}
    shown = sorted(labels.items(), key=lambda item: -item[1])
    for label, rows in shown[:LABELS_SHOWN]:
        yield f"label      {label}: {rows:,} to train on"
    if len(shown) > LABELS_SHOWN:
        yield f"label      … and {len(shown) - LABELS_SHOWN} more, the rarest with {shown[-1][1]:,}"
