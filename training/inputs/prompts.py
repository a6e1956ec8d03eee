"""Prompts: what a model that writes reads before it writes, and the tokens that it should write after it.

A prompt is the text of some columns, or a conversation that goes through the chat template of the model. Prompt and
answer become tokens apart, so that the first token of an answer is the same whatever stands before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from jinja2 import TemplateError
from transformers import GenerationConfig

from cluster.errors import LongPromptError, UserError
from training.inputs.cells import spelled
from training.inputs.conversations import CONVERSATION, SPOKEN, UNFIT, Message, conversation, listed, said, unanswered
from training.inputs.text import Tokens, as_row, in_form, longest_input, open_tokenizer, row_schema
from training.recipe import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Format = Literal["prompt", "chat"]

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""The chat template of a model that has none."""


class Prompts(ABC):
    """Reads rows as prompts, and target cells as the tokens that should follow.

    Attributes:
        columns: what is read.
        tokenizer: the base's own; it cuts nothing by itself.
        max_length: tokens of a prompt and its answer together.
        max_new_tokens: those of the answer, the end included; the rest is the prompt's.
        unicode: the form that texts are brought to.
        ends: tokens that end an answer; the first is the one that is learned.
    """

    format: ClassVar[Format]

    def __init__(
        self,
        columns: Sequence[str],
        tokenizer: "PreTrainedTokenizerFast",
        max_length: int,
        max_new_tokens: int,
        unicode: str,
        ends: Sequence[int],
        template: str | None = None,
    ) -> None:
        self.columns, self.tokenizer, self.unicode = list(columns), tokenizer, unicode
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.ends, self.template = list(ends), template
        tokenizer.model_max_length = max_length
        tokenizer.padding_side = "left"  # as transformers.pipeline wants it of a model that writes
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()

    # --- made from a base, kept in a folder ---------------------------------------------------------------------

    @classmethod
    def learn(
        cls, model: Model, columns: Sequence[str], base: Path, unicode: str, max_new_tokens: int, template: str | None
    ) -> Self:
        """The prompts of a base."""
        tokenizer = open_tokenizer(base)
        longest = longest_input(base, tokenizer, model.max_length)
        return cls(columns, tokenizer, longest, max_new_tokens, unicode, end_tokens(base, tokenizer), template)

    @classmethod
    def load(cls, settings: Mapping[str, Any], folder: Path) -> Self:
        """The prompts that :meth:`save` kept in ``folder`` and ``settings``."""
        return cls(tokenizer=open_tokenizer(folder), **settings)

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the tokenizer to ``folder`` and returns the rest as JSON."""
        self.tokenizer.save_pretrained(folder)
        return {
            "columns": self.columns,
            "max_length": self.max_length,
            "max_new_tokens": self.max_new_tokens,
            "unicode": self.unicode,
            "ends": self.ends,
            "template": self.template,
        }

    # --- requests -------------------------------------------------------------------------------------------------

    @abstractmethod
    def row(self, index: int, value: Any) -> Mapping[str, Any]:
        """The input of a request at ``index`` as a row.

        Raises:
            UserError: it has the wrong type or lacks a column; says which, never its content.
        """

    def as_asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row of a table as the input of a request: without what only tables spell so, and without its answer."""
        return row

    @abstractmethod
    def text(self, row: Mapping[str, Any]) -> str:
        """What a person reads of a prompt."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one input."""

    # --- rows to tokens -------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, rows: Sequence[Mapping[str, Any]]) -> list[Tokens]:
        """The tokens of each prompt, at least one, uncut."""

    @abstractmethod
    def answer(self, row: Mapping[str, Any], cell: Any) -> dict[str, Any]:
        """What should be written after a row's prompt: ``text``, and its ``ids``, uncut, the end included.

        With ``also``, a flag for each token of the uncut prompt, where some of them are to be learned as well.
        """

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[Tokens]:
        """The tokens of each prompt, cut to what leaves room for an answer."""
        return [self.cut(tokens, tokens) for tokens in self.read(rows)]

    def whole(self, rows: Sequence[Mapping[str, Any]]) -> list[Tokens]:
        """The tokens of each prompt.

        Raises:
            LongPromptError: one has more than leave room for an answer.
        """
        prompts = self.read(rows)
        for place, tokens in enumerate(prompts, 1):
            if len(tokens) > self.room:
                raise LongPromptError(
                    f"prompt {place} of {len(prompts)} has {len(tokens)} tokens; this model reads {self.room}, and "
                    f"writes up to {self.max_new_tokens} more: shorten it"
                )
        return prompts

    @property
    def room(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_length - self.max_new_tokens

    def target(self, row: Mapping[str, Any], cell: Any) -> dict[str, Any]:
        """:meth:`answer`, cut to ``max_new_tokens``."""
        answer = self.answer(row, cell)
        if "also" in answer:
            answer["also"] = self.cut(answer["also"], self.read([row])[0])
        return answer | {"ids": answer["ids"][: self.max_new_tokens]}

    def cut(self, values: Tokens, tokens: Tokens) -> Tokens:
        """What is kept of ``values``, one for each of a prompt's ``tokens``: its end, and the token that opens it."""
        if len(tokens) <= self.room:
            return values
        opening = int(tokens[0] == self.tokenizer.bos_token_id)
        return values[:opening] + values[len(tokens) - self.room + opening :]

    def ended(self, ids: Tokens) -> Tokens:
        """``ids`` up to the first token that ends an answer, or with one behind them."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        return [*ids, self.ends[0]] if end is None else ids[: end + 1]

    def bare(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of texts, none added."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def opened(self, tokens: Tokens) -> Tokens:
        """``tokens``, and where there are none one: nothing follows nothing."""
        if tokens:
            return tokens
        opening = self.tokenizer.bos_token_id
        return [self.ends[0] if opening is None else opening]


class TextPrompts(Prompts):
    """A prompt is the text of the columns, a line each, or a template that they fill."""

    format: ClassVar[Format] = "prompt"

    def row(self, index: int, value: Any) -> Mapping[str, Any]:
        return as_row(index, value, self.columns)

    def text(self, row: Mapping[str, Any]) -> str:
        cells = {column: spelled(row[column]) for column in self.columns}
        text = "\n".join(cells.values()) if self.template is None else filled(self.template, cells)
        return in_form(text, self.unicode)

    def schema(self) -> dict[str, Any]:
        return row_schema(self.columns)

    def read(self, rows: Sequence[Mapping[str, Any]]) -> list[Tokens]:
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast([self.text(row) for row in rows])
        return [self.opened(self._open_ended(encoding.ids)) for encoding in encodings]

    def _open_ended(self, tokens: Tokens) -> Tokens:
        """Without the end that some tokenizers put behind every text: here the answer follows."""
        closing = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id} - {None}
        return tokens[:-1] if tokens and tokens[-1] in closing else tokens

    def answer(self, row: Mapping[str, Any], cell: Any) -> dict[str, Any]:
        text = in_form(str(cell), self.unicode)
        return {"text": text, "ids": [*self.bare([text])[0], self.ends[0]]}


class ChatPrompts(Prompts):
    """A prompt is a conversation: a list of messages with ``role`` and ``content``, or a text, which is one message.

    In a table a text may also be JSON of messages, and a last message of the assistant is no part of the question: it
    is the answer. Where the target is a column of its own, it holds the answer's text, or messages of which the last is
    the answer. Every turn of the assistant is learned, those before the answer too. Of what is asked nothing is read as
    anything else than it was sent: a text is what a user says, whatever stands in it.
    """

    format: ClassVar[Format] = "chat"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = PLAIN_TEMPLATE

    @property
    def column(self) -> str:
        """The column that holds the conversation."""
        return self.columns[0]

    def row(self, index: int, value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping) and self.column in value:
            row = value
        elif isinstance(value, str | list):
            row = {self.column: value}
        else:
            raise UserError(
                f"inputs[{index}]: a string, a list of messages or an object with '{self.column}' is needed"
            )
        where, value = f"inputs[{index}].{self.column}", row[self.column]
        if value is None:
            return row
        messages = [said(value)] if isinstance(value, str) else conversation(value, where)
        try:
            self._render(self._messages(messages), opened=True)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return {**row, self.column: messages}

    def as_asked(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        cell = row.get(self.column)
        messages = listed(cell) if isinstance(cell, str) else cell
        if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
            return row
        bare = [{name: message[name] for name in SPOKEN if name in message} for message in messages]
        return {**row, self.column: unanswered(bare) or None}

    def text(self, row: Mapping[str, Any]) -> str:
        return "\n".join(f"{message['role']}: {message['content']}" for message in self._question(row))

    def schema(self) -> dict[str, Any]:
        value = {"anyOf": [{"type": "string"}, CONVERSATION]}
        cell = {"anyOf": [*value["anyOf"], {"type": "null"}]}  # a row's missing prompt is an empty one
        row = {"type": "object", "properties": {self.column: cell}, "required": [self.column]}
        return {"anyOf": [*value["anyOf"], row]}

    def read(self, rows: Sequence[Mapping[str, Any]]) -> list[Tokens]:
        return [self.opened(tokens) for tokens in self.bare([self._prompt(row) for row in rows])]

    def answer(self, row: Mapping[str, Any], cell: Any) -> dict[str, Any]:
        question, wanted = self._question(row), self._messages(cell)
        text = wanted[-1]["content"] if wanted else ""
        prompt, whole = self._prompt(row), self._render([*question, {"role": "assistant", "content": text}])
        written = whole[len(prompt) :] if whole.startswith(prompt) else text
        return {"text": text, "ids": self.ended(self.bare([written])[0]), "also": self._earlier(question, prompt)}

    def _earlier(self, question: Sequence[Message], prompt: str) -> list[int]:
        """A flag for each token of a prompt: whether it belongs to a turn of the assistant, its end included."""
        encoding = self.tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False)
        flags = [0] * max(1, len(encoding.ids))
        for place, message in enumerate(question):
            start, end = self._render(question[:place], opened=True), self._render(question[: place + 1])
            if message["role"] != "assistant" or not (end.startswith(start) and prompt.startswith(end)):
                continue  # a template that writes earlier turns in another way than the last
            for token, (first, last) in enumerate(encoding.offsets):
                if len(start) <= first < last <= len(end):
                    flags[token] = 1
                    if encoding.ids[token] in self.ends:
                        break
        return flags

    def _prompt(self, row: Mapping[str, Any]) -> str:
        return self._render(self._question(row), opened=True)

    def _question(self, row: Mapping[str, Any]) -> list[Message]:
        return unanswered(self._messages(row[self.column]))

    def _messages(self, value: Any) -> list[Message]:
        """A cell as messages; texts in the Unicode form of the training rows.

        Raises:
            UserError: it is no list of messages.
        """
        if value is None:
            return []
        if isinstance(value, str):
            value = listed(value)
        if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
            raise UserError("a list of messages with 'role' and 'content' is needed")
        messages = []
        for place, message in enumerate(value):
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str | None):
                raise UserError(f"message {place} needs a 'role' and a 'content', both strings")
            messages.append({"role": role, "content": in_form(content or "", self.unicode)})
        return messages

    def _render(self, messages: Sequence[Message], *, opened: bool = False) -> str:
        """The conversation as the model reads it; ``opened``: up to where the assistant begins to write."""
        if not messages:
            return ""
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened))
        except TemplateError:
            raise UserError(UNFIT) from None


FORMATS: dict[str, type[Prompts]] = {prompts.format: prompts for prompts in (TextPrompts, ChatPrompts)}


def filled(template: str, cells: Mapping[str, str]) -> str:
    """``template`` with each ``{column}`` replaced by its cell; what a cell holds is not looked at again."""
    parts = template.split("{")
    text = parts[0]
    for part in parts[1:]:
        name, closed, rest = part.partition("}")
        text += cells[name] + rest if closed and name in cells else "{" + part
    return text


def end_tokens(base: Path, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The tokens that end what the base writes: its tokenizer's, and others that its settings name.

    Raises:
        UserError: there is none.
    """
    own = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if own is None:
        raise UserError("model.base: its tokenizer has no token that ends a text; give it an eos_token")
    named: Any = None
    if (base / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(base).eos_token_id
    others = named if isinstance(named, list) else [named]
    return list(dict.fromkeys([own, *(one for one in others if one is not None)]))
