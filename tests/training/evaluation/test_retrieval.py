"""Rankings and their measures: hand computations, and a reference written from the definitions alone."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from training.evaluation import rankers
from training.evaluation.retrieval import Ranked, best, contrast, dcg, measure, nearest


def test_a_ranking_computed_by_hand() -> None:
    """Of three relevant passages the second and the fourth place hold one; the third is not found."""
    ranked = Ranked(np.array([7, 1, 8, 2, 9]), {1: 3.0, 2: 1.0, 5: 2.0})
    assert ranked.gains.tolist() == [0, 3, 0, 1, 0]
    assert ranked.first == 2
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    measured = measure([ranked])
    assert measured["ndcg_at_10"] == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert measured["mrr_at_10"] == 0.5
    assert [measured[f"recall_at_{k}"] for k in (1, 5, 10, 100)] == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3])


def test_what_is_found_too_late_counts_for_nothing() -> None:
    ranked = Ranked(np.arange(1, 51), {11: 1.0})
    assert measure([ranked]) == {
        "ndcg_at_10": 0.0,
        "mrr_at_10": 0.0,
        "recall_at_1": 0.0,
        "recall_at_5": 0.0,
        "recall_at_10": 0.0,
        "recall_at_100": 1.0,
    }
    assert Ranked(np.arange(1, 5), {11: 1.0}).first is None
    assert measure([]) == {}


def reference(numbers: Sequence[int], grades: dict[int, float]) -> dict[str, float]:
    """The definitions, term by term."""
    found = 0.0
    for place, number in enumerate(numbers[:10], 1):
        found += grades.get(number, 0.0) / math.log2(place + 1)
    possible = 0.0
    for place, grade in enumerate(sorted(grades.values(), reverse=True)[:10], 1):
        possible += grade / math.log2(place + 1)
    reciprocal = 0.0
    for place, number in enumerate(numbers[:10], 1):
        if number in grades:
            reciprocal = 1 / place
            break
    values = {"ndcg_at_10": found / possible, "mrr_at_10": reciprocal}
    for k in (1, 5, 10, 100):
        values[f"recall_at_{k}"] = len(set(numbers[:k]) & set(grades)) / len(grades)
    return values


def test_the_measures_are_those_of_the_reference() -> None:
    chance = np.random.default_rng(5)
    rankings = []
    for _ in range(40):
        relevant = chance.choice(300, chance.integers(1, 25), replace=False)
        grades = {int(number): float(chance.integers(1, 5)) for number in relevant}
        rankings.append(Ranked(chance.permutation(300)[:100], grades))
    expected = [reference(one.numbers.tolist(), dict(one.grades)) for one in rankings]
    measured = measure(rankings)
    for name, value in measured.items():
        assert value == pytest.approx(np.mean([one[name] for one in expected])), name


def test_the_measures_are_those_of_sentence_transformers() -> None:
    """Its evaluator knows no grades: every relevant passage is as good as another."""
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    chance = np.random.default_rng(6)
    queries, passages = (chance.normal(size=(size, 8)).astype(np.float32) for size in (20, 150))
    relevant = {query: set(chance.choice(150, 6, replace=False).tolist()) for query in range(20)}
    rankings = [Ranked(places, dict.fromkeys(relevant[query], 1.0)) for query, places, _ in nearest(queries, passages)]
    evaluator = evaluation.InformationRetrievalEvaluator(
        {str(query): "" for query in range(20)},
        {str(place): "" for place in range(150)},
        {str(query): {str(one) for one in known} for query, known in relevant.items()},
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 5, 10, 100],
        map_at_k=[10],
    )
    results: list[list[dict[str, Any]]] = [
        [{"corpus_id": str(place), "score": float(scores[place])} for place in range(150)]
        for _, _, scores in nearest(queries, passages)
    ]
    for one in results:
        one.sort(key=lambda found: -found["score"])
    theirs = evaluator.compute_metrics(results)
    measured = measure(rankings)
    assert measured["ndcg_at_10"] == pytest.approx(theirs["ndcg@k"][10])
    assert measured["mrr_at_10"] == pytest.approx(theirs["mrr@k"][10])
    for k in (1, 5, 10, 100):
        assert measured[f"recall_at_{k}"] == pytest.approx(theirs["recall@k"][k])


def test_the_nearest_are_found_in_order_and_equal_ones_in_their_own() -> None:
    assert best(np.array([1.0, 3.0, 2.0, 3.0, 0.0]), 3).tolist() == [1, 3, 2]
    assert best(np.zeros(200), 4).tolist() == [0, 1, 2, 3]
    assert best(np.array([1.0, 2.0]), 5).tolist() == [1, 0]
    chance = np.random.default_rng(7)
    queries, passages = chance.normal(size=(9, 5)), chance.normal(size=(400, 5))
    for query, places, scores in nearest(queries, passages, 20):
        expected = sorted(range(400), key=lambda place: -float(queries[query] @ passages[place]))[:20]
        assert places.tolist() == expected
        assert scores.shape == (400,)


def test_the_loss_of_a_ranking() -> None:
    scores = np.array([2.0, -1.0, 0.5, 3.0])
    alone = -math.log(math.exp(2) / (math.exp(2) + math.exp(-1) + math.exp(0.5)))
    other = -math.log(math.exp(3) / (math.exp(3) + math.exp(-1) + math.exp(0.5)))
    assert contrast(scores, [0, 3]) == pytest.approx((alone + other) / 2)
    assert contrast(20 * scores, [0, 1, 2, 3]) == pytest.approx(0.0)
    assert dcg(np.array([1.0, 1.0])) == pytest.approx(1 + 1 / math.log2(3))


def test_words_and_pairs_of_characters() -> None:
    assert rankers.terms("The card's PIN_code, 42%") == ["the", "card", "s", "pin", "code", "42"]
    assert rankers.terms("我的订单iPhone15在哪") == ["我的", "的订", "订单", "iphone15", "在哪"]
    assert rankers.terms("好") == ["好"]


def test_bm25_is_the_formula() -> None:
    passages = ["card lost card", "order late", "the card is late today", "money"]
    query = ["lost card card"]
    counted = [passage.split() for passage in passages]
    mean = sum(map(len, counted)) / len(counted)

    def score(words: list[str]) -> float:
        total = 0.0
        for term in query[0].split():  # a term asked twice counts twice
            having = sum(term in one for one in counted)
            idf = math.log(1 + (len(counted) - having + 0.5) / (having + 0.5))
            repeated = words.count(term)
            total += idf * repeated * 2.2 / (repeated + 1.2 * (0.25 + 0.75 * len(words) / mean))
        return total

    expected = sorted(range(4), key=lambda place: -score(counted[place]))
    assert rankers.bm25(query, passages, 4)[0].tolist() == expected
    assert rankers.bm25(["unknown"], ["...", "!"], 4)[0].tolist() == [0, 1]
    assert rankers.tfidf(["late today"], passages, 1)[0].tolist() == [2]


def test_negatives_are_none_that_are_known_to_be_relevant() -> None:
    passages = ["card lost", "lost card today", "my lost card", "order late", "money"]
    mined = rankers.others(rankers.bm25, ["lost card", "late order"], passages, [[1, 3], [4]], 2)
    assert mined[0][0] == 2
    assert not {1, 3} & set(mined[0])
    assert 4 not in mined[1]
    everything = rankers.others(rankers.bm25, ["card"], passages, [[1, 2, 3]], 9)
    assert sorted(everything[0]) == [4, 5]
