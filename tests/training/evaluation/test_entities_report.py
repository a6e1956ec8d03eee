"""What a tagger is measured against, and the kinds of its mistakes."""

from training.evaluation.entities import Dictionary, compare
from training.inputs.entities import Entity


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
