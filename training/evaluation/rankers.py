"""What finds passages without having learned to: by the words that they share with a query, or by an untouched base.

A ranker is a function ``rank(queries, passages, depth)`` that returns for each query the places of passages, the best
first. Rankers are first stages, sources of hard negatives, and what a trained model must beat.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from transformers import AutoModel

from training.batches import by_length
from training.evaluation.retrieval import DEPTH, Numbers, best, nearest
from training.inputs.text import Reader
from training.models.pooling import Pooling, unit_vectors

Ranker = Callable[[Sequence[str], Sequence[str], int], list[Numbers]]

WORD = re.compile(r"[^\W_]+")
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]+")

K1, B = 1.2, 0.75
"""BM25's saturation of repeated terms and its correction for length, as in Lucene."""

QUERIES_AT_ONCE = 256
READING_BATCH = 64


def terms(text: str) -> list[str]:
    """The words of a text in lower case; a script without spaces as overlapping pairs of characters."""
    found: list[str] = []
    for word in WORD.findall(text.lower()):
        at = 0
        for run in UNSPACED.finditer(word):
            found += [word[at : run.start()]] if run.start() > at else []
            pairs = [run[0][place : place + 2] for place in range(len(run[0]) - 1)]
            found += pairs or [run[0]]
            at = run.end()
        found += [word[at:]] if at < len(word) else []
    return found


def tfidf(queries: Sequence[str], passages: Sequence[str], depth: int = DEPTH) -> list[Numbers]:
    """By the cosine of TF-IDF vectors with sublinear term frequencies."""
    features = TfidfVectorizer(analyzer=terms, sublinear_tf=True)
    try:
        weights = features.fit_transform(passages)
    except ValueError:  # no passage has a word
        return [np.arange(min(depth, len(passages)))] * len(queries)
    return _by_product(features.transform(queries), weights, depth)


def bm25(queries: Sequence[str], passages: Sequence[str], depth: int = DEPTH) -> list[Numbers]:
    """By Okapi BM25 (Robertson and Zaragoza, 2009) with Lucene's idf, which is never negative."""
    counter = CountVectorizer(analyzer=terms)
    try:
        counts = counter.fit_transform(passages).tocsr().astype(np.float64)
    except ValueError:  # as above
        return [np.arange(min(depth, len(passages)))] * len(queries)
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    having = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log(1 + (counts.shape[0] - having + 0.5) / (having + 0.5))
    norms = K1 * (1 - B + B * lengths / lengths.mean())
    repeated = np.repeat(norms, np.diff(counts.indptr))
    counts.data = idf[counts.indices] * counts.data * (K1 + 1) / (counts.data + repeated)
    return _by_product(counter.transform(queries).astype(np.float64), counts, depth)


def _by_product(queries: Any, passages: Any, depth: int) -> list[Numbers]:
    """By the product of sparse vectors."""
    transposed = sparse.csc_matrix(passages.T)
    found: list[Numbers] = []
    for start in range(0, queries.shape[0], QUERIES_AT_ONCE):
        scores = (queries[start : start + QUERIES_AT_ONCE] @ transposed).toarray()
        found += [best(row, depth) for row in scores]
    return found


def by_base(base: Path, reader: Reader, pooling: Pooling) -> Ranker:
    """By the cosine of the vectors that an untouched base gives."""

    def rank(queries: Sequence[str], passages: Sequence[str], depth: int = DEPTH) -> list[Numbers]:
        vectors = embed(base, reader, pooling, [*queries, *passages])
        return [places for _, places, _ in nearest(vectors[: len(queries)], vectors[len(queries) :], depth)]

    return rank


@torch.inference_mode()
def embed(base: Path, reader: Reader, pooling: Pooling, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """The unit vectors that a base gives texts, of shape ``[texts, hidden]``; equal texts are read once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = reader.from_pretrained(AutoModel, base).to(device).eval()
    distinct = list(dict.fromkeys(texts))
    tokens = [one or [reader.tokenizer.pad_token_id] for one in reader.tokens(distinct)]
    found = np.empty((len(distinct), model.config.hidden_size), dtype=np.float32)
    for batch in by_length(np.array(list(map(len, tokens)), dtype=np.int64), READING_BATCH):
        tensors = {name: one.to(device) for name, one in reader.pad([tokens[place] for place in batch]).items()}
        found[batch] = unit_vectors(model, tensors, pooling).cpu().numpy()
    places = {text: place for place, text in enumerate(distinct)}
    return found[[places[text] for text in texts]]


def at_random(seed: int) -> Ranker:
    """In no order at all."""

    def rank(queries: Sequence[str], passages: Sequence[str], depth: int = DEPTH) -> list[Numbers]:
        chance = np.random.default_rng(seed)
        return [chance.permutation(len(passages))[:depth] for _ in queries]

    return rank


RANKERS: dict[str, Ranker] = {"bm25": bm25, "tfidf": tfidf, "random": at_random(7)}
"""Those that need nothing but the texts."""

TITLES = {"bm25": "BM25", "tfidf": "TF-IDF", "base": "Untouched base"}


def others(
    rank: Ranker, queries: Sequence[str], passages: Sequence[str], known: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """For each query the first ``count`` passages of a ranking that are not known to be relevant to it, by number."""
    deepest = count + max(map(len, known), default=0)
    mined = []
    for places, relevant in zip(rank(queries, passages, deepest), known, strict=True):
        out = set(relevant)
        mined.append([number for number in (places + 1).tolist() if number not in out][:count])
    return mined
