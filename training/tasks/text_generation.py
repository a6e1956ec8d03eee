"""Text generation: an answer to a prompt or to a conversation, by a model that writes on from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from cluster.errors import UserError
from cluster.progress import say
from cluster.settings import Strict
from training.families.generation import TextWriter, WritingOptions, answer_length, padded_left
from training.inputs.prompts import FORMATS, Format, Prompts
from training.inputs.text import from_pretrained, padded
from training.models.language import logits_at, plain, refuse_other_kinds, scores
from training.recipe import Model
from training.tasks.task import Batch, Example, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_LEARNED = -100


class Options(WritingOptions):
    """What is read and how much is written."""

    format: Format = Field(
        "prompt",
        description="prompt: the text of the columns; chat: a column of messages with `role` and `content`, through "
        "the chat template of the base.",
    )
    template: str | None = Field(
        None,
        description="The prompt, with the name of each column in braces, as in 'Question: {question}\\nAnswer:'. "
        "Default: the columns, a line each.",
    )


class TextGeneration(TextWriter):
    """Reads a prompt and writes what follows. The answer alone is learned; in a conversation, the assistant's turns.

    Attributes:
        prompts: turns rows into prompts, and targets into the tokens that follow.
        target: the column that holds the answers.
    """

    name: ClassVar[str] = "text-generation"
    roles: ClassVar[dict[str, str]] = {"prompt": "the column or columns that are read, or the one with the messages"}
    options_known: ClassVar[type[Strict]] = Options
    writes_on: ClassVar[bool] = True

    def __init__(self, prompts: Prompts, target: str) -> None:
        self.prompts, self.target = prompts, target
        self.tokenizer, self.ends, self.max_new_tokens = prompts.tokenizer, prompts.ends, prompts.max_new_tokens

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options, columns = Options.model_validate(model.options), model.inputs["prompt"]
        if options.format == "chat" and (len(columns) > 1 or options.template is not None):
            raise UserError("model.options.format: chat reads one column of messages, and takes no template")
        for column in columns if options.template is not None else ():
            if f"{{{column}}}" not in str(options.template):
                raise UserError(f"model.options.template: '{{{column}}}' does not stand in it")
        _refuse_readers(base)
        prompts = FORMATS[options.format].learn(model, columns, base, unicode, 0, options.template)
        rows = [row for table in splits.values() for row in table.to_pylist()]
        answers = [len(prompts.answer(row, row[model.named_target])["ids"]) for row in rows]
        prompts.max_new_tokens = answer_length(options.max_new_tokens, answers, prompts.max_length)
        longer = sum(len(tokens) > prompts.room for tokens in prompts.read(rows))
        if longer:
            say(f"{longer} of {len(rows)} prompts have more than {prompts.room} tokens; their beginning is cut")
        return cls(prompts, model.named_target)

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        return cls(FORMATS[settings["format"]].load(settings["prompts"], folder), settings["target"])

    def save(self, folder: Path) -> dict[str, Any]:
        return {"format": self.prompts.format, "prompts": self.prompts.save(folder), "target": self.target}

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self.prompts.row(index, value) for index, value in enumerate(inputs)]

    def as_asked(self, rows: Sequence[Row]) -> Sequence[Any]:
        return [self.prompts.as_asked(row) for row in rows]

    def text(self, row: Row) -> str:
        return self.prompts.text(row)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [{"input_ids": tokens} for tokens in self.prompts.prompts(rows)]

    def encode_asked(self, rows: Sequence[Row]) -> list[Example]:
        return [{"input_ids": tokens} for tokens in self.prompts.whole(rows)]

    def encode_target(self, row: Row) -> Any:
        return self.prompts.target(row, row[self.target])

    def length(self, example: Example) -> int:
        return len(example["input_ids"]) + len(example["target"]["ids"] if "target" in example else ())

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Prompts that end at one place, to write on from; with targets also prompts and answers, to learn from.

        ``labels`` hold at each place the token that should follow it.
        """
        fill = self.tokenizer.pad_token_id
        ids, mask = padded_left([example["input_ids"] for example in examples], fill)
        batch = {"prompt_ids": ids, "prompt_mask": mask}
        if "target" in examples[0]:
            whole, held = padded([example["input_ids"] + example["target"]["ids"] for example in examples], fill)
            labels, _ = padded([_labels(example) for example in examples], NOT_LEARNED)
            batch |= {"input_ids": torch.from_numpy(whole), "attention_mask": torch.from_numpy(held)}
            batch["labels"] = torch.from_numpy(labels)
        return batch

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        model = self.greedy(from_pretrained(AutoModelForCausalLM, base))
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def open(self, folder: Path) -> "PreTrainedModel":
        return self.build(folder).eval()

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The likelihood of each row's answer, of shape ``[rows, 2]``: see :func:`training.models.language.scores`."""
        chosen = batch["labels"] != NOT_LEARNED
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        logits = logits_at(model, plain(model).base_model, inputs, chosen)
        return scores(logits, chosen, batch["labels"][chosen])

    def write(self, model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
        ids = self.continued(model, batch["prompt_ids"], batch["prompt_mask"])
        return ids[:, batch["prompt_ids"].shape[1] :]

    def signature(self) -> dict[str, Any]:
        return {
            "input": self.prompts.schema(),
            "parameters": self.parameters_schema(),
            "output": self.answer_schema(),
        }


def _refuse_readers(base: Path) -> None:
    """Refuses a base that does not write from left to right: one that sees what follows learns to copy it.

    Raises:
        UserError: it reads whole texts, or is half a model that does.
    """
    wanted = (
        "writes on from a prompt, as a gpt2 or a llama does; text2text-generation takes one that reads, then writes"
    )
    own = AutoConfig.from_pretrained(base, trust_remote_code=False)
    writes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    if not getattr(own, "is_decoder", False):
        writes -= MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    refuse_other_kinds(base, writes if not own.is_encoder_decoder else (), wanted)


def _labels(example: Example) -> list[int]:
    """For each token of prompt and answer the one that should follow it, where that is to be learned."""
    prompt, target = example["input_ids"], example["target"]
    learned = [*target.get("also", [0] * len(prompt)), *[1] * len(target["ids"])]
    following = zip([*prompt, *target["ids"]][1:], learned[1:], strict=True)
    return [token if wanted else NOT_LEARNED for token, wanted in following] + [NOT_LEARNED]
