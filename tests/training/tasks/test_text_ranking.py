"""Cross-encoders: a query and a passage read together, negatives beside each pair, a first stage ranked anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import pipeline

from cluster.errors import UserError
from tests.training.tasks.searching import asked, search_recipe, write_search
from training.bundle import open_bundle, write_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.evaluation.baselines import measure
from training.evaluation.rankers import bm25
from training.evaluation.report import ReportData, write_report
from training.loop import Trainee, make_trainee, predict, train, validate
from training.models.adapt import read_adapt
from training.recipe import Model, Recipe
from training.tasks.text_ranking import TextRanking

CPU = torch.device("cpu")
MakeSearch = Callable[..., Recipe]
Rows = dict[str, list[Any]]


@pytest.fixture
def make_search(tmp_path: Path, home: Path, tiny_base: Path) -> MakeSearch:
    write_search(tmp_path)
    return lambda **sections: search_recipe(tmp_path, tiny_base, "text-ranking", **sections)


def of_pairs(base: Path, rows: Rows, target: str | None = None, **options: Any) -> TextRanking:
    inputs = {"query": ["q"], "passage": ["p"]}
    model = Model(task="text-ranking", base="", inputs=inputs, target=target, options=options)
    return TextRanking.learn(model, base, {"train": pa.table(rows)})


def test_relevant_passages_get_negatives_and_judged_ones_none(tiny_base: Path) -> None:
    rows: Rows = {"q": ["card", "card", "card"], "p": ["card lost", "card late", "card slow"], "g": [4, 0, 2]}
    task = of_pairs(tiny_base, rows, target="g", negatives=2)
    told = asked(task, train=rows, corpus={"p": ["card today", "card", "money"]})["train"]
    assert [one["relevance"][0] for one in told] == [1.0, 0.0, 0.5]
    assert [len(one["texts"]) for one in told] == [3, 1, 3]
    for one in told:
        assert one["known"] == [1, 3]
        assert not set(one["numbers"][1:]) & {1, 3}
    with pytest.raises(UserError, match=r"model.target: no training row has a 'g' above 0; nothing is relevant"):
        of_pairs(tiny_base, {**rows, "g": [0, 0, 0]}, target="g")


def test_held_out_queries_get_what_the_first_stage_finds(tiny_base: Path) -> None:
    rows: Rows = {"q": ["card lost", "order"], "p": ["lost card", "late order"]}
    corpus = {"p": ["card card", "never asked", "lost"]}
    task = of_pairs(tiny_base, rows, depth=3)
    told = asked(task, train=rows, test={"q": ["lost card", "order"], "p": ["lost", "money"]}, corpus=corpus)
    passages = ["lost card", "late order", "lost", "money", "card card", "never asked"]  # by number
    first, second = told["test"]
    assert first["texts"] == [passages[place] for place in bm25(["lost card"], passages, 3)[0]]
    assert (first["known"], first["grades"]) == ([3], [1.0])
    assert second["known"] == [2, 4], "what the first stage misses counts all the same"
    assert "money" not in second["texts"]


def test_the_loss_and_the_metrics_by_hand(tiny_base: Path) -> None:
    task = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]})
    logits = torch.tensor([[2.0, -1.0, 0.5], [1.0, 3.0, 0.0]])
    batch = {
        "relevance": torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]),
        "there": torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
    }
    chance = torch.sigmoid(logits)
    first = -(chance[0, 0].log() + (1 - chance[0, 1]).log() + (1 - chance[0, 2]).log()) / 3
    second = -(0.5 * chance[1, 0].log() + 0.5 * (1 - chance[1, 0]).log())
    torch.testing.assert_close(task.loss(logits, batch), torch.stack([first, second]))

    targets = [{"numbers": [4, 7, 9], "relevance": [0.0] * 3, "known": [7, 8], "grades": [1.0, 1.0]}]
    measured = task.metrics([np.array([0.1, 2.0, -1.0])], targets)
    assert measured["mrr_at_10"] == 1.0
    assert measured["recall_at_100"] == 0.5
    assert measured["ndcg_at_10"] == pytest.approx(1 / (1 + 1 / np.log2(3)))
    said = 1 / (1 + np.exp(-np.array([0.1, 2.0, -1.0])))
    assert measured["loss"] == pytest.approx(-np.mean([np.log(1 - said[0]), np.log(said[1]), np.log(1 - said[2])]))
    tied = task.rank([np.zeros(3)], targets)[0]
    assert tied.numbers.tolist() == [4, 7, 9], "where the model is of no opinion the first stage decides"


def test_it_learns_to_rank_and_transformers_gives_the_same_scores(make_search: MakeSearch, tmp_path: Path) -> None:
    recipe = make_search(model={"options": {"negatives": 3, "mined_with": "random", "depth": 20}}, train={"epochs": 12})
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    trainee = make_trainee(encoded, recipe.train, read_adapt("full"), CPU)
    before, first_before = validate(trainee, encoded.split("test")), put_first(trainee, encoded)
    list(train(trainee, encoded))
    after = validate(trainee, encoded.split("test"))
    assert after.keys() == encoded.task.metrics_known.keys()
    assert after["loss"] < before["loss"]
    assert put_first(trainee, encoded) > first_before + 0.2

    tables = encoded.task.questions(fused.tables())
    baselines = measure(encoded.task, encoded.base, tables)
    assert set(baselines) == {"bm25", "base"}
    assert "test/loss" not in baselines["bm25"] | baselines["base"]
    recalls = {after["recall_at_100"], *(one["test/recall_at_100"] for one in baselines.values())}
    assert len(recalls) == 1, "what the first stage does not find, nobody ranks"

    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, model=trainee.model, task=trainee.task, name="m", recipe={}, metrics={}, baselines={}, data={})
    bundle = open_bundle(folder)
    texts = ["card lost what to do when your card is lost", "money", "parcel late"]
    (ranked,) = answer(bundle.task(), bundle.model(), [{"query": "my card is lost", "texts": texts}])
    assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)
    scores = {one["index"]: one["score"] for one in ranked}
    (pair,) = answer(bundle.task(), bundle.model(), [{"question": "my card is lost", "title": "money", "body": None}])
    assert pair[0]["index"] == 0
    theirs = pipeline("text-classification", str(folder))(
        [{"text": "my card is lost", "text_pair": text} for text in texts]
    )
    assert [one["label"] for one in theirs] == ["relevance"] * 3
    assert [scores[place] for place in range(3)] == pytest.approx([one["score"] for one in theirs], rel=1e-4)
    library = pytest.importorskip("sentence_transformers")
    cross = library.CrossEncoder(str(folder), device="cpu").predict([("my card is lost", text) for text in texts])
    assert [scores[place] for place in range(3)] == pytest.approx(cross.tolist(), rel=1e-4)

    page = tmp_path / "report.html"
    rows = tables["test"].to_pylist()
    data = ReportData(
        name="help-ranking",
        task=encoded.task.name,
        metrics={f"test/{name}": value for name, value in after.items()},
        baselines=baselines,
        headline=encoded.task.headline,
        titles={name: one.title for name, one in encoded.task.baselines.items()},
        outputs=predict(trainee, encoded.split("test"), final=True),
        targets=encoded.split("test").targets,
        texts=[encoded.task.text(row) for row in rows],
    )
    write_report(page, data, encoded.task.report_sections)
    assert "BM25, the first stage" in page.read_text(encoding="utf-8")


def put_first(trainee: Trainee, encoded: Encoded) -> float:
    """The share of the training rows whose relevant passage is placed before all negatives."""
    return float(np.mean([one[0] > max(one[1:]) for one in predict(trainee, encoded.split("train"))]))


def answer(task: Any, model: Any, inputs: list[Any], **parameters: Any) -> list[Any]:
    examples = task.encode(task.rows(inputs))
    with torch.inference_mode():
        outputs = task.keep(task.infer(model, task.collate(examples)), examples)
    return list(task.decode(outputs, examples, parameters))


def test_what_may_be_asked(tiny_base: Path) -> None:
    task = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]})
    assert task.rows([{"query": "a", "texts": ["b", "c"]}, {"q": "a", "p": None}]) == [
        {"query": "a", "texts": ["b", "c"]},
        {"query": "a", "texts": [""]},
    ]
    for wrong, message in [
        ("a", r"inputs\[0\]: an object with query and texts is needed, not str"),
        ({"texts": ["b"]}, r"inputs\[0\].query: a string is needed, not NoneType"),
        ({"query": "a", "texts": []}, r"inputs\[0\].texts: a list of strings is needed"),
        ({"query": "a", "texts": [3]}, r"inputs\[0\].texts: a list of strings is needed"),
        ({"q": "a"}, r"inputs\[0\].p: missing"),
    ]:
        with pytest.raises(UserError, match=message):
            task.rows([wrong])
    logits = [np.array([-1.0, 2.0, 0.5])]
    assert [one["index"] for one in task.decode(logits, [], {})[0]] == [1, 2, 0]
    assert task.decode(logits, [], {"top_k": 1, "raw_scores": True}) == [[{"index": 1, "score": 2.0}]]
    wrong_ones: list[tuple[dict[str, Any], str]] = [
        ({"normalize": True}, r"parameters.normalize: unknown; this task takes raw_scores and top_k"),
        ({"top_k": 0}, r"parameters.top_k: a whole number from 1 up is needed"),
        ({"raw_scores": 1}, r"parameters.raw_scores: true or false is needed"),
    ]
    for parameters, message in wrong_ones:
        with pytest.raises(UserError, match=message):
            task.decode(logits, [], parameters)
