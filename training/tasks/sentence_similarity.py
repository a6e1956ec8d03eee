"""Sentence similarity: texts as unit vectors, near each other where they belong together. For search and matching."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoModel

from cluster.errors import UserError
from cluster.settings import Count, Strict
from training.evaluation import retrieval
from training.families.retrieval import Pairs, Relevance, pad_lists, pad_texts, parted, read_texts
from training.inputs.text import CELL, in_form
from training.models import pooling
from training.models.pooling import Pooling
from training.recipe import Model
from training.tasks.task import Baseline, Batch, Example, Output, Outputs, Row, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.evaluation.sections import Section

QUESTIONS = pa.schema(
    {
        "source_sentence": pa.string(),
        "sentences": pa.list_(pa.string()),
        "numbers": pa.list_(pa.int64()),
        "known": pa.list_(pa.int64()),
        "grades": pa.list_(pa.float64()),
    }
)
"""A question row. To learn from: a query, its passage and the negatives with their ``numbers``. To measure: a query
with what is ``known`` to be relevant to it, or a passage, as the source sentence, with its number."""

SEED = 7


class Options(Strict):
    """How it learns, and against what."""

    scale: float = Field(20.0, gt=0, description="What cosines are multiplied by before the softmax.")
    symmetric: bool = Field(False, description="Also learn to find the query of a passage.")
    hard_negatives: int = Field(
        0,
        ge=0,
        le=16,
        description="Passages of the corpus beside each pair that look relevant and are not known to be.",
    )
    mined_with: Literal["bm25", "tfidf", "base", "random"] = Field("bm25", description="What finds the hard negatives.")
    pooling: Pooling | None = Field(
        None, description="How tokens become one vector. Default: as the base does, or their mean."
    )
    validation_passages: Count | None = Field(
        None,
        ge=1,
        description="Passages that validation ranks besides the relevant ones, drawn at random. Default: all.",
    )


class SentenceSimilarity(Task):
    """Learns from pairs of texts that belong together, each against the passages of the whole batch.

    Attributes:
        pairs: reads the columns.
        options: the recipe's.
        pooling: how tokens become one vector.
    """

    name: ClassVar[str] = "sentence-similarity"
    roles: ClassVar[dict[str, str]] = {
        "query": "the column or columns of the text that is asked with",
        "passage": "those of the text that belongs to it",
    }
    optional_roles: ClassVar[dict[str, str]] = {"negative": "those of a text that does not, though it may look so"}
    compared_roles: ClassVar[frozenset[str] | None] = frozenset({"query"})  # a passage may answer many queries
    options_known: ClassVar[type[Strict]] = Options
    target_needed: ClassVar[bool] = False
    corpus_read: ClassVar[bool] = True
    lone_answer: ClassVar[bool] = True
    new_head: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True
    metrics_known: dict[str, str] = retrieval.RETRIEVAL
    headline: str = "ndcg_at_10"
    of_probabilities: frozenset[str] = frozenset({"loss"})

    def __init__(self, pairs: Pairs, options: Options, pooling: Pooling) -> None:
        self.pairs, self.options, self.pooling = pairs, options, pooling
        self.base: Path | None = None  # where negatives are mined, which is before anything is kept

    @property
    def has_targets(self) -> bool:
        return True  # a row's place in the corpus, and what is relevant to it

    # --- made from data, kept in a folder -----------------------------------------------------------------------

    @classmethod
    def learn(cls, model: Model, base: Path, splits: Mapping[str, pa.Table], *, unicode: str = "none") -> Self:
        options = Options.model_validate(model.options)
        pairs = Pairs.learn(model, base, model.max_length or pooling.longest_of(base), unicode)
        task = cls(pairs, options, options.pooling or pooling.pooling_of(base))
        task.base = base
        return task

    @classmethod
    def load(cls, settings: dict[str, Any], folder: Path) -> Self:
        return cls(Pairs.load(settings["pairs"], folder), Options(**settings["options"]), settings["pooling"])

    def save(self, folder: Path) -> dict[str, Any]:
        pooling.describe(folder, self.pooling, self.pairs.query.max_length)
        return {"pairs": self.pairs.save(folder), "options": self.options.model_dump(), "pooling": self.pooling}

    # --- rows to questions ----------------------------------------------------------------------------------------

    def questions(self, splits: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        every = self.pairs.collect(splits.values())
        return {
            name: pa.Table.from_pylist(
                list(self._pairs(table, every) if name == "train" else self._judged(name, table, every)),
                schema=QUESTIONS,
            )
            for name, table in splits.items()
            if name != "corpus"
        }

    def _pairs(self, table: pa.Table, every: Relevance) -> Iterator[Row]:
        """Each pair that belongs together once, with its negatives."""
        seen: dict[tuple[str, int], int] = {}
        for row in table.to_pylist():
            query, number = self.pairs.query.text(row), every.number(self.pairs.passage.text(row))
            if number in every.grades.get(query, {}):
                bad = every.number(self.pairs.negative.text(row)) if self.pairs.negative else 0
                seen.setdefault((query, number), 0 if bad in every.grades[query] else bad)
        queries = list(dict.fromkeys(query for query, _ in seen))
        mined = dict(zip(queries, self._mined(queries, every), strict=True))
        for (query, number), bad in seen.items():
            numbers = [number, *([bad] if bad else []), *(one for one in mined[query] if one != bad)]
            known, grades = every.known(query)
            yield {
                "source_sentence": query,
                "sentences": [every.passages[one - 1] for one in numbers],
                "numbers": numbers,
                "known": known,
                "grades": grades,
            }

    def _mined(self, queries: Sequence[str], every: Relevance) -> list[list[int]]:
        """Hard negatives of each query. Whoever loads a task has its training pairs encoded already, and needs none."""
        if not self.options.hard_negatives or self.base is None:
            return [[] for _ in queries]
        from training.evaluation import rankers  # a replica, which mines nothing, does not load scikit-learn

        query = self.pairs.query
        rank = rankers.RANKERS.get(self.options.mined_with) or rankers.by_base(self.base, query, self.pooling)
        known = [every.known(one)[0] for one in queries]
        return rankers.others(rank, queries, every.passages, known, self.options.hard_negatives)

    def _judged(self, split: str, table: pa.Table, every: Relevance) -> Iterator[Row]:
        """The queries of a held out split and the passages among which they are to find theirs."""
        own = self.pairs.collect([table])
        empty: Row = {"sentences": [], "numbers": [], "known": [], "grades": []}
        relevant: set[int] = set()
        for query in own.grades:
            known, grades = every.known(query)
            relevant.update(known)
            yield {**empty, "source_sentence": query, "known": known, "grades": grades}
        if own.grades:
            shown = range(1, len(every.passages) + 1)
            most = self.options.validation_passages
            if split == "validation" and most is not None and most < len(shown):
                shown = sorted(relevant.union(random.Random(SEED).sample(shown, most)))  # type: ignore[assignment]
            for number in shown:
                yield {**empty, "source_sentence": every.passages[number - 1], "numbers": [number]}

    # --- rows to tensors: shared by training and serving ----------------------------------------------------------

    def rows(self, inputs: Sequence[Any]) -> list[Row]:
        return [self._row(index, value) for index, value in enumerate(inputs)]

    def _row(self, index: int, value: Any) -> Row:
        form = self.pairs.query.unicode
        if isinstance(value, str):
            return {"source_sentence": in_form(value, form)}
        if not isinstance(value, Mapping):
            raise UserError(f"inputs[{index}]: a string or an object is needed, not {type(value).__name__}")
        if "source_sentence" not in value:
            return self._row_of_columns(index, value)
        source, sentences = value["source_sentence"], value.get("sentences")
        if not isinstance(source, str):
            raise UserError(f"inputs[{index}].source_sentence: a string is needed, not {type(source).__name__}")
        if not isinstance(sentences, list) or not sentences or not all(isinstance(one, str) for one in sentences):
            raise UserError(f"inputs[{index}].sentences: a list of strings is needed, at least one")
        told = {**value, "source_sentence": in_form(source, form)}
        return {**told, "sentences": [in_form(sentence, form) for sentence in sentences]}

    def _row_of_columns(self, index: int, value: Mapping[str, Any]) -> Row:
        """The recipe's own columns: a pair to compare, or a query or a passage to embed."""
        readers = [self.pairs.query, self.pairs.passage]
        there = [reader for reader in readers if set(reader.columns) & value.keys()] or [self.pairs.query]
        first, *rest = [reader.text(reader.row(index, value)) for reader in there]
        return {"source_sentence": first, "sentences": rest}

    def apart(self, row: Row, most: int) -> list[Row]:
        return parted(row, "sentences", most)

    def together(self, answers: Sequence[Any], most: int, parameters: Mapping[str, Any]) -> Any:
        return answers[0] if len(answers) == 1 else [score for scores in answers for score in scores]

    def text(self, row: Row) -> str:
        return str(row["source_sentence"])

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        texts = [[row.get("source_sentence") or "", *(row.get("sentences") or ())] for row in rows]
        flat = iter(self.pairs.query.tokens([text for several in texts for text in several]))
        nothing = [self.pairs.query.tokenizer.pad_token_id]
        return [{"texts": [next(flat) or nothing for _ in several]} for several in texts]

    def encode_target(self, row: Row) -> Any:
        return {name: list(row[name]) for name in ("numbers", "known", "grades")}

    def length(self, example: Example) -> int:
        return sum(map(len, example["texts"]))

    def collate(self, examples: Sequence[Example]) -> Batch:
        texts, mask = pad_texts([example["texts"] for example in examples], self.pairs.query.tokenizer.pad_token_id)
        batch = {"input_ids": texts, "attention_mask": mask}
        if "target" in examples[0]:
            for name in ("numbers", "known"):
                batch[name] = pad_lists([example["target"][name] for example in examples], torch.int64)
        return batch

    # --- the model ------------------------------------------------------------------------------------------------

    def build(self, base: Path) -> "PreTrainedModel":
        model = self.pairs.query.from_pretrained(AutoModel, base)
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # it reads nothing of ours: no gradient would ever reach its weights
        return model

    def open(self, folder: Path) -> "PreTrainedModel":
        return self.build(folder).eval()

    def head(self, model: "PreTrainedModel") -> Sequence[torch.nn.Module]:
        return []

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return read_texts(
            batch, ("input_ids", "attention_mask"), lambda texts: pooling.unit_vectors(model, texts, self.pooling)
        )

    def keep(self, outputs: torch.Tensor, examples: Sequence[Example]) -> list[Output]:
        kept = outputs.float().cpu().numpy()
        return [one[: len(example["texts"])] for one, example in zip(kept, examples, strict=True)]

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Multiple negatives ranking (Henderson et al., 2017): each query's passage against those of the whole batch.

        A passage that is known to be relevant to a query is none of its negatives, and one that stands in the batch
        several times counts once.
        """
        rows = torch.arange(len(outputs), device=outputs.device)
        candidates, numbers = outputs[:, 1:].flatten(0, 1), batch["numbers"].flatten()
        own = rows * batch["numbers"].shape[1]
        scores = self.options.scale * outputs[:, 0] @ candidates.T
        relevant = (numbers[None, :, None] == batch["known"][:, None, :]).any(-1)
        repeated = (numbers[None] == numbers[:, None]).tril(-1).any(1)
        out = relevant | repeated | (numbers == 0)
        out[rows, own] = False
        loss = torch.nn.functional.cross_entropy(scores.masked_fill(out, -torch.inf), own, reduction="none")
        if not self.options.symmetric:
            return loss
        out = relevant[:, own].T.clone()
        out[rows, rows] = False
        back = scores[:, own].T.masked_fill(out, -torch.inf)
        return (loss + torch.nn.functional.cross_entropy(back, rows, reduction="none")) / 2

    # --- outputs to answers ---------------------------------------------------------------------------------------

    def decode(self, outputs: Outputs, examples: Sequence[Example], parameters: Mapping[str, Any]) -> list[Any]:
        for name, value in parameters.items():
            if name not in ("normalize", "truncate"):
                raise UserError(f"parameters.{name}: unknown; this task takes normalize and truncate")
            if value is not True:
                raise UserError(f"parameters.{name}: only true is to be had: vectors have length 1, long texts are cut")
        return [(one[0] if len(one) == 1 else one[1:] @ one[0]).tolist() for one in outputs]

    def metrics(self, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
        rankings, losses = self.rank(outputs, targets)
        return retrieval.measure(rankings) | ({"loss": float(np.mean(losses))} if losses else {})

    def rank(self, outputs: Outputs, targets: Sequence[Any]) -> tuple[list[retrieval.Ranked], list[float]]:
        """What each query finds, in the order of the rows, and its loss against the whole corpus.

        A baseline that has no vectors says of a query the numbers of passages, best first, and gives no loss.
        """
        passages = [place for place, target in enumerate(targets) if target["numbers"]]
        queries = [place for place, target in enumerate(targets) if not target["numbers"]]
        grades = [dict(zip(targets[place]["known"], targets[place]["grades"], strict=True)) for place in queries]
        if not queries or outputs[queries[0]].ndim == 1:
            found = [outputs[place].astype(np.int64) for place in queries]
            return [retrieval.Ranked(one, known) for one, known in zip(found, grades, strict=True)], []
        numbers = np.array([targets[place]["numbers"][0] for place in passages])
        place_of = {number: place for place, number in enumerate(numbers.tolist())}
        asking, there = [np.concatenate([outputs[place] for place in places]) for places in (queries, passages)]
        rankings, losses = [], []
        for query, places, scores in retrieval.nearest(asking, there):
            rankings.append(retrieval.Ranked(numbers[places], grades[query]))
            losses.append(retrieval.contrast(self.options.scale * scores, [place_of[one] for one in grades[query]]))
        return rankings, losses

    @property
    def baselines(self) -> dict[str, Baseline]:
        from training.evaluation import search  # a replica, which never measures, does not load scikit-learn

        return search.named_baselines()

    @property
    def report_sections(self) -> Sequence["Section"]:
        from training.evaluation import search  # as above

        return search.report_sections(lambda data: self.rank(data.outputs or (), data.targets)[0])

    def signature(self) -> dict[str, Any]:
        text, number = {"type": "string"}, {"type": "number"}
        compared = {"source_sentence": text, "sentences": {"type": "array", "items": text, "minItems": 1}}
        columns = dict.fromkeys([*self.pairs.query.columns, *self.pairs.passage.columns], CELL)
        either = [{"required": list(reader.columns)} for reader in (self.pairs.query, self.pairs.passage)]
        yes = {"type": "boolean", "const": True}
        return {
            "input": {
                "anyOf": [
                    text,
                    {"type": "object", "properties": compared, "required": list(compared)},
                    {"type": "object", "properties": columns, "anyOf": either},
                ]
            },
            "parameters": {
                "type": "object",
                "properties": {"normalize": yes, "truncate": yes},
                "additionalProperties": False,
            },
            "output": {"type": "array", "items": number},
        }
