"""The entities in a text: learned by a tiny model, and answered as transformers answers."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub import TokenClassificationOutputElement
from transformers import pipeline

import headrace
from cluster.errors import UserError
from serving.predictor import Predictor
from tests.training.tasks.marked import CPU, FILLERS, sentence, spans_recipe, spans_table
from training import samples
from training.bundle import Bundle, write_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.evaluation.baselines import measure
from training.evaluation.evaluate import evaluate
from training.evaluation.report import ReportData, write_report
from training.inputs.entities import Entity
from training.loop import Trainee, make_trainee, predict, train
from training.samples import token_classification as sample
from training.tasks.token_classification import TokenClassification


@pytest.fixture(scope="module")
def learned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoded, Trainee, Bundle]:
    """A tiny model that knows things and places, short texts and long ones: trained once for all tests."""
    folder = tmp_path_factory.mktemp("entities")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(folder / "home"))
        rows = [json.dumps(row) for row in spans_table(260).to_pylist()]
        (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
        recipe = spans_recipe(folder, tiny_base)
        fused = fuse(recipe)
        encoded = encode(recipe, fused)
        trainee = make_trainee(encoded, recipe.train, "full", CPU)
        list(train(trainee, encoded))
        (folder / "bundle").mkdir()
        bundle = write_bundle(
            folder / "bundle",
            model=trainee.model,
            task=encoded.task,
            name="m",
            recipe={},
            metrics={},
            baselines={},
            data={},
        )
    return encoded, trainee, bundle


def test_it_learns_and_answers_as_the_inference_api_does(learned: tuple[Encoded, Trainee, Bundle]) -> None:
    encoded, trainee, bundle = learned
    rows = encoded.split("test")
    measured = encoded.task.metrics(predict(trainee, rows), rows.targets)
    assert measured["f1"] > 0.95
    assert measured.keys() == encoded.task.metrics_known.keys()
    text = "please help i lost Late  parcel today"
    (answer,) = Predictor(bundle).predict([text])
    (entity,) = TokenClassificationOutputElement.parse_obj_as_list(answer)
    assert (entity.entity_group, entity.word, entity.start, entity.end) == ("thing", "Late  parcel", 19, 31)
    assert 0.5 < entity.score <= 1


def test_transformers_gives_the_same_answer(learned: tuple[Encoded, Trainee, Bundle]) -> None:
    _, _, bundle = learned
    texts = [sentence(random.Random(seed), 12)[0] for seed in range(12)] + [
        "I lost my HOTEL room, and a big bill!",
        "lost apps",
    ]
    theirs = pipeline("token-classification", str(bundle.folder), aggregation_strategy="first")
    assert bundle.task().aggregation == "first"  # type: ignore[attr-defined]
    same_answers(Predictor(bundle).predict(texts), theirs(texts), texts)


def same_answers(ours: Sequence[Any], theirs: Sequence[Any], texts: Sequence[str]) -> None:
    """All but ``word``, which there is put together from tokens and here is what stands in the text."""
    assert sum(map(len, ours)) > 0
    for own, other, text in zip(ours, theirs, texts, strict=True):
        places = [(one["entity_group"], one["start"], one["end"]) for one in own]
        assert places == [(one["entity_group"], one["start"], one["end"]) for one in other], text
        assert [one["score"] for one in own] == pytest.approx([float(one["score"]) for one in other], rel=1e-4)
        assert [one["word"] for one in own] == [text[start:end] for _, start, end in places]
        assert [words(one["word"]) for one in own] == [words(one["word"]) for one in other]


def words(text: str) -> str:
    return "".join(text.lower().split())


def test_an_entity_is_found_wherever_it_stands_in_a_long_text(learned: tuple[Encoded, Trainee, Bundle]) -> None:
    _, _, bundle = learned
    predictor = Predictor(bundle)
    chance = random.Random(9)
    picked = chance.choices(FILLERS, k=150)
    texts, wanted = [], []
    for at in range(0, 151, 3):
        before = " ".join([*picked[:at], "lost", ""])
        texts.append(before + "broken card" + "".join(f" {word}" for word in picked[at:]))
        wanted.append((len(before), len(before) + len("broken card")))
    answers = predictor.predict(texts)
    found = [[(one["start"], one["end"]) for one in answer] for answer in answers]
    assert sum(place in one for place, one in zip(wanted, found, strict=True)) == len(texts)


def test_a_text_may_be_empty_and_a_list_of_tokens(learned: tuple[Encoded, Trainee, Bundle]) -> None:
    _, _, bundle = learned
    predictor = Predictor(bundle)
    assert predictor.predict(["", "   ", {"text": []}, {"text": None}]) == [[], [], [], []]
    (answer,) = predictor.predict([{"text": ["i", "lost", "money,", "help"]}])
    assert [(one["word"], one["start"], one["end"]) for one in answer] == [("money,", 7, 13)]
    (asked,) = predictor.predict(["i lost money, help"])
    assert [one["word"] for one in asked] == ["money"]


def test_parameters_are_those_of_the_inference_api(learned: tuple[Encoded, Trainee, Bundle]) -> None:
    predictor = Predictor(learned[2])
    texts = ["help i lost money today"]
    everything = predictor.predict(texts)
    assert predictor.predict(texts, {"aggregation_strategy": "first", "ignore_labels": ["O", "place"]}) == everything
    assert predictor.predict(texts, {"ignore_labels": ["thing"]}) == [[]]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"aggregation_strategy": "max"}, r"parameters\.aggregation_strategy: this model answers by 'first' alone"),
        ({"ignore_labels": "thing"}, r"parameters\.ignore_labels: a list"),
        ({"top_k": 2}, r"parameters\.top_k: unknown; this task takes aggregation_strategy, ignore_labels"),
    ]
    for parameters, message in wrong:
        with pytest.raises(UserError, match=message):
            predictor.predict(texts, parameters)


def test_a_model_is_measured_on_other_rows(learned: tuple[Encoded, Trainee, Bundle]) -> None:
    _, _, bundle = learned
    table = pa.table(
        {
            "text": ["help i lost money today", "we want it today"],
            "entities": [json.dumps([{"start": 12, "end": 17, "label": "thing"}]), "[]"],
        }
    )
    result = evaluate(bundle, table)
    assert result["metrics"]["data/f1"] == 1.0
    with pytest.raises(UserError, match="row 1: 'animal' is no label that the model knows"):
        evaluate(bundle, pa.table({"text": ["a dog"], "entities": ['[{"start": 2, "end": 5, "label": "animal"}]']}))
    with pytest.raises(UserError, match="row 1: the span 2-50 is not within the text's 5 characters"):
        evaluate(bundle, pa.table({"text": ["a dog"], "entities": ['[{"start": 2, "end": 50, "label": "thing"}]']}))


def test_the_report_shows_types_and_mistakes(learned: tuple[Encoded, Trainee, Bundle], tmp_path: Path) -> None:
    task = learned[0].task
    texts = ["i lost <b>money</b> today", "the hotel room is good", "a big bill", "fine"]
    true = [[Entity(10, 15, "thing")], [Entity(4, 14, "place")], [Entity(2, 10, "thing")], []]
    said = [[Entity(10, 15, "place")], [], [Entity(6, 10, "thing")], [Entity(0, 4, "place")]]
    data = ReportData(
        name="things",
        task=task.name,
        metrics={"test/f1": 0.0, "test/precision": 0.0, "test/recall": 0.0, "test/macro_f1": 0.0},
        baselines={"dictionary": {"test/f1": 0.5}},
        headline="f1",
        titles={name: one.title for name, one in task.baselines.items()},
        labels=task.labels,
        outputs=[lines(task.labels, one, 0.75) for one in said],
        targets=[lines(task.labels, one)[:, :3].ravel() for one in true],
        texts=texts,
    )
    write_report(tmp_path / "report.html", data, task.report_sections)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for wanted in ("Type by type", "What it gets wrong", "right place, wrong type", "not found", "nothing is there"):
        assert wanted in page
    assert "<mark>money</mark>" in page
    assert "a <mark>big bill</mark>" in page
    assert "&lt;b&gt;" in page
    assert "Dictionary of seen entities" in page


def lines(labels: Sequence[str], entities: Sequence[Entity], score: float = 1.0) -> np.ndarray[Any, Any]:
    return np.array([[one.start, one.end, labels.index(one.type), score] for one in entities]).reshape(-1, 4)


# --- from data to a model, in other scripts and forms ---------------------------------------------------------------


def test_spans_follow_a_text_that_cleaning_changes(tmp_path: Path, home: Path, tiny_base: Path) -> None:
    rows = []
    for number in range(40):
        before = f"e\u0301 e\u0301 number {number} lost "  # two characters each, one after cleaning
        rows.append(
            {
                "text": before + "money today",
                "entities": [{"start": len(before), "end": len(before) + 5, "label": "thing"}],
            }
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    table = fuse(spans_recipe(tmp_path, tiny_base)).split("train").to_pylist()
    for row in table:
        (span,) = json.loads(row["entities"])
        assert row["text"][span["start"] : span["end"]] == "money"
        assert "é" in row["text"]


def test_a_wide_quotation_mark_in_a_list_of_tokens_ends_no_string(tmp_path: Path, home: Path, tiny_base: Path) -> None:
    rows = [{"text": ["＂", f"ｌｏｓｔ {number}"], "entities": ["O", "B-x"]} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    recipe = spans_recipe(tmp_path, tiny_base)
    recipe = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"clean": recipe.data.clean.model_copy(update={"unicode": "NFKC"})})
        }
    )
    first = fuse(recipe).split("train").to_pylist()[0]
    assert json.loads(first["text"])[0] == '"'
    assert json.loads(first["text"])[1].startswith("lost ")


def test_a_base_without_words_tags_tokens(tmp_path: Path, home: Path) -> None:
    """Byte-level tokens, as for unspaced scripts: an entity may begin in the midst of a run of letters."""
    chance = random.Random(5)
    rows = []
    for _ in range(240):
        before, after = ("".join(chance.choices("我想要去的是在了有和", k=chance.randrange(2, 7))) for _ in range(2))
        name = chance.choice(["北京", "上海市", "广州"])
        rows.append(
            {
                "text": before + name + after,
                "entities": [{"start": len(before), "end": len(before + name), "label": "地点"}],
            }
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = spans_recipe(tmp_path, new_base())
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    assert isinstance(encoded.task, TokenClassification)
    assert encoded.task.aggregation == "simple"
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    list(train(trainee, encoded))
    test = encoded.split("test")
    assert encoded.task.metrics(predict(trainee, test), test.targets)["f1"] > 0.8
    baselines = measure(encoded.task, encoded.base, {name: fused.split(name) for name in ("train", "test")})
    assert baselines["dictionary"]["test/f1"] > 0.9
    (tmp_path / "bundle").mkdir()
    bundle = write_bundle(
        tmp_path / "bundle",
        model=trainee.model,
        task=encoded.task,
        name="m",
        recipe={},
        metrics={},
        baselines={},
        data={},
    )
    rows = fused.split("test").to_pylist()
    answers = Predictor(bundle).predict([row["text"] for row in rows])
    told = [[(one["start"], one["end"]) for one in answer] for answer in answers]
    wanted = [[(one["start"], one["end"]) for one in json.loads(row["entities"])] for row in rows]
    assert sum(one == other for one, other in zip(told, wanted, strict=True)) > 0.6 * len(rows)


def new_base() -> dict[str, Any]:
    """A recipe's words for a small base that is made from nothing."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    return {"new": {"type": "bert", **sizes, "max_position_embeddings": 64}, "tokenizer": "train", "vocabulary": 300}


# --- the sample, the replica ----------------------------------------------------------------------------------------


def test_the_sample_is_a_valid_recipe_over_marked_texts(tmp_path: Path) -> None:
    samples.write_sample(tmp_path / "new", "token-classification")
    recipe, _ = headrace.load_recipe(tmp_path / "new" / "recipe.yaml")
    assert recipe.model.task == "token-classification"
    rows = [
        json.loads(line)
        for line in (tmp_path / "new" / "data" / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    marked = [(row["text"][one["start"] : one["end"]], one["label"]) for row in rows for one in row["entities"]]
    assert len(rows) == sample.MESSAGES
    assert {label for _, label in marked} == {"person", "product", "place", "order"}
    assert all(text.strip() == text and text for text, _ in marked)
    places = {place.lower() for place in sample.PLACES.split(",")}
    assert {text.lower() for text, label in marked if label == "place"} == places


def test_a_replica_loads_neither_the_baselines_nor_the_charts() -> None:
    script = "import sys, training.tasks.token_classification; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"sklearn", "matplotlib", "training.evaluation.entities", "training.evaluation.sections"} & set(
        done.stdout.split()
    ) == set()
