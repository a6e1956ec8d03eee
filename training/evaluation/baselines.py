"""The models that a fine-tuned classifier must beat to earn its keep, trained on the same rows.

Each is what a ``Baseline`` of ``training/tasks/task.py`` calls for its outputs, shaped like the model's, so that the
task's own metrics judge both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from training.tasks.task import Example, Outputs, Row, Task

SEED = 7
TOKENS_PER_BATCH = 4096
TERMS = 200_000  # of each kind, so that long texts do not fill the memory; beyond it accuracy no longer rises


class TextClassifier(Protocol):
    """What the baselines of text classification ask of a task besides what every task can do."""

    labels: list[str]

    def text(self, row: Row) -> str:
        """The text of a row, of one column or of several."""
        ...

    def encode_target(self, row: Row) -> int:
        """The index of a row's label."""
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

    The task's metrics ``of_probabilities`` are left out for a baseline that gives none.

    Returns:
        ``{"tfidf": {"validation/accuracy": …, "test/accuracy": …, …}, …}``.
    """
    others = {name: table for name, table in splits.items() if name != "train" and table.num_rows}
    targets = {name: [task.encode_target(row) for row in table.to_pylist()] for name, table in others.items()}
    measured: dict[str, dict[str, float]] = {}
    for baseline_name, baseline in task.baselines.items():
        outputs = baseline.outputs(task, base, splits["train"], list(others.values()))
        measured[baseline_name] = {
            f"{split}/{metric}": value
            for split, one in zip(others, outputs, strict=True)
            for metric, value in task.metrics(one, targets[split]).items()
            if baseline.probabilities or metric not in task.of_probabilities
        }
    return measured


def majority(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Always the most frequent label; its probabilities are the labels' shares, with one row added to each."""
    classifier = _classifier(task)
    targets = [classifier.encode_target(row) for row in train.to_pylist()]
    counts = np.bincount(targets, minlength=len(classifier.labels)) + 1
    logits = np.log(counts / counts.sum()).astype(np.float32)
    return [np.tile(logits, (table.num_rows, 1)) for table in others]


def tfidf(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """A linear SVM on TF-IDF of words, word pairs and character n-grams; the latter carry unspaced scripts.

    Its outputs are margins: they rank labels and are no probabilities.
    """
    classifier = _classifier(task)
    texts, targets = _texts_and_targets(classifier, train)
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=TERMS, token_pattern=r"(?u)\b\w+\b"),
        TfidfVectorizer(ngram_range=(1, 5), sublinear_tf=True, max_features=TERMS, analyzer="char"),
    )
    svm = LinearSVC(random_state=SEED)
    svm.fit(features.fit_transform(texts), targets)
    return [
        _by_label(svm.decision_function(features.transform(unseen)), svm.classes_, classifier)
        for unseen in ([classifier.text(row) for row in table.to_pylist()] for table in others)
    ]


def frozen(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """Logistic regression on the untouched base model's mean-pooled last hidden states."""
    classifier = _classifier(task)
    tables = [table.to_pylist() for table in (train, *others)]
    embeddings = _embeddings(classifier, base, [row for rows in tables for row in rows])
    parts = np.split(embeddings, np.cumsum([len(rows) for rows in tables])[:-1])
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300, random_state=SEED))
    head.fit(parts[0], [classifier.encode_target(row) for row in tables[0]])
    return [_by_label(head.predict_log_proba(part), head.classes_, classifier) for part in parts[1:]]


def _classifier(task: Task) -> TextClassifier:
    return cast(TextClassifier, task)


def _texts_and_targets(task: TextClassifier, table: pa.Table) -> tuple[list[str], list[int]]:
    rows = table.to_pylist()
    return [task.text(row) for row in rows], [task.encode_target(row) for row in rows]


def _by_label(scores: npt.NDArray[Any], classes: Sequence[int], task: TextClassifier) -> Outputs:
    """Scores of the classes that were learned as outputs of all labels; what was never seen ranks last."""
    if scores.ndim == 1:  # scikit-learn gives the second class's margin alone where there are two
        scores = np.stack([-scores, scores], axis=1)
    outputs = np.full((len(scores), len(task.labels)), scores.min(initial=0.0) - 1.0, dtype=np.float32)
    outputs[:, list(classes)] = scores
    return outputs


@torch.inference_mode()
def _embeddings(task: TextClassifier, base: Path, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
    """The mean of each row's last hidden states, of shape ``[rows, hidden]``; equal texts are computed once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transformers_logging.disable_progress_bar()
    model = AutoModel.from_pretrained(base, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
    model = model.to(device).eval()
    first: dict[str, int] = {}
    same = np.array([first.setdefault(task.text(row), len(first)) for row in rows], dtype=np.int64)
    _, distinct = np.unique(same, return_index=True)
    examples = task.encode([rows[index] for index in distinct])
    embeddings = np.empty((len(examples), model.config.hidden_size), dtype=np.float32)
    for places in _batches([task.length(example) for example in examples]):
        batch = task.collate([examples[place] for place in places])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        embeddings[places] = ((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu().numpy()
    return embeddings[same]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of examples in batches of nearly equal lengths and of at most ``TOKENS_PER_BATCH`` padded tokens."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > TOKENS_PER_BATCH:
            batches.append([])  # the first of a batch is its longest, to which the others are padded
        batches[-1].append(place)
    return batches
