"""Models that write: what text-generation, text2text-generation and summarization have in common.

While a model learns, only the likelihood of the wanted texts is computed, which costs one pass. What it writes by
itself is asked for at the end (:meth:`TextWriter.infer`), token by token. Of a row is kept one array, which begins with
the sum of the wanted tokens' negative log-likelihoods and their number; where the model wrote, its tokens follow, the
end included.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from transformers import GenerationConfig

from cluster.errors import UserError
from cluster.progress import say
from cluster.settings import Count, Strict
from training.inputs.text import Tokens, padded
from training.models.language import LIKELIHOOD, likelihood, mean_loss
from training.strategy import is_parted
from training.tasks.task import Baseline, Batch, Example, Output, Outputs, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from training.evaluation.sections import Section

NOTHING = -1
"""Stands behind the last token that was written."""

STOPS = 8  # strings that one request may stop at


class WritingOptions(Strict):
    """How a model writes."""

    max_new_tokens: Count | None = Field(
        None,
        ge=1,
        description="Tokens of an answer at most, its end included. Default: those of the longest answer in the data, "
        "and no more than half of what the model reads.",
    )


class TextWriter(Task):
    """A task whose answer is a text.

    Attributes:
        tokenizer: whose tokens are written.
        ends: tokens that end an answer.
        max_new_tokens: of an answer, its end included.
    """

    metrics_known: dict[str, str] = LIKELIHOOD
    headline: str = "perplexity"
    metrics_of_answers: dict[str, str] = {"rouge_l": "max", "exact_match": "max"}
    final_headline: str = "rouge_l"
    of_probabilities: frozenset[str] = frozenset(LIKELIHOOD)
    new_head: ClassVar[bool] = False

    answer_key: ClassVar[str] = "generated_text"
    """What the Inference API calls the text of an answer."""

    tokenizer: "PreTrainedTokenizerFast"
    ends: list[int]
    max_new_tokens: int

    # --- the model ------------------------------------------------------------------------------------------------

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return []  # what it writes with came with the base

    def greedy(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """The model, which from now on always writes what is most likely, whatever its base was set to do."""
        model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        )
        return model

    @abstractmethod
    def write(self, model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
        """What the model writes for each row, of shape ``[rows, longest]``; anything may stand behind an end."""

    def continued(self, model: "PreTrainedModel", ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What transformers' own loop makes of tokens that all end at one place, or that an encoder reads."""
        settings: Any = model.generation_config
        written: Any = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            synced_gpus=is_parted(model),  # no worker may end before the others, who wait for its part of the model
        )
        tokens: torch.Tensor = written
        return tokens

    def infer(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Shape ``[rows, 2 + longest]``: the likelihood where the batch has labels, zeros where not; the tokens."""
        ids = self.write(model, batch)
        known = self.forward(model, batch) if "labels" in batch else torch.zeros(len(ids), 2, device=ids.device)
        ended = torch.isin(ids, torch.tensor(self.ends, device=ids.device))
        behind = ended.int().cumsum(dim=1) - ended.int() > 0
        return torch.cat([known.float(), ids.masked_fill(behind, NOTHING).float()], dim=1)

    def keep(self, outputs: torch.Tensor, examples: Sequence[Example]) -> list[Output]:
        rows = outputs.float().cpu().numpy()
        return [row[(np.arange(len(row)) < 2) | (row != NOTHING)] for row in rows]

    def written_length(self, output: Output) -> int:
        return len(output) - 2

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return mean_loss(outputs)

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        """One ``{"generated_text": …}`` for each row.

        A request may ask for fewer tokens, or for the text before the first of some strings. It cannot ask for a
        sample: whoever asks twice gets the same answer.
        """
        most, stops = self._read_parameters(parameters)
        texts = self.written([output[: 2 + most] for output in outputs])
        return [{self.answer_key: _before(text, stops)} for text in texts]

    def written(self, outputs: Outputs) -> list[str]:
        """What was written for each row."""
        ids = [output[2:].astype(np.int64).tolist() for output in outputs]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []

    def _read_parameters(self, parameters: Mapping[str, Any]) -> tuple[int, list[str]]:
        known = self.parameters_schema()["properties"]
        for name in parameters:
            if name not in known:
                raise UserError(f"parameters.{name}: unknown; this model takes {', '.join(known)}")
        most, stops = parameters.get("max_new_tokens", self.max_new_tokens), parameters.get("stop", [])
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= self.max_new_tokens:
            raise UserError(f"parameters.max_new_tokens: a whole number from 1 to {self.max_new_tokens} is needed")
        if not isinstance(stops, list) or len(stops) > STOPS or not all(isinstance(one, str) and one for one in stops):
            raise UserError(f"parameters.stop: a list of at most {STOPS} strings is needed")
        for name in ("do_sample", "return_full_text"):
            if parameters.get(name, False) is not False:
                raise UserError(
                    f"parameters.{name}: only false; this model writes the likeliest text, and only what is new"
                )
        return most, stops

    def parameters_schema(self) -> dict[str, Any]:
        """The JSON Schema of what a request may ask for besides."""
        most = {"type": "integer", "minimum": 1, "maximum": self.max_new_tokens, "default": self.max_new_tokens}
        stop = {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": STOPS}
        never = {"const": False, "default": False}
        properties = {"max_new_tokens": most, "stop": stop, "do_sample": never, "return_full_text": never}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def answer_schema(self) -> dict[str, Any]:
        """The JSON Schema of one answer."""
        return {"type": "object", "properties": {self.answer_key: {"type": "string"}}, "required": [self.answer_key]}

    # --- how good it is -------------------------------------------------------------------------------------------

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        """The likelihood of the wanted texts; where the model wrote, also how near it came to them.

        ``exact_match`` is the share of rows whose text is the wanted one but for white space; ``rouge_l`` is the mean
        of the rows' :func:`training.evaluation.rouge.rouge_l`. Wanted is what the data say, uncut.
        """
        from training.evaluation.rouge import rouge_l

        found = likelihood(outputs)
        if len(outputs) and all(len(output) > 2 for output in outputs):
            pairs = list(zip([target["text"] for target in targets], self.written(outputs), strict=True))
            found["rouge_l"] = float(np.mean([rouge_l(wanted, said) for wanted, said in pairs]))
            found["exact_match"] = float(np.mean([wanted.split() == said.split() for wanted, said in pairs]))
        return found

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import writing  # a replica, which never measures, does not load scikit-learn

        return {
            "untouched": Baseline("Untouched base", writing.untouched),
            "nearest": Baseline(
                "Answer of the nearest training row", writing.nearest, probabilities=False, of_texts=True
            ),
        }

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import sections, writing  # they draw, and a replica does not

        return [
            sections.verdict,
            sections.comparison,
            sections.learning,
            writing.beside(self.written),
            sections.sources,
            sections.recipe,
            sections.making,
        ]


def answer_length(asked: int | None, answers: Sequence[int], reads: int) -> int:
    """Tokens that an answer may have, and says how many answers of the data are longer.

    Args:
        asked: what the recipe says.
        answers: tokens of each answer in the data, its end included.
        reads: tokens that the model reads at once, or its prompt and answer together.

    Raises:
        UserError: the recipe leaves no room for a prompt.
    """
    if asked is not None and asked >= reads:
        raise UserError(f"model.options.max_new_tokens: {asked} of {reads} tokens leave no room for a prompt")
    most = asked or max(1, min(max(answers, default=1), reads // 2))
    longer = sum(length > most for length in answers)
    if longer:
        say(f"{longer} of {len(answers)} answers are longer than model.options.max_new_tokens, {most}, and are cut")
    return most


def padded_left(tokens: Sequence[Tokens], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences that all end at the same place, and a mask of what they hold; both ``[sequences, longest]``."""
    values, mask = padded([one[::-1] for one in tokens], fill)
    return torch.from_numpy(values[:, ::-1].copy()), torch.from_numpy(mask[:, ::-1].copy())


def _before(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of ``stops``."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]
