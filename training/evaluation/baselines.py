"""The models that a fine-tuned classifier must beat to earn its keep, trained on the same rows.

Each is what a ``Baseline`` of ``training/tasks/task.py`` calls for its outputs, shaped like the model's, so that the
task's own metrics judge both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_union
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from transformers import AutoModel

from training.evaluation import metrics
from training.inputs.text import from_pretrained
from training.mapped import parts, taken
from training.targets import ManyLabels, Number, Ordinal, Target
from training.tasks.task import Example, Output, Outputs, Row, Task

SEED = 7
TOKENS_PER_BATCH = 4096
TERMS = 200_000  # of each kind, so that long texts do not fill the memory; beyond it accuracy no longer rises
TEXTS = 2_000  # whose embeddings are made at once
CHARACTERS = 500_000  # whose TF-IDF is made at once: it takes some two hundred times their own memory

MOST_TEXT = 4_000_000
"""Characters that a baseline of texts learns from; their features take some hundred times their own memory."""

CONSTANTS: dict[str, str] = {
    "single-label": "Most frequent label",
    "ordinal": "Always the median label",
    "multi-label": "Each label as often as in training",
    "regression": "Always the median",
}
"""What :func:`majority` is called for each problem."""


class TextPredictor(Protocol):
    """What the baselines of text tasks ask of a task besides what every task can do."""

    target: Target

    def text(self, row: Row) -> str:
        """The text of a row, of one column or of several."""
        ...

    def encode_target(self, row: Row) -> Any:
        """A row's target, encoded."""
        ...

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Rows as token ids, cut as the model's are."""
        ...

    def length(self, example: Example) -> int:
        """Tokens of an example."""
        ...

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """One padded batch with ``input_ids`` and ``attention_mask``."""
        ...


def measure(task: Task, base: Path, splits: Mapping[str, pa.Table]) -> dict[str, dict[str, float]]:
    """The task's baselines, trained on ``splits["train"]`` and judged on every other split that has rows.

    The task's metrics ``of_probabilities`` are left out for a baseline that gives none. Those ``of_texts`` see the rows
    of :func:`learned_from` alone.

    Returns:
        ``{"tfidf": {"validation/accuracy": …, "test/accuracy": …, …}, …}``.
    """
    others = {name: table for name, table in splits.items() if name != "train" and table.num_rows}
    targets = {
        name: [task.encode_target(row) if task.has_targets else None for row in _rows(table)]
        for name, table in others.items()
    }
    few = taken(splits["train"], learned_from(task, splits["train"]))
    measured: dict[str, dict[str, float]] = {}
    for baseline_name, baseline in task.baselines.items():
        outputs = baseline.outputs(task, base, few if baseline.of_texts else splits["train"], list(others.values()))
        measured[baseline_name] = {
            f"{split}/{metric}": value
            for split, one in zip(others, outputs, strict=True)
            for metric, value in task.metrics(one, targets[split]).items()
            if baseline.probabilities or metric not in task.of_probabilities
        }
    return measured


def learned_from(task: Task, train: pa.Table) -> npt.NDArray[np.int64]:
    """The training rows that a baseline of texts sees: all, or as many at even distances as hold :data:`MOST_TEXT`."""
    characters = sum(len(task.text(row)) for row in _rows(train))
    rows = max(1, train.num_rows * MOST_TEXT // max(characters, MOST_TEXT))
    return np.linspace(0, train.num_rows, rows, endpoint=False).astype(np.int64)


def majority(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """The same for every row: the labels' shares with one row added to each, or what is nearest to all on average."""
    predictor = _predictor(task)
    constant = _constant(predictor.target, _targets(predictor, train))
    return [[constant] * table.num_rows for table in others]


def _constant(target: Target, targets: Sequence[Any]) -> Output:
    if isinstance(target, Number):
        return np.asarray([(np.median(targets) - target.mean) / target.spread], dtype=np.float32)
    if isinstance(target, ManyLabels):
        shares = (metrics.indicators(targets, target.width).sum(axis=0) + 1) / (len(targets) + 2)
        return np.asarray(np.log(shares / (1 - shares)), dtype=np.float32)
    counts = np.bincount(targets, minlength=target.width) + 1
    if isinstance(target, Ordinal):  # the likeliest label is the answer
        counts[int(np.median(targets))] = counts.max() + 1
    return np.asarray(np.log(counts / counts.sum()), dtype=np.float32)


def tfidf(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """A linear model on TF-IDF of words, word pairs and character n-grams; the latter carry unspaced scripts.

    A support vector machine, whose margins rank labels and are no probabilities; for a number ridge regression.
    """
    predictor = _predictor(task)
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=TERMS, token_pattern=r"(?u)\b\w+\b"),
        TfidfVectorizer(ngram_range=(1, 5), sublinear_tf=True, max_features=TERMS, analyzer="char"),
    )
    seen, *unseen = [[predictor.text(row) for row in table.to_pylist()] for table in (train, *others)]
    model = Ridge() if predictor.target.problem == "regression" else LinearSVC(random_state=SEED)
    says = linear(predictor.target, model, features.fit_transform(seen), _targets(predictor, train))
    return [[one for some in _portions(texts) for one in says([features.transform(some)])[0]] for texts in unseen]


def _portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in their order, in portions of at most ``CHARACTERS`` but for a longer text, which comes alone."""
    start = size = 0
    for place, text in enumerate(texts):
        if size and size + len(text) > CHARACTERS:
            yield texts[start:place]
            start, size = place, 0
        size += len(text)
    if texts:
        yield texts[start:]


def frozen(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Logistic (or ridge) regression on the untouched base model's mean-pooled last hidden states."""
    predictor = _predictor(task)
    tables = [table.to_pylist() for table in (train, *others)]
    embeddings = _embeddings(predictor, base, [row for rows in tables for row in rows])
    scaler = StandardScaler().fit(embeddings[: len(tables[0])])
    seen, *unseen = np.split(scaler.transform(embeddings), np.cumsum([len(rows) for rows in tables])[:-1])
    number = isinstance(predictor.target, Number)
    model = Ridge(alpha=10.0) if number else LogisticRegression(C=0.1, max_iter=300, random_state=SEED)
    return linear(predictor.target, model, seen, _targets(predictor, train))(unseen)


def linear(
    target: Target, model: Any, features: Any, targets: Sequence[Any]
) -> Callable[[Sequence[Any]], list[Outputs]]:
    """Fits a linear model of scikit-learn to encoded targets; returns what makes outputs of further features.

    Args:
        model: a regressor for a :class:`Number`, else a classifier with a ``decision_function`` or, where it has them,
            log-probabilities.
    """
    if isinstance(target, Number):
        model.fit(features, (np.asarray(targets) - target.mean) / target.spread)
        return lambda others: [list(model.predict(one).astype(np.float32)[:, None]) for one in others]
    if isinstance(target, ManyLabels):
        several = OneVsRestClassifier(model).fit(features, metrics.indicators(targets, target.width))
        return lambda others: [list(_logits(several.estimators_, one)) for one in others]
    model.fit(features, targets)
    says = getattr(model, "predict_log_proba", model.decision_function)
    return lambda others: [_by_label(says(one), model.classes_, target.width) for one in others]


def _logits(estimators: Sequence[Any], features: Any) -> npt.NDArray[np.float32]:
    """What each label's own classifier says: margins, or the log-odds that a logistic regression's margins are."""
    sides = [
        np.full(features.shape[0], 20.0 * one.predict(features) - 10.0)  # the label is everywhere, or nowhere
        if not hasattr(one, "coef_")
        else one.decision_function(features)
        for one in estimators
    ]
    return np.stack(sides, axis=1).astype(np.float32)


def _predictor(task: Task) -> TextPredictor:
    return cast(TextPredictor, task)


def _targets(predictor: TextPredictor, table: pa.Table) -> list[Any]:
    return [predictor.encode_target(row) for row in _rows(table)]


def _rows(table: pa.Table) -> Iterator[Row]:
    return (row for part in parts(table) for row in part.to_pylist())


def _by_label(scores: npt.NDArray[Any], classes: Sequence[int], width: int) -> Outputs:
    """Scores of the classes that were learned as outputs of all labels; what was never seen ranks last."""
    if scores.ndim == 1:  # scikit-learn gives the second class's margin alone where there are two
        scores = np.stack([-scores, scores], axis=1)
    outputs = np.full((len(scores), width), scores.min(initial=0.0) - 1.0, dtype=np.float32)
    outputs[:, list(classes)] = scores
    return list(outputs)


@torch.inference_mode()
def _embeddings(task: TextPredictor, base: Path, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
    """The mean of each row's last hidden states, of shape ``[rows, hidden]``; equal texts are computed once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = from_pretrained(AutoModel, base).to(device).eval()
    first: dict[str, int] = {}
    same = np.array([first.setdefault(task.text(row), len(first)) for row in rows], dtype=np.int64)
    _, distinct = np.unique(same, return_index=True)
    embeddings = np.empty((len(distinct), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(distinct), TEXTS):
        examples = task.encode([rows[index] for index in distinct[start : start + TEXTS]])
        for places in _batches([task.length(example) for example in examples]):
            batch = task.collate([examples[place] for place in places])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            embeddings[start + np.array(places)] = mean.cpu().numpy()
    return embeddings[same]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of examples in batches of nearly equal lengths and of at most ``TOKENS_PER_BATCH`` padded tokens."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > TOKENS_PER_BATCH:
            batches.append([])  # the first of a batch is its longest, to which the others are padded
        batches[-1].append(place)
    return batches
