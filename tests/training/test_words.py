"""The words that tokens came from stand where the input has them, whatever the tokenizer and the Unicode form."""

import itertools
import random
import sys
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.inputs.text import JOINER, LAST_SIGN, MOST_MARKS, Reader, in_form
from training.inputs.words import Word, origins, silent, special_tokens, words_of

ENGLISH, CHINESE = "my card isn't late, the parcel is", "我的 包裹还没有到, please help"
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def bytes_and_merges() -> Tokenizer:
    """As GPT's: tokens are bytes and merges of them, of which a Chinese character takes several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*SPECIAL.values()],
        show_progress=False,
    )
    tokenizer.train_from_iterator([ENGLISH], trainer)
    return tokenizer


def pieces() -> Tokenizer:
    """As XLM-RoBERTa's: a space is part of what follows it, and a run of Chinese one word to the tokenizer."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=[*SPECIAL.values()], unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator([ENGLISH, CHINESE] * 5, trainer)
    return tokenizer


def reader(tokenizer: Tokenizer, columns: tuple[str, ...] = ("text",), unicode: str = "none") -> Reader:
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return Reader(columns, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL), 64, unicode)


@pytest.fixture
def bert(tiny_base: Path) -> Reader:
    return Reader.learn(["text"], tiny_base)


def read(reader: Reader, text: str) -> list[str]:
    """The words of a text, of which each stands where it says and each token that is not special is in one."""
    found = words_of(reader, {"text": text})
    assert all(text[word.start : word.end] == word.text for word in found)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    [tokens] = reader.read([{"text": text}])
    told = [index for index, token in enumerate(tokens) if token not in special_tokens(reader)]
    assert [token for word in found for token in word.tokens] == told
    return [word.text for word in found]


def test_word_pieces_are_one_word_and_a_chinese_character_is_one(bert: Reader) -> None:
    assert read(bert, ENGLISH) == ["my", "card", "isn", "'", "t", "late", ",", "the", "parcel", "is"]
    assert read(bert, "  我的 parcels") == ["我", "的", "parcels"]
    assert read(bert, "") == []
    assert read(bert, "[SEP] card [MASK]") == ["card"]


def test_bytes_of_a_character_are_one_word() -> None:
    assert read(reader(bytes_and_merges()), CHINESE) == [*"我的包裹还没有到", ",", "please", "help"]
    assert read(reader(bytes_and_merges()), ENGLISH) == ["my", "card", "isn", "'t", "late", ",", "the", "parcel", "is"]


def test_pieces_of_a_run_without_spaces_stay_apart() -> None:
    words = read(reader(pieces()), CHINESE)
    assert words[-1] == "help" and "".join(words) == CHINESE.replace(" ", "")
    assert len(words) > 5, "the tokenizer takes 包裹还没有到, for one word"
    assert read(reader(pieces()), "card   late ")[0] == "card"


def test_places_are_those_of_the_input_and_not_of_its_form() -> None:
    text = "ﬁne cafe\u0301 Ｃａｒｄ ｶﾞ ㍿ late"
    for tokenizer in (bytes_and_merges(), pieces()):
        words = read(reader(tokenizer, unicode="NFKC"), text)
        assert words[0] == "ﬁne" and words[1] == "cafe\u0301" and words[-1] == "late"


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
@pytest.mark.parametrize(
    "text", ["", "plain", "ﬁ①", "e\u0301e", "각한글\u1100\u1161", "ｶﾞｷﾞ", "\u09c7\u09be", "a\u0323\u0307b"]
)
def test_each_character_of_a_form_has_its_origin(text: str, form: str) -> None:
    places = origins(text, form)
    whole = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    assert len(places) == len(whole)
    pieces = dict.fromkeys(places)
    assert "".join(text[start:end] for start, end in pieces) == text
    assert "".join(unicodedata.normalize(form, text[start:end]) for start, end in pieces) == whole  # type: ignore[arg-type]


def test_words_of_several_columns_stand_in_theirs(tiny_base: Path) -> None:
    both = Reader.learn(["subject", "body", "count"], tiny_base, unicode="NFKC")
    found = words_of(both, {"subject": "Ｃａｒｄ late", "body": None, "count": 12})
    assert [(word.column, word.start, word.end, word.text) for word in found] == [
        ("subject", 0, 4, "Ｃａｒｄ"),
        ("subject", 5, 9, "late"),
        ("count", 0, 2, "12"),
    ]


def test_what_is_cut_off_is_no_word(bert: Reader) -> None:
    found = words_of(bert, {"text": "card " * 100})
    assert len(found) == 62 and found[-1] == Word("text", 305, 309, "card", (62,))


def test_a_silent_text_keeps_its_special_tokens(bert: Reader) -> None:
    [tokens] = bert.read([{"text": "card ☃ late"}])
    kept = bert.tokenizer.convert_ids_to_tokens(silent(bert, tokens))
    assert kept == ["[CLS]", "[PAD]", "[PAD]", "[PAD]", "[SEP]"]


MARKED = "a" + "\u0301" * 20_000 + "\u0323" * 20_000
"""To put its marks in order takes the square of their number: minutes."""


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
def test_a_long_row_of_marks_is_parted_and_ordered_part_by_part(form: str) -> None:
    read = in_form(MARKED, form)
    assert read.replace(JOINER, "").count("\u0323") == 20_000
    assert max(map(len, read.split(JOINER))) <= MOST_MARKS + 1
    assert in_form(read, form) == read
    places = origins(MARKED, form)
    assert len(places) == len(read)
    assert [start for start, _ in places] == sorted(start for start, _ in places)
    assert places[-1][1] == len(MARKED)


def test_a_text_without_a_long_row_of_marks_is_in_the_form_that_unicode_says() -> None:
    draw = random.Random(5)
    signs = "aeé中ệ㍿ﬁ가ᄀ\u0301\u0323\u0344\u034f\ud800𝒳🏳"
    for _ in range(500):
        text = "".join(draw.choices(signs, k=draw.randint(1, 60)))
        for form in ("NFC", "NFKC", "NFD", "NFKD"):
            assert in_form(text, form) == unicodedata.normalize(form, text)
            assert len(origins(text, form)) == len(in_form(text, form))


def test_no_mark_lies_beyond_the_last_sign_that_is_looked_up() -> None:
    assert not any(map(unicodedata.combining, map(chr, range(LAST_SIGN + 1, sys.maxunicode + 1))))
