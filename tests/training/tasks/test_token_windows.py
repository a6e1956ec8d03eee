"""Rows to tokens with tags: the forms that data has, and windows over texts longer than a model reads at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.errors import UserError
from tests.training.tasks.marked import make, spans_table
from training.inputs.entities import Entity
from training.recipe import Model
from training.tasks.task import Row
from training.tasks.token_classification import TokenClassification


@pytest.fixture
def task(tiny_base: Path) -> TokenClassification:
    return make(tiny_base, spans_table(20))


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
