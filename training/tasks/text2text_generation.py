"""Text-to-text generation: a text is read as a whole, and another is written, by an encoder and a decoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from cluster.settings import Strict
from training.families.generation import TextWriter, WritingOptions, answer_length
from training.inputs.prompts import end_tokens
from training.inputs.text import Reader, Tokens, in_form, padded
from training.models.language import logits_at, plain, refuse_other_kinds, scores
from training.recipe import Model
from training.tasks.task import Batch, Example, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_LEARNED = -100


class Options(WritingOptions):
    """How much is written."""


class Text2TextGeneration(TextWriter):
    """Reads one or several text columns and writes another text.

    Attributes:
        reader: turns the text columns into tokens.
        target: the column that holds the wanted texts.
    """

    name: ClassVar[str] = "text2text-generation"
    roles: ClassVar[dict[str, str]] = {"text": "the column or columns that are read"}
    options_known: ClassVar[type[Strict]] = Options

    def __init__(self, reader: Reader, target: str, ends: list[int], max_new_tokens: int) -> None:
        self.reader, self.target, self.tokenizer = reader, target, reader.tokenizer
        self.ends, self.max_new_tokens = ends, max_new_tokens

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        wanted = "reads a text and then writes one, as a t5 or a bart does; text-generation takes one that writes on"
        refuse_other_kinds(base, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, wanted)
        options = Options.model_validate(model.options)
        reader = Reader.learn(model.inputs["text"], base, model.max_length, unicode)
        task = cls(reader, model.named_target, end_tokens(base, reader.tokenizer), 0)
        cells = [cell for table in splits.values() for cell in table[model.named_target].to_pylist()]
        lengths = [len(ids) for ids in task.wanted([task.wanted_text(cell) for cell in cells])]
        task.max_new_tokens = answer_length(options.max_new_tokens, lengths, 2 * reader.max_length)
        return task

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        reader = Reader.load(settings["reader"], folder)
        return cls(reader, settings["target"], settings["ends"], settings["max_new_tokens"])

    def save(self, folder: Path) -> dict[str, Any]:
        return {
            "reader": self.reader.save(folder),
            "target": self.target,
            "ends": self.ends,
            "max_new_tokens": self.max_new_tokens,
        }

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self.reader.row(index, value) for index, value in enumerate(inputs)]

    def text(self, row: Row) -> str:
        return self.reader.text(row)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        return [{"input_ids": tokens} for tokens in self.reader.read(rows)]

    def encode_target(self, row: Row) -> Any:
        text = self.wanted_text(row[self.target])
        return {"text": text, "ids": self.wanted([text])[0][: self.max_new_tokens]}

    def wanted_text(self, cell: Any) -> str:
        """A target cell as the text that should be written."""
        return in_form(str(cell), self.reader.unicode)

    def wanted(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens that should be written for each text, the end included, uncut."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # the limit of what is read is none of what is written
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        backend.enable_truncation(self.reader.max_length)
        return [[*encoding.ids, self.ends[0]] for encoding in encodings]

    def length(self, example: Example) -> int:
        return len(example["input_ids"]) + len(example["target"]["ids"] if "target" in example else ())

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = self.reader.pad([example["input_ids"] for example in examples])
        if "target" in examples[0]:
            labels, _ = padded([example["target"]["ids"] for example in examples], NOT_LEARNED)
            batch["labels"] = torch.from_numpy(labels)
        return batch

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        model = self.reader.from_pretrained(AutoModelForSeq2SeqLM, base)
        if getattr(model.config, "decoder_start_token_id", None) is None:
            model.config.decoder_start_token_id = self.tokenizer.pad_token_id  # as T5 does
        return self.greedy(model)

    def open(self, folder: Path) -> "PreTrainedModel":
        return self.build(folder).eval()

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The likelihood of each wanted text, of shape ``[rows, 2]``: see :func:`training.models.language.scores`."""
        labels, inner = batch["labels"], plain(model)
        chosen = labels != NOT_LEARNED
        start = torch.full_like(labels[:, :1], inner.config.decoder_start_token_id)
        before = torch.cat([start, labels[:, :-1]], dim=1).masked_fill(~chosen, self.tokenizer.pad_token_id)
        inputs = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": before,
            "use_cache": False,
        }
        return scores(logits_at(model, inner.get_decoder(), inputs, chosen), chosen, labels[chosen])

    def write(self, model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
        return self.continued(model, batch["input_ids"], batch["attention_mask"])[
            :, 1:
        ]  # behind the token that starts every text

    def signature(self) -> dict[str, Any]:
        return {
            "input": self.reader.schema(),
            "parameters": self.parameters_schema(),
            "output": self.answer_schema(),
        }
