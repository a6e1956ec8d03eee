"""What a model that searches is compared with, and what its report shows besides."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from training.evaluation import charts, page, rankers, sections
from training.evaluation.evaluate import outputs_of
from training.evaluation.page import Fragment
from training.evaluation.retrieval import DEPTH, Ranked
from training.evaluation.sections import ReportData, Section
from training.inputs.text import Reader
from training.models.pooling import pooling_of
from training.tasks.task import Baseline, Outputs, Row, Task

RankingsOf = Callable[[ReportData], list[Ranked]]
"""What each query of the judged split finds, in the order of its question rows."""

SHOWN = 12
CLIPPED = 300

Judge = Callable[[Task, Path, pa.Table, Sequence[pa.Table]], list[Outputs]]


# --- baselines --------------------------------------------------------------------------------------------------------


def lexical(name: str) -> Judge:
    """A ranker of ``RANKERS`` over the passages among the question rows: for a query, their numbers, best first."""

    def outputs(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
        return [_ranked(rankers.RANKERS[name], table.to_pylist()) for table in others]

    return outputs


def _ranked(rank: rankers.Ranker, rows: Sequence[Row]) -> Outputs:
    passages = [row for row in rows if row["numbers"]]
    numbers = np.array([row["numbers"][0] for row in passages])
    queries = [row["source_sentence"] for row in rows if not row["numbers"]]
    found = iter(rank(queries, [row["source_sentence"] for row in passages], DEPTH))
    nothing = np.zeros(0, dtype=np.int64)
    return [nothing if row["numbers"] else numbers[next(found)] for row in rows]


def untouched(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """The model before it learned anything."""
    model = task.build(base).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return [outputs_of(task, model, task.encode(table.to_pylist())) for table in others]


def named_baselines() -> dict[str, Baseline]:
    """What a model that embeds is compared with."""
    words = {name: Baseline(rankers.TITLES[name], lexical(name), probabilities=False) for name in ("bm25", "tfidf")}
    return words | {"base": Baseline(rankers.TITLES["base"], untouched)}


def second_stage_baselines(reader: Reader, first_stage: str) -> dict[str, Baseline]:
    """What a model that ranks anew is compared with; ``reader`` reads its queries and passages for the base."""

    def unranked(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
        return [[-np.arange(len(row["numbers"]), dtype=np.float32) for row in table.to_pylist()] for table in others]

    def cosine(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
        tables = [table.to_pylist() for table in others]
        texts = [text for rows in tables for row in rows for text in (row["query"], *row["texts"])]
        vectors = iter(rankers.embed(base, reader, pooling_of(base), texts))
        return [
            [(lambda query: np.array([next(vectors) @ query for _ in row["texts"]]))(next(vectors)) for row in rows]
            for rows in tables
        ]

    first = Baseline(f"{rankers.TITLES[first_stage]}, the first stage", unranked, probabilities=False)
    return {first_stage: first, "base": Baseline(f"{rankers.TITLES['base']}, cosine", cosine, probabilities=False)}


# --- the report -------------------------------------------------------------------------------------------------------


def report_sections(rankings_of: RankingsOf) -> tuple[Section, ...]:
    """The sections of a model that searches, in their order."""

    def of_queries(section: Section) -> Section:
        def shown(data: ReportData) -> Fragment | None:
            return section(replace(data, targets=[target for target in data.targets if target["known"]]))

        return shown

    return (
        of_queries(sections.verdict),
        of_queries(sections.comparison),
        sections.learning,
        lambda data: depth(data, rankings_of),
        lambda data: lost(data, rankings_of),
        sections.sources,
        sections.recipe,
        sections.making,
    )


def depth(data: ReportData, rankings_of: RankingsOf) -> Fragment | None:
    """How far down the ranking one must read to meet the first relevant passage."""
    rankings = rankings_of(data) if data.outputs is not None else []
    if not rankings:
        return None
    firsts = np.array([one.first or np.inf for one in rankings])
    places = np.arange(1, max(2, min(DEPTH, max(len(one.numbers) for one in rankings)) + 1))
    shares = [(float(place), float((firsts <= place).mean())) for place in places]
    told = ", ".join(f"{(firsts <= place).mean():.0%} in the first {place}" for place in (1, 5, 10) if place in places)
    alt = f"Queries that meet a relevant passage: {told}."
    chart = charts.curve(shares, "queries with a relevant passage so far", alt, percent=True, smooth=False)
    return page.fragment("How far one must read", "depth", chart=chart, told=told, queries=len(rankings))


def lost(data: ReportData, rankings_of: RankingsOf) -> Fragment | None:
    """The queries whose first relevant passage stands lowest: where the model is blind, or a judgement is missing."""
    rankings = rankings_of(data) if data.outputs is not None and data.texts else []
    queries = [place for place, target in enumerate(data.targets) if target["known"]]
    passages = {
        target["numbers"][0]: text
        for target, text in zip(data.targets, data.texts, strict=True)
        if not target["known"] and target["numbers"]
    }
    late = [one for one in range(len(rankings)) if rankings[one].first != 1]
    late.sort(key=lambda one: -(rankings[one].first or len(rankings[one].numbers) + 1))
    shown = [_shown(data.texts[queries[one]], rankings[one], passages) for one in late[:SHOWN]]
    return page.fragment("Found last", "lost", rows=shown, passages=bool(passages)) if shown else None


def _shown(query: str, ranked: Ranked, passages: dict[int, str]) -> dict[str, Any]:
    wanted = max(ranked.grades, key=lambda number: ranked.grades[number])
    return {
        "query": charts.clipped(query, CLIPPED),
        "place": ranked.first,
        "looked": len(ranked.numbers),
        "relevant": len(ranked.grades),
        "first": charts.clipped(passages.get(int(ranked.numbers[0]), ""), CLIPPED),
        "wanted": charts.clipped(passages.get(wanted, ""), CLIPPED),
    }
