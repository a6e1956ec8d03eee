"""The models that a fine-tuned one that writes must beat, and what its report shows of its texts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from training.encode import labelled
from training.evaluation import charts
from training.evaluation.evaluate import outputs_of
from training.evaluation.page import Fragment, fragment
from training.evaluation.rouge import rouge_l, words
from training.evaluation.sections import ReportData, Section
from training.tasks.task import Outputs, Task

SHOWN, MOST_CHARACTERS = 9, 600
SEED = 7


def untouched(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """What the base says before it has learned anything; weights that it lacks are drawn from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = task.build(base)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return [outputs_of(task, model, labelled(task, table.to_pylist())) for table in others]


def nearest(task: Task, base: Path, train: pa.Table, others: Sequence[pa.Table]) -> list[Outputs]:
    """The wanted text of the training row whose prompt is most alike: by the cosine of TF-IDF of words and pairs."""
    seen, *unseen = [[task.text(row) for row in table.to_pylist()] for table in (train, *others)]
    answers = [task.encode_target(row)["ids"] for row in train.to_pylist()]
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, tokenizer=words, token_pattern=None)
    neighbours = NearestNeighbors(n_neighbors=1, metric="cosine").fit(features.fit_transform(seen))
    return [
        [
            np.array([0, 0, *answers[place]], dtype=np.float32)
            for place in (
                neighbours.kneighbors(features.transform(texts), return_distance=False)[:, 0] if texts else ()
            )
        ]
        for texts in unseen
    ]


def beside(written: Callable[[Outputs], list[str]]) -> Section:
    """The section that shows what was wanted beside what was written, from the farthest to the nearest."""

    def show(data: ReportData) -> Fragment | None:
        if data.outputs is None or not data.texts or not all(len(output) > 2 for output in data.outputs):
            return None
        said = written(data.outputs)
        near = [rouge_l(target["text"], text) for target, text in zip(data.targets, said, strict=True)]
        places = np.argsort(near, kind="stable")
        chosen = places[np.unique(np.linspace(0, len(places) - 1, SHOWN).round().astype(int))]
        rows = [
            {
                "prompt": charts.clipped(data.texts[place], MOST_CHARACTERS),
                "wanted": charts.clipped(data.targets[place]["text"], MOST_CHARACTERS),
                "said": charts.clipped(said[place], MOST_CHARACTERS),
                "near": near[place],
            }
            for place in chosen.tolist()
        ]
        return fragment("What it writes", "writing", rows=rows, of=len(places))

    return show
