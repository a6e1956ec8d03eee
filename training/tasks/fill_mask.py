"""Fill-mask: a base reads on in texts of a domain, and learns to guess the words that are hidden from it.

The bundle is a base for other recipes, and answers what may stand in the place of a mask.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from cluster.errors import UserError
from cluster.progress import say
from cluster.settings import Strict
from training.inputs.text import Reader
from training.models.language import LIKELIHOOD, likelihood, logits_at, mean_loss, plain, refuse_other_kinds, scores
from training.recipe import Model
from training.tasks.task import Baseline, Batch, Example, Output, Outputs, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.evaluation.sections import Section

TOP_K = 5
"""Candidates in an answer where the request does not say, as the Hugging Face Inference API answers."""

AS_MASK, AS_ANY = 0.8, 0.1  # of the tokens to be guessed, those that the mask hides and those that any token replaces


class Options(Strict):
    """What is hidden of a text."""

    masked: float = Field(0.15, gt=0, lt=1, description="The share of a text's tokens that are to be guessed.")


class FillMask(Task):
    """Guesses hidden tokens (Devlin et al., 2018): of those chosen, 80 % are masked, 10 % replaced, 10 % left.

    While it learns, other tokens are chosen in every step, drawn from torch's random state, which the loop sets for
    each step. Where it is measured, a row's tokens are always the same ones.

    Attributes:
        reader: turns the text columns into tokens.
        masked: the share of tokens that are chosen; one at least.
    """

    name: ClassVar[str] = "fill-mask"
    roles: ClassVar[dict[str, str]] = {"text": "the column or columns that are read"}
    options_known: ClassVar[type[Strict]] = Options
    target_needed: ClassVar[bool] = False
    new_head: ClassVar[bool] = False
    lone_answer: ClassVar[bool] = True
    metrics_known: dict[str, str] = LIKELIHOOD
    headline: str = "perplexity"

    def __init__(self, reader: Reader, masked: float) -> None:
        self.reader, self.masked = reader, masked
        self.tokenizer = reader.tokenizer
        self.mask: int = reader.tokenizer.mask_token_id

    @property
    def has_targets(self) -> bool:
        return True  # what tells which of a row's tokens are hidden where it is measured

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        refuse_other_kinds(base, MODEL_FOR_MASKED_LM_MAPPING_NAMES, "guesses hidden words, as a bert does")
        reader = Reader.learn(model.inputs["text"], base, model.max_length, unicode)
        if reader.tokenizer.mask_token is None:
            raise UserError(
                "model.base: its tokenizer has no mask token; fill-mask needs a base that reads whole texts"
            )
        if not _has_output_layer(base):
            say("the base comes without the layer that guesses tokens; a new one is trained with it")
        return cls(reader, Options.model_validate(model.options).masked)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        return cls(Reader.load(settings["reader"], folder), settings["masked"])

    def save(self, folder: Path) -> dict[str, Any]:
        return {"reader": self.reader.save(folder), "masked": self.masked}

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self.reader.row(index, value) for index, value in enumerate(inputs)]

    def text(self, row: Row) -> str:
        return self.reader.text(row)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [{"input_ids": tokens} for tokens in self.reader.read(rows)]

    def encode_target(self, row: Row) -> Any:
        """What the row's hidden tokens are drawn from."""
        return zlib.crc32(self.text(row).encode("utf-8", "surrogatepass"))

    def length(self, example: Example) -> int:
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = self.reader.pad([example["input_ids"] for example in examples])
        if "target" in examples[0]:
            batch["seeds"] = torch.tensor([example["target"] for example in examples])
        return batch

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        return self.reader.from_pretrained(AutoModelForMaskedLM, base)

    def open(self, folder: Path) -> "PreTrainedModel":
        return self.build(folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return []  # the output layer is the base's own, or shares its embeddings

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The likelihood of each text's hidden tokens, ``[texts, 2]``: see :func:`training.models.language.scores`."""
        ids = batch["input_ids"]
        if model.training:
            chance = torch.rand(3, *ids.shape, device=ids.device)
        else:
            chance = _fixed_chance(batch["seeds"], ids.shape[1]).to(ids.device)
        seen, chosen = self.hide(ids, batch["attention_mask"].bool(), chance)
        logits = self._logits(model, seen, batch["attention_mask"], chosen)
        return scores(logits, chosen, ids[chosen])

    def hide(self, ids: torch.Tensor, held: torch.Tensor, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The texts with their chosen tokens hidden, and which ones these are; both of shape ``[texts, longest]``.

        Args:
            held: where there is text.
            chance: numbers from 0 to 1, of shape ``[3, texts, longest]``: whether a token is chosen, what becomes of
                it, and by which it is replaced.
        """
        special = torch.tensor(self.tokenizer.all_special_ids, device=ids.device)
        drawn = chance[0].masked_fill(~held | torch.isin(ids, special), 1.0)
        least = (drawn == drawn.min(dim=1, keepdim=True).values) & (drawn < 1)
        chosen = (drawn < self.masked) | least
        any_token = (chance[2] * len(self.tokenizer)).long()
        seen = torch.where(chosen & (chance[1] < AS_MASK), self.mask, ids)
        return torch.where(chosen & (chance[1] >= 1 - AS_ANY), any_token, seen), chosen

    def infer(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Of rows with a target as :meth:`forward`; else log-probabilities, of shape ``[texts, masks, vocabulary]``."""
        if "seeds" in batch:
            return self.forward(model, batch)
        chosen = batch["input_ids"] == self.mask
        if not chosen.any():
            return torch.zeros(len(chosen), 0, len(self.tokenizer), device=chosen.device)
        logits = self._logits(model, batch["input_ids"], batch["attention_mask"], chosen)
        said = torch.zeros(len(chosen), int(chosen.sum(dim=1).max()), logits.shape[1], device=logits.device)
        row, _ = chosen.nonzero(as_tuple=True)
        said[row, (chosen.cumsum(dim=1) - 1)[chosen]] = torch.log_softmax(logits, dim=-1)
        return said

    def _logits(
        self, model: torch.nn.Module, ids: torch.Tensor, held: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        return logits_at(model, plain(model).base_model, {"input_ids": ids, "attention_mask": held}, chosen)

    def keep(self, outputs: torch.Tensor, examples: Sequence[Example]) -> list[Output]:
        rows = list(outputs.detach().float().cpu().numpy())
        if "target" in examples[0]:
            return rows
        return [row[: one["input_ids"].count(self.mask)] for row, one in zip(rows, examples, strict=True)]

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return mean_loss(outputs)

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        """For each text its candidates, likeliest first; where it has several masks, such a list for each.

        With ``targets`` only these are candidates; of one that is no token, its first token.
        """
        top_k, targets = self._read_parameters(parameters)
        return [
            self._candidates(output, example["input_ids"], top_k, targets)
            for output, example in zip(outputs, examples, strict=True)
        ]

    def _candidates(self, output: Output, ids: list[int], top_k: int, targets: list[int] | None) -> list[Any]:
        places = [place for place, token in enumerate(ids) if token == self.mask]
        if not places and set(ids) <= set(self.tokenizer.all_special_ids):
            return []  # an empty text
        if not places:
            raise UserError(f"inputs: each needs {self.tokenizer.mask_token} where a word is to be guessed")
        answers = []
        for place, row in zip(places, output, strict=True):
            among = np.arange(len(row)) if targets is None else np.array(targets)
            best = among[np.argsort(-row[among], kind="stable")[:top_k]]
            answers.append([self._entry(ids, place, int(token), row[token], len(places)) for token in best])
        return answers[0] if len(places) == 1 else answers

    def _entry(self, ids: list[int], place: int, token: int, likelihood: Any, masks: int) -> dict[str, Any]:
        filled = [*ids[:place], token, *ids[place + 1 :]]
        return {
            "score": float(np.exp(likelihood)),
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            "sequence": self.tokenizer.decode(filled, skip_special_tokens=masks == 1),  # the other masks are special
        }

    def _read_parameters(self, parameters: Mapping[str, Any]) -> tuple[int, list[int] | None]:
        for name in parameters:
            if name not in ("top_k", "targets"):
                raise UserError(f"parameters.{name}: unknown; this model takes top_k and targets")
        top_k, targets = parameters.get("top_k", TOP_K), parameters.get("targets")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise UserError("parameters.top_k: a whole number from 1 up is needed")
        if targets is None:
            return top_k, None
        if not isinstance(targets, list) or not all(isinstance(one, str) for one in targets):
            raise UserError("parameters.targets: a list of strings is needed")
        known = self.tokenizer.get_vocab()
        firsts = [known.get(one, next(iter(self._bare(one)), None)) for one in targets]
        ids = list(dict.fromkeys(one for one in firsts if one is not None))
        if not ids:
            raise UserError("parameters.targets: the model knows no token of them")
        return top_k, ids

    def _bare(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        return likelihood(outputs)

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation.writing import untouched  # a replica, which never measures, does not load it

        return {"untouched": Baseline("Untouched base", untouched)}

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections  # it draws, and a replica does not

        return sections.REGRESSION

    def signature(self) -> dict[str, Any]:
        entry = {
            "type": "object",
            "properties": {
                "score": {"type": "number", "minimum": 0, "maximum": 1},
                "token": {"type": "integer"},
                "token_str": {"type": "string"},
                "sequence": {"type": "string"},
            },
            "required": ["score", "token", "token_str", "sequence"],
        }
        entries = {"type": "array", "items": entry}
        parameters = {
            "top_k": {"type": "integer", "minimum": 1, "default": TOP_K},
            "targets": {"type": "array", "items": {"type": "string"}},
        }
        return {
            "input": self.reader.schema(),
            "parameters": {"type": "object", "properties": parameters, "additionalProperties": False},
            "output": {"anyOf": [entries, {"type": "array", "items": entries}]},
        }


def _fixed_chance(seeds: torch.Tensor, longest: int) -> torch.Tensor:
    """The same numbers for a row whatever it is padded to, of shape ``[3, rows, longest]``."""
    drawn = [np.random.default_rng(seed).random((longest, 3), dtype=np.float32) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(drawn)).permute(2, 0, 1)


def _has_output_layer(base: Path) -> bool:
    """Whether the base's weights hold what turns hidden states into guesses."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(config)
    heads = tuple(f"{name}." for name, _ in model.named_children() if name != model.base_model_prefix)
    for file in base.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            if any(name.startswith(heads) for name in tensors.keys()):  # noqa: SIM118  it is no mapping
                return True
    return False
