"""A base made from nothing: fresh weights of a known architecture, and a tokenizer that learned the fused text.

For data that no pre-trained model knows (another language, pictures, signals), and wherever no weights are to be had.
It is a folder like any other base, so everything after it is the same.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from cluster.errors import UserError
from cluster.progress import say
from cluster.storage import building, fingerprint, home, only_one
from training.inputs.text import in_form, open_tokenizer
from training.mapped import parts
from training.models.base import base_digest, resolve_base
from training.recipe import Model, NewBase, Recipe

if TYPE_CHECKING:
    from training.data.fuse import Fused

FORMAT = 1
"""Raised whenever the same recipe and data would make another base."""

SEED = 7
PAD, UNKNOWN, START, END, MASK = SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def find_base(recipe: Recipe, fused: "Fused") -> Path:
    """The folder of the recipe's base, which is made first where the recipe describes a new one.

    Raises:
        UserError: it is not there, or transformers knows no such architecture.
    """
    new = recipe.model.base
    if not isinstance(new, NewBase):
        return resolve_base(new, recipe.folder)
    taken = _tokenizer_taken(new, recipe)
    seen = base_digest(taken) if taken else fused.fingerprint if new.tokenizer else None
    folder = home() / "bases" / fingerprint(FORMAT, new.model_dump(), seen, recipe.data.clean.unicode)
    with only_one(folder, wait=True):
        if not folder.exists():
            say(f"making a new {new.new['type']} to start from")
            with building(folder) as unfinished:
                texts = _texts(recipe.model, fused.split("train"), recipe.data.clean.unicode)
                _make(unfinished, new, taken, texts)
    return folder


def new_config(new: NewBase, **settings: Any) -> Any:
    """The transformers configuration that a recipe describes.

    Raises:
        UserError: there is no such type, or it does not take these fields.
    """
    fields = {key: value for key, value in new.new.items() if key != "type"}
    try:
        return AutoConfig.for_model(str(new.new["type"]), **{**settings, **fields})
    except (ValueError, TypeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model.base.new: transformers makes no such model: {first}") from None


def _make(folder: Path, new: NewBase, taken: Path | None, texts: Iterable[str]) -> None:
    config = new_config(new, **_tokenizer_into(folder, new, taken, texts))
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = AutoModel.from_config(config, dtype=torch.float32)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)


def shape_base(folder: Path, recipe: Recipe, train: pa.Table) -> None:
    """Writes into ``folder`` what a recipe's new base would be, without weights; its tokenizer has seen ``train`` only.

    Raises:
        UserError: as :func:`find_base`.
    """
    new = recipe.model.base
    assert isinstance(new, NewBase)
    taken = _tokenizer_taken(new, recipe)
    settings = _tokenizer_into(folder, new, taken, _texts(recipe.model, train, recipe.data.clean.unicode))
    most = {"vocab_size": new.vocabulary} if new.tokenizer == "train" else {}  # all rows may well fill it
    new_config(new, **settings | most).save_pretrained(folder)


def _tokenizer_taken(new: NewBase, recipe: Recipe) -> Path | None:
    """The folder of another base whose tokenizer a new one takes, where it does."""
    return None if new.tokenizer in (None, "train") else resolve_base(new.tokenizer, recipe.folder)


def _tokenizer_into(folder: Path, new: NewBase, taken: Path | None, texts: Iterable[str]) -> dict[str, Any]:
    """Writes the tokenizer of a new base, where it has one; returns what the model's configuration must know of it."""
    if not new.tokenizer:
        return {}
    tokenizer = open_tokenizer(taken) if taken else train_tokenizer(texts, new)
    tokenizer.save_pretrained(folder)
    settings = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return {key: value for key, value in settings.items() if value is not None}


def train_tokenizer(texts: Iterable[str], new: NewBase) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al., 2016): every script, and no text that it cannot read.

    A model that reads a whole text gets it between ``[CLS]`` and ``[SEP]``; one that writes gets the bare tokens.
    """
    writes = is_decoder(str(new.new["type"]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=new.vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if not writes:
        ends = [(name, tokenizer.token_to_id(name)) for name in (START, END)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}", pair=f"{START} $A {END} $B:1 {END}:1", special_tokens=ends
        )
    roles = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": START, "eos_token": END}
    if not writes:
        roles |= {"cls_token": START, "sep_token": END, "mask_token": MASK}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def is_decoder(model_type: str) -> bool:
    """Whether models of this type write text from left to right and do not read it as a whole."""
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _texts(model: Model, train: pa.Table, unicode: str) -> Iterator[str]:
    """All that the model will read or write in the training rows: texts of its columns, however deep in lists."""
    columns = [column for columns in model.inputs.values() for column in columns]
    for column in dict.fromkeys([*columns, *([model.target] if model.target else [])]):
        for part in parts(train.select([column])):
            for value in part[column].to_pylist():
                yield from (in_form(text, unicode) for text in _inside(value))


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _inside(inner)
