"""Bi-encoders: pairs with their negatives, the loss of a whole batch, retrieval over a corpus, vectors as answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import pipeline

from cluster.errors import UserError
from tests.training.tasks.searching import TOPICS, TROUBLES, asked, search_recipe, write_search
from tests.training.together import together
from training.bundle import Bundle, open_bundle, write_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode, open_encoded
from training.evaluation.baselines import measure
from training.evaluation.report import ReportData, write_report
from training.loop import Trainee, make_trainee, predict, train, validate
from training.models.adapt import read_adapt
from training.models.base import refuse_code
from training.models.pooling import describe, pool, pooling_of
from training.recipe import Model, Recipe, Train
from training.tasks.sentence_similarity import Options, SentenceSimilarity
from training.tasks.task import Task

CPU = torch.device("cpu")
MakeSearch = Callable[..., Recipe]
Rows = dict[str, list[Any]]


@pytest.fixture
def make_search(tmp_path: Path, home: Path, tiny_base: Path) -> MakeSearch:
    write_search(tmp_path)
    return lambda **sections: search_recipe(tmp_path, tiny_base, "sentence-similarity", **sections)


def of_pairs(base: Path, rows: Rows, target: str | None = None, **options: Any) -> SentenceSimilarity:
    inputs = {"query": ["q"], "passage": ["p"]} | ({"negative": ["n"]} if "n" in rows else {})
    model = Model(task="sentence-similarity", base="", inputs=inputs, target=target, options=options)
    return SentenceSimilarity.learn(model, base, {"train": pa.table(rows)})


# --- rows to questions ------------------------------------------------------------------------------------------------


def test_pairs_know_all_that_is_relevant_to_their_query(tiny_base: Path) -> None:
    rows: Rows = {"q": ["card", "card", "order", "card"], "p": ["lost", "late", "late", "lost"]}
    task = of_pairs(tiny_base, rows)
    pairs = asked(task, train=rows)["train"]
    assert [(one["source_sentence"], one["sentences"]) for one in pairs] == [
        ("card", ["lost"]),
        ("card", ["late"]),
        ("order", ["late"]),
    ]
    assert [one["numbers"] for one in pairs] == [[1], [2], [2]]
    assert [one["known"] for one in pairs] == [[1, 2], [1, 2], [2]]


def test_a_negative_that_is_relevant_elsewhere_is_none(tiny_base: Path) -> None:
    rows: Rows = {"q": ["card", "card"], "p": ["lost", "late"], "n": ["late", "slow"]}
    pairs = asked(of_pairs(tiny_base, rows), train=rows)["train"]
    assert [one["sentences"] for one in pairs] == [["lost"], ["late", "slow"]]


def test_grades_say_what_is_relevant(tiny_base: Path) -> None:
    rows: Rows = {"q": ["card", "card", "order"], "p": ["lost", "late", "late"], "g": [3, 0, 1]}
    task = of_pairs(tiny_base, rows, target="g")
    told = asked(task, train=rows, test=rows)
    assert [one["sentences"] for one in told["train"]] == [["lost"], ["late"]]
    queries = [one for one in told["test"] if not one["numbers"]]
    assert [(one["known"], one["grades"]) for one in queries] == [([1], [3.0]), ([2], [1.0])]
    with pytest.raises(UserError, match=r"model.target: 'g' is no column of numbers"):
        asked(task, train={**rows, "g": ["a", "b", "c"]})


def test_hard_negatives_come_from_the_corpus(tiny_base: Path) -> None:
    rows: Rows = {"q": ["my card is lost"], "p": ["what to do when a card is lost"]}
    corpus = {"p": ["a card that is late", "lost card", "money", rows["p"][0]]}
    for way in ("bm25", "tfidf", "base", "random"):
        task = of_pairs(tiny_base, rows, hard_negatives=2, mined_with=way)
        (pair,) = asked(task, train=rows, corpus=corpus)["train"]
        assert pair["sentences"][0] == rows["p"][0]
        assert len(set(pair["sentences"])) == 3
    task = of_pairs(tiny_base, rows, hard_negatives=1)
    assert asked(task, train=rows, corpus=corpus)["train"][0]["sentences"][1] == "lost card"


def test_held_out_queries_search_the_whole_corpus(tiny_base: Path) -> None:
    train_rows = {"q": ["card", "order"], "p": ["lost", "late"]}
    test_rows = {"q": ["money", "money"], "p": ["slow", "late"]}
    task = of_pairs(tiny_base, train_rows, validation_passages=1)
    none: dict[str, list[Any]] = {"q": [], "p": []}
    told = asked(
        task, train=train_rows, validation=test_rows, test=test_rows, corpus={"p": ["never asked", " ", "late"]}
    )
    texts = [one["source_sentence"] for one in told["test"]]
    assert texts[0] == "money"
    assert sorted(texts[1:]) == ["late", "lost", "never asked", "slow"]
    by_number = {one["numbers"][0]: one["source_sentence"] for one in told["test"][1:]}
    assert {by_number[number] for number in told["test"][0]["known"]} == {"slow", "late"}
    assert len(told["validation"]) in (3, 4), "the two that are relevant, and one that may be one of them"
    assert asked(task, train=train_rows, test=none)["test"] == []


# --- the loss ---------------------------------------------------------------------------------------------------------


def batch_of(numbers: list[list[int]], known: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, known))
    return {
        "numbers": torch.tensor(numbers),
        "known": torch.tensor([[*one, *[0] * (width - len(one))] for one in known]),
    }


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(5)), dim=-1)


def test_the_loss_is_that_of_sentence_transformers(tiny_base: Path) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    vectors = unit(6, 3, 8)
    batch = batch_of([[row + 1, row + 11] for row in range(6)], [[row + 1] for row in range(6)])
    task = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]})
    theirs = losses.MultipleNegativesRankingLoss(model=None, scale=20.0)
    expected = theirs.compute_loss_from_embeddings([vectors[:, column] for column in range(3)], None)
    assert task.loss(vectors, batch).mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_known_to_be_relevant_is_no_negative(tiny_base: Path) -> None:
    """Row 0 and 1 share a query, row 1 and 2 a passage; the loss written out pair by pair."""
    vectors = unit(4, 2, 8)
    vectors[1, 0], vectors[2, 1] = vectors[0, 0], vectors[1, 1]
    numbers, known = [1, 2, 2, 3], [[1, 2], [1, 2], [2], [3]]
    task = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]}, scale=5)
    scores = 5 * vectors[:, 0] @ vectors[:, 1].T
    for row, loss in enumerate(task.loss(vectors, batch_of([[one] for one in numbers], known)).tolist()):
        others = {numbers[column]: scores[row, column] for column in range(4) if numbers[column] not in known[row]}
        expected = torch.logsumexp(torch.stack([scores[row, row], *others.values()]), 0) - scores[row, row]
        assert loss == pytest.approx(expected.item(), abs=1e-5)

    both = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]}, scale=5, symmetric=True)
    backwards = []
    for row in range(4):
        others = {column: scores[column, row] for column in range(4) if numbers[row] not in known[column]}
        backwards.append(torch.logsumexp(torch.stack([scores[row, row], *others.values()]), 0) - scores[row, row])
    forwards = task.loss(vectors, batch_of([[one] for one in numbers], known))
    expected_both = (forwards + torch.stack(backwards)) / 2
    torch.testing.assert_close(both.loss(vectors, batch_of([[one] for one in numbers], known)), expected_both)


def test_a_missing_negative_is_nobodys(tiny_base: Path) -> None:
    vectors = unit(2, 3, 8)
    vectors[1, 2] = 0
    task = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]})
    losses = task.loss(vectors, batch_of([[1, 3], [2, 0]], [[1], [2]]))
    without = torch.stack([vectors[0, 1], vectors[0, 2], vectors[1, 1]])
    expected = torch.nn.functional.cross_entropy(20 * vectors[:, 0] @ without.T, torch.tensor([0, 2]), reduction="none")
    torch.testing.assert_close(losses, expected)


# --- learning ---------------------------------------------------------------------------------------------------------


def learn(recipe: Recipe) -> tuple[Encoded, Trainee]:
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, read_adapt("full"), CPU)
    list(train(trainee, encoded))
    return encoded, trainee


def kept(trainee: Trainee, folder: Path) -> Bundle:
    folder.mkdir()
    write_bundle(folder, model=trainee.model, task=trainee.task, name="m", recipe={}, metrics={}, baselines={}, data={})
    return open_bundle(folder)


def test_it_learns_to_find_and_its_bundle_embeds_as_sentence_transformers_does(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    recipe = make_search(model={"options": {"hard_negatives": 1}}, train={"epochs": 8})
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    untrained = make_trainee(encoded, recipe.train, read_adapt("full"), CPU)
    before = validate(untrained, encoded.split("test"))
    encoded, trainee = learn(recipe)
    after = validate(trainee, encoded.split("test"))
    assert after.keys() == encoded.task.metrics_known.keys()
    assert after["recall_at_10"] > before["recall_at_10"] + 0.2
    assert after["loss"] < before["loss"]

    tables = encoded.task.questions(fused.tables())
    baselines = measure(encoded.task, encoded.base, tables)
    assert set(baselines) == {"bm25", "tfidf", "base"}
    assert baselines["base"]["test/ndcg_at_10"] == pytest.approx(before["ndcg_at_10"])
    assert "test/loss" not in baselines["bm25"]
    assert baselines["bm25"]["test/ndcg_at_10"] > 0.5, "the articles repeat the words of the questions"

    bundle = kept(trainee, tmp_path / "bundle")
    task, model = bundle.task(), bundle.model()
    texts = ["my card is lost", "please help", "the parcel is late and i love the address of the hotel"]
    answers = answer(task, model, texts)
    assert np.linalg.norm(answers, axis=1) == pytest.approx([1, 1, 1], rel=1e-5)
    (scores,) = answer(task, model, [{"source_sentence": texts[0], "sentences": texts[1:]}])
    assert scores == pytest.approx([np.dot(answers[0], answers[1]), np.dot(answers[0], answers[2])], abs=1e-5)

    tokens = pipeline("feature-extraction", str(bundle.folder))(texts[2])
    mean = np.mean(tokens[0], axis=0)
    assert answers[2] == pytest.approx((mean / np.linalg.norm(mean)).tolist(), abs=1e-5)
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(bundle.folder), device="cpu").encode(texts)
    np.testing.assert_allclose(answers, theirs, atol=1e-5)

    outputs = predict(trainee, encoded.split("test"), final=True)
    rows = tables["test"].to_pylist()
    page = tmp_path / "report.html"
    data = ReportData(
        name="help-search",
        task=task.name,
        metrics={f"test/{name}": value for name, value in after.items()},
        baselines=baselines,
        headline=task.headline,
        outputs=outputs,
        targets=encoded.split("test").targets,
        texts=[task.text(row) for row in rows],
    )
    write_report(page, data, task.report_sections)
    html = page.read_text(encoding="utf-8")
    queries = sum(not row["numbers"] for row in rows)
    assert f"on {queries} test rows" in html
    assert "How far one must read" in html


def answer(task: Task, model: Any, inputs: list[Any]) -> list[Any]:
    examples = task.encode(task.rows(inputs))
    with torch.inference_mode():
        outputs = task.keep(task.infer(model, task.collate(examples)), examples)
    return task.decode(outputs, examples, {})


def test_two_workers_equal_one(make_search: MakeSearch, tmp_path: Path) -> None:
    """The loss of a pair needs the pairs of the other worker; without dropout the curves differ by rounding alone."""
    options = {"hard_negatives": 1, "symmetric": True}
    recipe = make_search(model={"options": options}, train={"epochs": 2, "batch_size": 7})
    encoded = encode(recipe, fuse(recipe))
    assert len(encoded.split("train")) % 7 % 2 == 1, "the last batch must not come out even for this to prove anything"
    for world in (1, 2):
        together(world, _one_worker, tmp_path, world, encoded.folder, encoded.base, recipe.train, tmp_path)
    one, two = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    torch.testing.assert_close(one["outputs"], two["outputs"], rtol=0, atol=1e-3)


def _one_worker(rank: int, world: int, folder: Path, base: Path, options: Train, out: Path) -> None:
    encoded = open_encoded(folder, base)
    trainee = make_trainee(encoded, options, read_adapt("full"), CPU)
    for module in trainee.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainee.model.set_attn_implementation("eager")
    losses = [moment.loss for moment in train(trainee, encoded)]
    outputs = predict(trainee, encoded.split("test"))
    if rank == 0:
        torch.save({"losses": losses, "outputs": torch.from_numpy(np.stack(outputs))}, out / f"{world}.pt")


# --- answers ----------------------------------------------------------------------------------------------------------


def test_what_may_be_asked(tiny_base: Path) -> None:
    task = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]})
    assert task.rows(["a", {"source_sentence": "a", "sentences": ["b", "c"]}, {"q": "a", "p": "b"}, {"p": "b"}]) == [
        {"source_sentence": "a"},
        {"source_sentence": "a", "sentences": ["b", "c"]},
        {"source_sentence": "a", "sentences": ["b"]},
        {"source_sentence": "b", "sentences": []},
    ]
    for wrong, message in [
        (3, r"inputs\[0\]: a string or an object is needed, not int"),
        ({"source_sentence": 3, "sentences": []}, r"inputs\[0\].source_sentence: a string is needed, not int"),
        ({"source_sentence": "a"}, r"inputs\[0\].sentences: a list of strings is needed"),
        ({"source_sentence": "a", "sentences": ["b", 3]}, r"inputs\[0\].sentences: a list of strings is needed"),
        ({"other": "a"}, r"inputs\[0\].q: missing"),
    ]:
        with pytest.raises(UserError, match=message):
            task.rows([wrong])
    with pytest.raises(UserError, match=r"parameters.top_k: unknown; this task takes normalize and truncate"):
        task.decode([], [], {"top_k": 3})
    with pytest.raises(UserError, match=r"parameters.normalize: only true is to be had"):
        task.decode([], [], {"normalize": False})
    assert task.decode([], [], {"normalize": True, "truncate": True}) == []


def test_many_sentences_are_read_in_parts(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one request, so that no length of it fills the memory; the answer is the same."""
    task = of_pairs(tiny_base, {"q": ["a"], "p": ["b"]})
    model = task.build(tiny_base).eval()
    sentences = [f"{topic} {trouble} " * (1 + place % 7) for place, topic in enumerate(TOPICS) for trouble in TROUBLES]
    asked_once = [{"source_sentence": "my card", "sentences": sentences}, "and one text alone"]
    (whole, alone) = answer(task, model, asked_once)
    monkeypatch.setattr("training.families.retrieval.BUDGET", 64)
    (parts, again) = answer(task, model, asked_once)
    assert whole == pytest.approx(parts, abs=1e-5)
    assert alone == pytest.approx(again, abs=1e-5)
    assert len(whole) == 64
    assert len(alone) == 32


def test_pooling(tmp_path: Path) -> None:
    hidden = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert pool(hidden, mask, "mean")[1].tolist() == hidden[1, :2].mean(0).tolist()
    assert pool(hidden, mask, "cls").tolist() == hidden[:, 0].tolist()
    assert pool(hidden, mask, "lasttoken").tolist() == [hidden[0, 2].tolist(), hidden[1, 1].tolist()]
    assert pool(-hidden, mask, "max")[1].tolist() == (-hidden[1, 0]).tolist()
    assert pooling_of(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    config = tmp_path / "1_Pooling" / "config.json"
    for content, expected in [
        ('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}', "cls"),
        ('{"pooling_mode": "lasttoken"}', "lasttoken"),
    ]:
        config.write_text(content)
        assert pooling_of(tmp_path) == expected
    config.write_text('{"pooling_mode": ["mean", "cls"]}')
    with pytest.raises(UserError, match=r"model.base: its 1_Pooling/config.json names no pooling that is known here"):
        pooling_of(tmp_path)


def test_a_bundle_names_no_module_but_sentence_transformers_own(tmp_path: Path) -> None:
    describe(tmp_path, "cls", 64)
    refuse_code(tmp_path)
    modules = tmp_path / "modules.json"
    modules.write_text(modules.read_text().replace("sentence_transformers.models.Pooling", "foreign.Pooling"))
    with pytest.raises(UserError, match=r"modules.json of the model names 'foreign.Pooling', which can run foreign"):
        refuse_code(tmp_path)


def test_the_options_are_checked() -> None:
    with pytest.raises(ValueError, match="hard_negatives"):
        Options(hard_negatives=-1)
