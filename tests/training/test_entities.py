"""Entities: what data writes, and scores against a reference written from the definition and against published ones."""

import os
import random
from pathlib import Path

import pytest
from seqeval import metrics as seqeval

from tests.training.conll import read_conll
from training.inputs import entities
from training.inputs.entities import Entity, MisfitError, chunks, moved, read_spans, read_tags, score

TAGS = ["O", "B-per", "I-per", "B-loc", "I-loc", "E-per", "S-loc", "E-loc", "S-per"]


def conlleval(tags: list[str]) -> set[Entity]:
    """The chunks of a sequence by the rules of the CoNLL shared task's own script: where one ends, where one starts."""
    found, start = set(), 0
    before, kind_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        ends = (
            before in ("E", "S")
            or (before in ("B", "I") and letter in ("B", "S", "O"))
            or (before != "O" and kind_before != kind)
        )
        starts = (
            letter in ("B", "S")
            or (before in ("E", "S", "O") and letter in ("E", "I"))
            or (letter != "O" and kind_before != kind)
        )
        if ends and before != "O":
            found.add(Entity(start, place, kind_before))
        if starts:
            start = place
        before, kind_before = letter, kind
    return found


def test_chunks_are_those_of_the_conll_script() -> None:
    chance = random.Random(3)
    for _ in range(3_000):
        tags = chance.choices(TAGS, k=chance.randrange(0, 9))
        assert set(chunks(tags)) == conlleval(tags), tags


def test_an_inside_that_continues_nothing_begins_an_entity() -> None:
    assert chunks(["I-per", "I-per", "O", "B-loc", "I-per"]) == [
        Entity(0, 2, "per"),
        Entity(3, 4, "loc"),
        Entity(4, 5, "per"),
    ]


def test_scores_are_those_of_seqeval() -> None:
    chance = random.Random(11)
    true = [chance.choices(TAGS[:5], k=chance.randrange(1, 15)) for _ in range(300)]
    said = [one if chance.random() < 0.5 else chance.choices(TAGS[:5], k=len(one)) for one in true]
    reference = {
        "f1": seqeval.f1_score(true, said),
        "precision": seqeval.precision_score(true, said),
        "recall": seqeval.recall_score(true, said),
        "macro_f1": seqeval.f1_score(true, said, average="macro"),
    }
    assert score([chunks(one) for one in said], [chunks(one) for one in true]) == pytest.approx(reference)


def test_scores_are_those_of_the_definition() -> None:
    chance = random.Random(5)
    rows = [[chance.choices(TAGS[:5], k=12) for _ in range(2)] for _ in range(200)]
    found, true = [chunks(one) for one, _ in rows], [chunks(one) for _, one in rows]
    said: set[tuple[object, ...]] = {(row, *one) for row, own in enumerate(found) for one in own}
    there: set[tuple[object, ...]] = {(row, *one) for row, own in enumerate(true) for one in own}

    def f1(own: set[tuple[object, ...]], wanted: set[tuple[object, ...]]) -> float:
        precision, recall = len(own & wanted) / len(own), len(own & wanted) / len(wanted)
        return 2 * precision * recall / (precision + recall)

    measured = score(found, true)
    assert measured["precision"] == pytest.approx(len(said & there) / len(said))
    assert measured["recall"] == pytest.approx(len(said & there) / len(there))
    assert measured["f1"] == pytest.approx(f1(said, there))
    each = [
        f1({one for one in said if one[3] == kind}, {one for one in there if one[3] == kind}) for kind in ("loc", "per")
    ]
    assert measured["macro_f1"] == pytest.approx(sum(each) / 2)
    assert measured.keys() == entities.METRICS.keys()


def test_nothing_found_and_nothing_there_count_as_zero() -> None:
    assert score([[], []], [[], []]) == dict.fromkeys(entities.METRICS, 0.0)
    assert score([[Entity(0, 1, "per")]], [[]])["f1"] == 0.0
    lines = entities.by_type([[Entity(0, 1, "per")]], [[]], ["loc", "per"])
    assert [(line["precision"], line["recall"], line["f1"]) for line in lines] == [(None, None, None), (0.0, None, 0.0)]


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ({"start": 0, "end": 99, "label": "x"}, "the span 0-99 is not within the text's 16 characters"),
        ({"start": -1, "end": 2, "label": "x"}, "not within"),
        ({"start": 3, "end": 3, "label": "x"}, "not within"),
        ({"start": 6, "end": 7, "label": "x"}, "white space alone"),
        ({"start": "0", "end": 2, "label": "x"}, "whole numbers"),
        ({"start": 0, "end": 2}, "a text as label"),
        ({"start": 0, "end": 6, "label": "x", "text": "Berlim"}, "not what stands there"),
        ("x", "a span is"),
    ],
)
def test_a_span_that_does_not_fit_is_told(span: object, reason: str) -> None:
    with pytest.raises(MisfitError, match=reason):
        read_spans([span], "Berlin is lovely")


def test_spans_in_all_their_forms() -> None:
    text = " Berlin or Bonn"
    assert read_spans([{"start": 0, "end": 8, "label": "place", "text": " Berlin "}, [11, 15, "place"]], text) == [
        Entity(1, 7, "place"),
        Entity(11, 15, "place"),
    ]
    assert read_spans([{"start": 1, "end": 7, "entity_group": "place", "score": 0.9, "word": "berlin"}], text) == [
        Entity(1, 7, "place")
    ]
    with pytest.raises(MisfitError, match="1-7 and 3-10 overlap"):
        read_spans([(1, 7, "place"), (3, 10, "place")], text)


def test_tags_in_all_their_forms() -> None:
    assert read_tags(["B-a-b", "L-a-b", "U-c", "O"]) == ["B-a-b", "E-a-b", "S-c", "O"]
    assert read_tags([0, 2], ["O", "B-x", "I-x"]) == ["O", "I-x"]
    with pytest.raises(MisfitError, match=r"the tag 3 is a number; name the tags .* model\.options\.tags"):
        read_tags([3], ["O"])
    with pytest.raises(MisfitError, match="'NOUN' is no tag"):
        read_tags(["NOUN"])


def test_spans_move_with_a_text_that_is_brought_to_another_form() -> None:
    text = "cafe\u0301 in Zu\u0308rich"  # letters and accents apart
    start = text.index("Zu")
    spans = [{"start": start, "end": len(text), "label": "place", "text": text[start:]}]
    (there,) = moved(spans, text, "NFC")
    assert "café in Zürich"[there["start"] : there["end"]] == there["text"] == "Zürich"
    assert moved("B-place O", text, "NFC") == "B-place O"


SUBMISSIONS = {"uh_ritual": 41.86, "spinningbytes.txt": 40.78, "flytxt": 38.35}


@pytest.mark.slow
@pytest.mark.parametrize(("system", "published"), SUBMISSIONS.items())
def test_the_published_scores_of_a_shared_task(system: str, published: float) -> None:
    folder = Path(os.environ.get("HEADRACE_TEST_DATA", "nowhere")) / "wnut17"
    if not folder.is_dir():
        pytest.skip("HEADRACE_TEST_DATA names no folder with the data sets")
    true = read_conll(folder / "emerging.test.annotated")
    found = read_conll(folder / "submissions" / system)
    assert [len(tokens) for tokens, _ in found] == [len(tokens) for tokens, _ in true]
    measured = score([chunks(read_tags(tags)) for _, tags in found], [chunks(read_tags(tags)) for _, tags in true])
    assert round(100 * measured["f1"], 2) == published
