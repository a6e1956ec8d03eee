"""What an answer rests on: how much each word adds to what the model says most, by integrated gradients.

Of an answer the output that is largest is explained: the logit of the best label, or the number itself. A word's score
is the integral of its gradient from a text of padding, with the special tokens in place, to the text that was asked
(Sundararajan, Taly and Yan, 2017), summed over the word's tokens; so the scores of all words add up to the output less
that of the padding. Captum computes the integral. It is asked with the vectors of tokens, not with a layer to hook
into: hooks would change what other threads compute with the same model.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from cluster.errors import RunError, UserError
from training.inputs.words import Word
from training.tasks.task import Batch, Example, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARAMETER = "explain"
"""What asks for attributions, and never reaches the task."""

STEPS = 32
"""Points of the Gauss-Legendre rule."""

COST = 2 * STEPS
"""Forward passes that explaining takes as long as: a gradient in the vectors alone costs as much as the outputs."""

WORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "word": {"type": "string"},
        "start": {"type": "integer", "minimum": 0},
        "end": {"type": "integer", "minimum": 0},
        "score": {"type": "number"},
        "column": {"type": "string"},
    },
    "required": ["word", "start", "end", "score"],
}


class AttributableTask(Protocol):
    """What is asked of a task that is ``attributable``; ``training/tasks/text_classification.py`` has it."""

    def words(self, row: Row) -> list[Word]:
        """The words that are read of a row."""

    def silent(self, example: Example) -> Example:
        """An example as long as this one that says nothing."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """As :meth:`training.tasks.task.Task.collate`."""

    def forward_embedded(self, model: torch.nn.Module, embedded: torch.Tensor) -> torch.Tensor:
        """The outputs for texts given as the vectors of their tokens, of shape ``[texts, tokens, width]``."""


class Explainer:
    """Explains answers of one model.

    Args:
        budget: tokens that one pass may hold.

    Attributes:
        lacking: why it cannot; None where it can.
    """

    def __init__(self, task: Task, model: "PreTrainedModel", device: torch.device, budget: int) -> None:
        self._task, self._model, self._device, self._budget = cast(AttributableTask, task), model, device, budget
        self.lacking = _lacking(task, model)

    def describe(self, signature: Mapping[str, Any]) -> dict[str, Any]:
        """A task's signature, and what an explained question and answer look like besides."""
        described = dict(signature)
        if self.lacking is None:
            asked, answer = signature["parameters"], signature["output"]
            more = {PARAMETER: {"type": ["boolean", "null"], "default": False}}
            told = {"attributions": {"type": "array", "items": WORD}}
            entry = answer["items"] | {"properties": answer["items"]["properties"] | told}
            described["parameters"] = asked | {"properties": asked["properties"] | more}
            described["output"] = answer | {"items": entry}
        return described

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Whether a question may ask for an explanation, or does not.

        Raises:
            UserError: it may not, or asks in a wrong way.
        """
        if not isinstance(parameters.get(PARAMETER), bool | None):
            raise UserError(f"parameters.{PARAMETER}: true or false is needed")
        if PARAMETER in parameters and self.lacking:
            raise UserError(f"parameters.{PARAMETER}: {self.lacking}")

    def prepare(self, row: Row, example: Example) -> Example:
        """The example with all that :meth:`explain` needs of its row."""
        _integrated_gradients()  # its first import takes a second, in which the model answers others
        return example | {"words": self._task.words(row)}

    def explain(self, answer: Any, example: Example, output: Any) -> Any:
        """An answer whose first entry holds the ``attributions``; one without entries stays as it is.

        Args:
            example: as :meth:`prepare` gives it.
            output: what the model said of it.

        Raises:
            RunError: an attribution is not a number.
        """
        if not answer:
            return answer
        scores = self._attribute(example, int(output.argmax()))
        words: list[Word] = example["words"]
        several = len({word.column for word in words}) > 1
        told = [
            {"word": word.text, "start": word.start, "end": word.end, "score": float(scores[list(word.tokens)].sum())}
            | ({"column": word.column} if several else {})
            for word in words
        ]
        return [answer[0] | {"attributions": told}, *answer[1:]]

    def _attribute(self, example: Example, output: int) -> torch.Tensor:
        """How much each token adds to one of the model's outputs, of shape ``[tokens]``, on the CPU."""
        tokens = self._task.collate([example, self._task.silent(example)])["input_ids"].to(self._device)
        with torch.no_grad():
            asked, silent = self._model.get_input_embeddings()(tokens).split(1)
        with torch.enable_grad():
            integrated = _integrated_gradients()(functools.partial(self._task.forward_embedded, self._model))
            at_once = max(1, self._budget // tokens.shape[1])
            added = integrated.attribute(asked, silent, target=output, n_steps=STEPS, internal_batch_size=at_once)
        scores: torch.Tensor = added.detach().double().sum(-1)[0].cpu()
        if not scores.isfinite().all():
            raise RunError("the explanation of one of the answers is not a number")
        return scores


def asked(parameters: Mapping[str, Any]) -> bool:
    """Whether these parameters of a question ask for an explanation."""
    return bool(parameters.get(PARAMETER))


def others(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters that are the task's."""
    return {name: value for name, value in parameters.items() if name != PARAMETER}


def _lacking(task: Task, model: "PreTrainedModel") -> str | None:
    if not task.attributable:
        return f"{task.name} cannot be explained; text-classification can"
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return "a model of this type cannot be explained: it takes no vectors of tokens"
    if find_spec("captum") is None:
        return "not to be had here; whoever runs the server can pip install 'headrace[explain]'"
    return None


def _integrated_gradients() -> Any:
    from captum.attr import IntegratedGradients  # heavy, and an extra

    return IntegratedGradients
