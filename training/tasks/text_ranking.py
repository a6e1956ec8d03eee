"""Text ranking: how relevant each passage is to a query, the two read together. The second stage of a search."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoModelForSequenceClassification

from cluster.errors import FewRowsError, UserError
from cluster.settings import Strict
from training.evaluation import retrieval
from training.evaluation.metrics import sigmoid
from training.families.retrieval import Pairs, Relevance, pad_lists, pad_texts, parted, read_texts
from training.inputs.text import CELL, Reader, in_form
from training.models import pooling
from training.models.adapt import head_of
from training.recipe import Model
from training.tasks.task import Baseline, Batch, Example, Output, Outputs, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.evaluation.sections import Section

QUESTIONS = pa.schema(
    {
        "query": pa.string(),
        "texts": pa.list_(pa.string()),
        "numbers": pa.list_(pa.int64()),
        "relevance": pa.list_(pa.float64()),
        "known": pa.list_(pa.int64()),
        "grades": pa.list_(pa.float64()),
    }
)
"""A question row: a query and passages with their ``numbers`` and ``relevance`` from 0 to 1, and all that is ``known``
to be relevant to it. To learn from: a passage with its negatives. To measure: what the first stage found, in order."""


class Options(Strict):
    """What it learns against, and what it ranks anew."""

    negatives: int = Field(4, ge=0, le=32, description="Passages beside each relevant one that are not known to be.")
    mined_with: Literal["bm25", "tfidf", "base", "random"] = Field("bm25", description="What finds the negatives.")
    first_stage: Literal["bm25", "tfidf"] = Field(
        "bm25", description="What finds the passages that the model then ranks."
    )
    depth: int = Field(100, ge=1, le=1000, description="Passages that the first stage finds for each query.")


class TextRanking(Task):
    """Reads a query and a passage together and says how relevant the one is to the other.

    Attributes:
        pairs: reads the columns.
        options: the recipe's.
        top: the highest grade of a training row; relevance is a share of it.
    """

    name: ClassVar[str] = "text-ranking"
    roles: ClassVar[dict[str, str]] = {
        "query": "the column or columns of what is looked for",
        "passage": "those of what may be found",
    }
    compared_roles: ClassVar[frozenset[str] | None] = frozenset({"query"})  # a passage may answer many queries
    options_known: ClassVar[type[Strict]] = Options
    target_needed: ClassVar[bool] = False
    corpus_read: ClassVar[bool] = True
    lone_answer: ClassVar[bool] = True
    metrics_known: dict[str, str] = retrieval.RETRIEVAL
    headline: str = "ndcg_at_10"
    of_probabilities: frozenset[str] = frozenset({"loss"})

    def __init__(self, pairs: Pairs, options: Options, top: float) -> None:
        self.pairs, self.options, self.top = pairs, options, top
        self.base: Path | None = None  # where negatives are mined, which is before anything is kept

    @property
    def reader(self) -> Reader:
        """Of the query; its tokenizer reads the passages too."""
        return self.pairs.query

    @property
    def has_targets(self) -> bool:
        return True  # what is relevant to a query, also where no column says how much

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        pairs = Pairs.learn(model, base, model.max_length, unicode)
        top = max(map(pairs.grade_of, splits["train"].to_pylist()), default=0.0)
        if top <= 0:
            raise FewRowsError(f"model.target: no training row has a '{model.target}' above 0; nothing is relevant")
        task = cls(pairs, Options.model_validate(model.options), top)
        task.base = base
        return task

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        return cls(Pairs.load(settings["pairs"], folder), Options(**settings["options"]), settings["top"])

    def save(self, folder: Path) -> dict[str, Any]:
        return {"pairs": self.pairs.save(folder), "options": self.options.model_dump(), "top": self.top}

    # --- rows to questions ----------------------------------------------------------------------------------------

    def questions(self, splits: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        every = self.pairs.collect(splits.values())
        return {
            name: pa.Table.from_pylist(
                list(self._groups(table, every) if name == "train" else self._judged(table, every)), schema=QUESTIONS
            )
            for name, table in splits.items()
            if name != "corpus"
        }

    def _groups(self, table: pa.Table, every: Relevance) -> Iterator[Row]:
        """Each passage that somebody judged once: one that is relevant with negatives beside it, the others alone."""
        judged: dict[tuple[str, int], float] = {}
        for row in table.to_pylist():
            query, number = self.reader.text(row), every.number(self.pairs.passage.text(row))
            if number:
                judged[query, number] = max(self.pairs.grade_of(row), judged.get((query, number), 0.0))
        queries = list(dict.fromkeys(query for (query, _), grade in judged.items() if grade > 0))
        mined = dict(zip(queries, self._mined(queries, every), strict=True))
        for (query, number), grade in judged.items():
            negatives = mined[query] if grade > 0 else []
            numbers = [number, *(one for one in negatives if judged.get((query, one), 0.0) <= 0)]
            yield self._question(query, numbers, [max(grade, 0.0) / self.top], every)

    def _mined(self, queries: Sequence[str], every: Relevance) -> list[list[int]]:
        """Negatives of each query. Whoever loads a task has its training rows encoded already, and needs none."""
        if not self.options.negatives or self.base is None:
            return [[] for _ in queries]
        from training.evaluation import rankers  # a replica, which mines nothing, does not load scikit-learn

        rank = rankers.RANKERS.get(self.options.mined_with) or rankers.by_base(
            self.base, self.reader, pooling.pooling_of(self.base)
        )
        known = [every.known(one)[0] for one in queries]
        return rankers.others(rank, queries, every.passages, known, self.options.negatives)

    def _judged(self, table: pa.Table, every: Relevance) -> Iterator[Row]:
        """The queries of a held out split that have an answer, each with what the first stage finds for it."""
        from training.evaluation import rankers  # as above

        own = self.pairs.collect([table])
        queries = list(own.grades)
        found = rankers.RANKERS[self.options.first_stage](queries, every.passages, self.options.depth)
        for query, places in zip(queries, found, strict=True):
            yield self._question(query, (places + 1).tolist(), [], every)

    def _question(self, query: str, numbers: Sequence[int], relevance: Sequence[float], every: Relevance) -> Row:
        known, grades = every.known(query)
        return {
            "query": query,
            "texts": [every.passages[number - 1] for number in numbers],
            "numbers": numbers,
            "relevance": [*relevance, *[0.0] * (len(numbers) - len(relevance))],
            "known": known,
            "grades": grades,
        }

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self._row(index, value) for index, value in enumerate(inputs)]

    def _row(self, index: int, value: Any) -> Row:
        if not isinstance(value, Mapping):
            raise UserError(f"inputs[{index}]: an object with query and texts is needed, not {type(value).__name__}")
        form = self.reader.unicode
        if "texts" not in value:  # the recipe's own columns
            asked, text = (one.text(one.row(index, value)) for one in (self.reader, self.pairs.passage))
            return {"query": asked, "texts": [text]}
        query, texts = value.get("query"), value["texts"]
        if not isinstance(query, str):
            raise UserError(f"inputs[{index}].query: a string is needed, not {type(query).__name__}")
        if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
            raise UserError(f"inputs[{index}].texts: a list of strings is needed")
        return {**value, "query": in_form(query, form), "texts": [in_form(one, form) for one in texts]}

    def apart(self, row: Row, most: int) -> list[Row]:
        return parted(row, "texts", most)

    def together(self, answers: Sequence[Any], most: int, parameters: Mapping[str, Any]) -> Any:
        if len(answers) == 1:
            return answers[0]
        ranked = [{**one, "index": part * most + one["index"]} for part, own in enumerate(answers) for one in own]
        ranked.sort(key=lambda one: -one["score"])  # stable: of equal scores the first text stays first
        return ranked[: parameters.get("top_k")]

    def text(self, row: Row) -> str:
        return str(row["query"])

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        several = [[(row["query"], text) for text in row["texts"] or [""]] for row in rows]
        pairs = [pair for one in several for pair in one]
        read = iter(self.reader.tokenizer.backend_tokenizer.encode_batch_fast(pairs))
        encodings = [[next(read) for _ in one] for one in several]
        return [{"texts": [one.ids for one in own], "kinds": [one.type_ids for one in own]} for own in encodings]

    def encode_target(self, row: Row) -> Any:
        return {name: list(row[name]) for name in ("numbers", "relevance", "known", "grades")}

    def length(self, example: Example) -> int:
        return sum(map(len, example["texts"]))

    def collate(self, examples: Sequence[Example]) -> Batch:
        tokenizer = self.reader.tokenizer
        texts, mask = pad_texts([example["texts"] for example in examples], tokenizer.pad_token_id)
        batch = {"input_ids": texts, "attention_mask": mask}
        if "token_type_ids" in tokenizer.model_input_names:
            batch["token_type_ids"] = pad_texts([example["kinds"] for example in examples], 0)[0]
        if "target" in examples[0]:
            relevance = [example["target"]["relevance"] for example in examples]
            batch["relevance"] = pad_lists(relevance, torch.float32)
            batch["there"] = pad_lists([[1.0] * len(one) for one in relevance], torch.float32)
        return batch

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        return self.reader.from_pretrained(
            AutoModelForSequenceClassification,
            base,
            num_labels=1,
            id2label={0: "relevance"},
            label2id={"relevance": 0},
            ignore_mismatched_sizes=True,  # a base that was a classifier of labels gets a new head
        )

    def open(self, folder: Path) -> "PreTrainedModel":
        return self.reader.from_pretrained(AutoModelForSequenceClassification, folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return head_of(model)

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
        return read_texts(batch, names, lambda texts: model(**texts).logits[:, 0])

    def keep(self, outputs: torch.Tensor, examples: Sequence[Example]) -> list[Output]:
        kept = outputs.float().cpu().numpy()
        return [one[: len(example["texts"])] for one, example in zip(kept, examples, strict=True)]

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        each = torch.nn.functional.binary_cross_entropy_with_logits(outputs, batch["relevance"], reduction="none")
        return (each * batch["there"]).sum(1) / batch["there"].sum(1)

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        for name, value in parameters.items():
            if name not in ("raw_scores", "top_k"):
                raise UserError(f"parameters.{name}: unknown; this task takes raw_scores and top_k")
            if name == "raw_scores" and not isinstance(value, bool):
                raise UserError("parameters.raw_scores: true or false is needed")
            if name == "top_k" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError("parameters.top_k: a whole number from 1 up is needed")
        answers = []
        for logits in outputs:
            scores = logits if parameters.get("raw_scores") else sigmoid(logits)
            order = np.argsort(-logits, kind="stable")[: parameters.get("top_k")]
            answers.append([{"index": int(place), "score": float(scores[place])} for place in order])
        return answers

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        if not len(outputs):
            return {}
        losses = []
        for logits, target in zip(outputs, targets, strict=True):
            grades = dict(zip(target["known"], target["grades"], strict=True))
            wanted = np.array([grades.get(number, 0.0) for number in target["numbers"]]) / self.top
            losses.append(np.mean(np.logaddexp(0, logits) - wanted.clip(max=1) * logits))
        return retrieval.measure(self.rank(outputs, targets)) | {"loss": float(np.mean(losses))}

    def rank(self, outputs: Outputs, targets: Sequence[Any]) -> list[retrieval.Ranked]:
        """What the first stage found for each query, ranked anew; of equal scores the first stage decides."""
        return [
            retrieval.Ranked(
                np.array(target["numbers"])[np.argsort(-one, kind="stable")],
                dict(zip(target["known"], target["grades"], strict=True)),
            )
            for one, target in zip(outputs, targets, strict=True)
        ]

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import search  # a replica, which never measures, does not load scikit-learn

        return search.second_stage_baselines(self.reader, self.options.first_stage)

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import search  # as above

        return search.report_sections(lambda data: self.rank(data.outputs or (), data.targets))

    def signature(self) -> dict[str, Any]:
        text = {"type": "string"}
        asked = {"query": text, "texts": {"type": "array", "items": text, "minItems": 1}}
        columns = dict.fromkeys([*self.reader.columns, *self.pairs.passage.columns], CELL)
        answer = {"index": {"type": "integer"}, "score": {"type": "number"}}
        return {
            "input": {
                "anyOf": [
                    {"type": "object", "properties": asked, "required": list(asked)},
                    {"type": "object", "properties": columns, "required": list(columns)},
                ]
            },
            "parameters": {
                "type": "object",
                "properties": {
                    "raw_scores": {"type": "boolean", "default": False},
                    "top_k": {"type": "integer", "minimum": 1},
                },
                "additionalProperties": False,
            },
            "output": {"type": "array", "items": {"type": "object", "properties": answer, "required": list(answer)}},
        }
