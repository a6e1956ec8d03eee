"""How the vectors of a text's tokens become the vector of the text, and how sentence-transformers is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from cluster.errors import UserError
from cluster.storage import read_json, write_json

Pooling = Literal["mean", "cls", "max", "lasttoken"]

LEGACY = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How the sentence-transformers of earlier years wrote it."""

CONFIG = Path("1_Pooling") / "config.json"
LENGTH = "sentence_bert_config.json"


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Vectors of texts, of shape ``[texts, hidden]``, from those of their tokens, padded on the right.

    Args:
        hidden: shape ``[texts, tokens, hidden]``.
        mask: 1 for a token, 0 for padding; shape ``[texts, tokens]``.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    there = mask.unsqueeze(-1)
    if pooling == "max":
        return hidden.masked_fill(there == 0, -torch.inf).amax(1)
    return (hidden * there).sum(1) / there.sum(1)


def unit_vectors(model: Any, texts: Mapping[str, torch.Tensor], pooling: Pooling) -> torch.Tensor:
    """The vectors of length 1, of shape ``[texts, hidden]``, that a model gives texts padded on the right."""
    vectors = pool(model(**texts).last_hidden_state, texts["attention_mask"], pooling)
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def pooling_of(base: Path) -> Pooling:
    """How a base pools, by its sentence-transformers configuration; the mean where it has none.

    Raises:
        UserError: in a way that is not known here.
    """
    if not (base / CONFIG).is_file():
        return "mean"
    config: dict[str, Any] = read_json(base / CONFIG)
    named = config.get("pooling_mode") or [mode for key, mode in LEGACY.items() if config.get(key)]
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise UserError(
            f"model.base: its {CONFIG.as_posix()} names no pooling that is known here; "
            f"choose one with model.options.pooling: {', '.join(get_args(Pooling))}"
        )
    return cast(Pooling, modes[0])


def longest_of(base: Path) -> int | None:
    """The tokens of a text that a base read when it learned to embed, where its configuration says so."""
    longest = read_json(base / LENGTH).get("max_seq_length") if (base / LENGTH).is_file() else None
    return int(longest) if longest else None


def describe(folder: Path, pooling: Pooling, longest: int) -> None:
    """Writes what ``sentence_transformers.SentenceTransformer(folder)`` needs to embed as we do. We never read it."""
    width = read_json(folder / "config.json").get("hidden_size") if (folder / "config.json").is_file() else None
    modules = [("", "Transformer"), (CONFIG.parent.as_posix(), "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        folder / "modules.json",
        [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (path, kind) in enumerate(modules)
        ],
    )
    write_json(folder / LENGTH, {"max_seq_length": longest, "do_lower_case": False})
    write_json(
        folder / CONFIG, {"word_embedding_dimension": width} | {key: mode == pooling for key, mode in LEGACY.items()}
    )
