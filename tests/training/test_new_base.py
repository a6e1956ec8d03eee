"""A base made from nothing is a folder like any other, and the same every time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForCausalLM

from cluster.errors import UserError
from training.data.fuse import fuse
from training.encode import encode
from training.inputs.text import open_tokenizer
from training.models.base import base_digest
from training.models.new_base import find_base, is_decoder
from training.preflight import plan
from training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def with_new(make_recipe: MakeRecipe, kind: str, tokenizer: str | None = "train", **fields: int) -> Recipe:
    base = {"new": {"type": kind, **fields}, "tokenizer": tokenizer, "vocabulary": 400}
    return make_recipe(model={"base": base})


def test_a_reader_with_a_tokenizer_of_its_own_trains_like_any_base(make_recipe: MakeRecipe) -> None:
    recipe = with_new(make_recipe, "bert", **SMALL, max_position_embeddings=48)
    encoded = encode(recipe, fuse(recipe))
    assert encoded.base.parent.name == "bases"
    reader = encoded.task.reader  # type: ignore[attr-defined]
    assert reader.max_length == 48
    (tokens,) = reader.tokens(["refund my money, 快递没到 🙂"])
    assert reader.tokenizer.decode(tokens, skip_special_tokens=True) == "refund my money, 快递没到 🙂"
    assert [tokens[0], tokens[-1]] == [reader.tokenizer.cls_token_id, reader.tokenizer.sep_token_id]
    assert encoded.task.build(encoded.base).config.vocab_size == len(reader.tokenizer) <= 400
    assert plan(recipe)["base"] == "a new bert"


def test_the_same_recipe_and_data_make_the_same_base(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_new(make_recipe, "bert", **SMALL)
    first = find_base(recipe, fuse(recipe))
    other_home = first.parents[1].with_name("other")
    monkeypatch.setenv("HEADRACE_HOME", str(other_home))
    second = find_base(recipe, fuse(recipe))
    assert second.is_relative_to(other_home)
    assert base_digest(first) == base_digest(second)


def test_a_writer_reads_bare_tokens(make_recipe: MakeRecipe) -> None:
    recipe = with_new(make_recipe, "gpt2", n_embd=32, n_layer=2, n_head=2, n_positions=64)
    base = find_base(recipe, fuse(recipe))
    tokenizer = open_tokenizer(base)
    tokens = tokenizer("refund my money")["input_ids"]
    assert not set(tokens) & set(tokenizer.all_special_ids)
    model = AutoModelForCausalLM.from_pretrained(base)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert is_decoder("gpt2")
    assert not is_decoder("bert")


def test_the_tokenizer_of_another_base_is_taken(make_recipe: MakeRecipe, tiny_base: Path) -> None:
    recipe = with_new(make_recipe, "bert", str(tiny_base), **SMALL)
    base = find_base(recipe, fuse(recipe))
    assert open_tokenizer(base).get_vocab() == open_tokenizer(tiny_base).get_vocab()


def test_a_model_that_reads_no_text_needs_no_tokenizer(make_recipe: MakeRecipe) -> None:
    recipe = with_new(make_recipe, "vit", None, **SMALL, image_size=8, patch_size=4, num_channels=1)
    base = find_base(recipe, fuse(recipe))
    assert not (base / "tokenizer.json").exists()
    assert AutoModel.from_pretrained(base).config.image_size == 8


def test_an_unknown_type_is_told(make_recipe: MakeRecipe) -> None:
    recipe = with_new(make_recipe, "bertt")
    with pytest.raises(UserError, match=r"^model\.base\.new: transformers makes no such model: .*bertt"):
        find_base(recipe, fuse(recipe))
