"""The parts of a report: each a function from what is known of a run to a piece of HTML, or to nothing.

A task chooses its parts (``Task.report_sections``) and may bring its own; the frame in ``report.py`` knows none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.evaluation import charts, intervals, metrics
from training.evaluation.page import Fragment, fragment, measure, metric_title, rates
from training.tasks.task import Outputs

STEPS = {
    "types": "values of another type",
    "allowed": "values that are not allowed",
    "drop_empty": "empty",
    "drop_duplicates": "exact copies",
    "drop_near_duplicates": "near copies",
    "without_target": "without a label",
    "without_input": "without anything to read",
}
WAYS = {
    "random": "Split at random.",
    "stratify": "Split so that every part has the same shares of {}.",
    "group": "Split so that no {} stands in two parts.",
    "time": "Split by {}: the oldest rows train, the newest test.",
}
IN_SHORT = (
    "accuracy",
    "auc",
    "average_precision",
    "ndcg_at_10",
    "mrr_at_10",
    "recall_at_1",
    "recall_at_10",
    "recall_at_100",
    "precision",
    "recall",
    "micro_f1",
    "macro_f1",
    "weighted_f1",
    "mae",
    "rmse",
    "r2",
    "rouge_l",
    "exact_match",
    "perplexity",
    "calibration_error",
    "loss",
)
MOST_PAIRS, MOST_IN_MAP, MOST_ERRORS, MOST_CHARACTERS = 12, 10, 12, 400


@dataclass(frozen=True)
class ReportData:
    """What is known of a run; whatever is left out leaves its section out.

    Attributes:
        name: the model's name.
        task: the task's name.
        metrics: ``{"test/accuracy": 0.92, …}``.
        baselines: the same for each baseline.
        judged: the split that the verdict is about and that ``outputs``, ``targets`` and ``texts`` belong to.
        outputs: what the model said of each row; of a classifier, logits of shape ``[labels]``.
        targets: the encoded target of each row; of a classifier, label indices.
        shown: for a row's number what a person looks at or hears instead of a text: ``image`` and ``sound`` as
            ``data:`` addresses.
        importance: says of each input column by how much the headline worsens when its values are shuffled.
        history: a mapping for each step, with ``step``, ``loss``, ``learning_rate`` and, at an epoch's end,
            ``validation``: metrics by name.
        data: the content of ``fuse.json``.
        learned_from: how many training rows the baselines of texts learned from.
        temperature: what the model's outputs were divided by, fitted on the validation rows.
        headline: the metric of the verdict.
        direction: whether more (``max``) or less (``min``) of it is better.
        titles: what the baselines are called; one that is not among them is called by its name.
        recipe: the recipe as it may be shown, as YAML.
        seconds: the time that training took.
        memory: the most that a worker held at once, in bytes.
    """

    name: str
    task: str
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    description: str = ""
    version: int | None = None
    created: str = ""
    judged: str = "test"
    headline: str = ""
    direction: str = "max"
    titles: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()
    outputs: Outputs | None = None
    targets: Sequence[Any] = ()
    texts: Sequence[str] = ()
    shown: Callable[[int], Mapping[str, str]] = field(default=lambda index: {})
    importance: Callable[[], Mapping[str, float]] = dict
    history: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    learned_from: int = 0
    temperature: float = 1.0
    recipe: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    memory: int = 0

    @property
    def rows(self) -> int:
        """Rows of the judged split."""
        return len(self.targets) or int(self.data.get("splits", {}).get(self.judged, 0))

    def measured(self, metric: str) -> float | None:
        """The model's metric on the judged split."""
        return self.metrics.get(f"{self.judged}/{metric}")

    def title(self, baseline: str) -> str:
        """What a baseline is called."""
        return self.titles.get(baseline, baseline)

    @property
    def sign(self) -> int:
        """1 where more of the headline is better, else -1."""
        return 1 if self.direction == "max" else -1

    @property
    def measures(self) -> list[str]:
        """The names of everything that was measured, in its order."""
        return list(dict.fromkeys(name.partition("/")[2] for name in self.metrics))

    @property
    def in_short(self) -> list[str]:
        """The measures to begin with: the headline and those that most readers look for."""
        return [name for name in dict.fromkeys([self.headline, *IN_SHORT]) if name in self.measures]


Section = Callable[[ReportData], Fragment | None]


def verdict(data: ReportData) -> Fragment | None:
    """The first sentence: does the model beat the best baseline, by how much, on how many rows, how surely."""
    value = data.measured(data.headline)
    if value is None or not data.rows:
        return fragment("", "verdict", lead="Nothing was held out", rest="so nothing was measured.", facts=[])
    rivals = {name: one[f"{data.judged}/{data.headline}"] for name, one in data.baselines.items() if _has(one, data)}
    best = max(rivals, key=lambda name: data.sign * rivals[name], default=None)
    facts = [(name, data.measured(name)) for name in data.in_short if data.measured(name) is not None]
    if data.headline not in metrics.OF_ROWS:
        return _plain_verdict(data, value, best, rivals, facts)
    low, high = intervals.share_interval(value, data.rows)
    known: dict[str, Any] = {"data": data, "value": value, "low": low, "high": high, "facts": facts}
    if best is None:
        return fragment("", "verdict", lead=f"Right on {value:.1%}", **known)
    least, most = intervals.gain_interval(value, rivals[best], data.rows)
    gain = value - rivals[best]
    lead = "It earns its keep" if least > 0 else "It does not earn its keep" if most < 0 else "No clear gain"
    return fragment("", "verdict", lead=lead, best=data.title(best), gain=gain, least=least, most=most, **known)


def _plain_verdict(
    data: ReportData, value: float, best: str | None, rivals: Mapping[str, float], facts: list[Any]
) -> Fragment:
    """The same for a metric that is no share of rows, and whose interval does not follow from their number."""
    said = f"{metric_title(data.headline)} of {measure(value, data.headline)} on {data.rows:,} {data.judged} rows"
    if best is None:
        return fragment("", "verdict", data=data, lead=said, rest="and no baseline to beat.", facts=facts)
    rival = measure(rivals[best], data.headline)
    gain = data.sign * (value - rivals[best])
    lead = "It earns its keep" if gain > 0 else "It does not earn its keep" if gain < 0 else "No gain"
    way = "more" if data.direction == "max" else "less"
    rest = f"{said}, against {rival} of {data.title(best)}; {way} is better."
    return fragment("", "verdict", data=data, lead=f"{lead}:", rest=rest, facts=facts)


def comparison(data: ReportData) -> Fragment | None:
    """The model next to its baselines: a chart of the verdict's metric, a table of all."""
    models = {data.name: data.metrics, **{data.title(name): one for name, one in data.baselines.items()}}
    rows: list[dict[str, Any]] = [
        {"name": name, "value": one[f"{data.judged}/{data.headline}"], "ours": one is data.metrics}
        for name, one in models.items()
        if _has(one, data)
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: -data.sign * row["value"])
    share = data.headline in metrics.OF_ROWS
    for row in rows:
        row["said"] = measure(row["value"], data.headline)
        row["low"], row["high"] = intervals.share_interval(row["value"], data.rows) if share else (row["value"],) * 2
    alt = f"{metric_title(data.headline)} on {data.judged}: " + ", ".join(
        f"{row['name']} {row['said']}" for row in rows
    )
    splits = [split for split in ("test", "validation") if any(key.startswith(f"{split}/") for key in data.metrics)]
    return fragment(
        "Against the baselines",
        "comparison",
        data=data,
        chart=charts.bars(rows, alt),
        models=sorted(models.items(), key=lambda item: _rank(item[1], data)),
        share=share,
        splits=splits,
    )


def learning(data: ReportData) -> Fragment | None:
    """Loss, validation and learning rate over the steps."""
    if not data.history:
        return None
    drawn = []
    losses = _points(data.history, lambda moment: moment.get("loss"))
    judged = _points(data.history, lambda moment: (moment.get("validation") or {}).get(data.headline))
    unsure = _points(data.history, lambda moment: (moment.get("validation") or {}).get("loss"))
    rates = _points(data.history, lambda moment: moment.get("learning_rate"))
    if losses:
        alt = f"Training loss falls from {losses[0][1]:.3g} to {losses[-1][1]:.3g} over {losses[-1][0]:,.0f} steps."
        drawn.append(charts.curve(losses, "training loss", alt))
    if judged:
        name = metric_title(data.headline).lower()
        told = ", ".join(measure(value, data.headline) for _, value in judged)
        percent_axis = data.headline not in metrics.NUMBERS
        alt = f"Validation {name} after each epoch: {told}."
        drawn.append(
            charts.curve(
                judged,
                f"validation {name}",
                alt,
                dots=True,
                best=percent_axis and data.direction == "max",
                percent=percent_axis,
            )
        )
    if unsure and data.headline != "loss":
        told = ", ".join(f"{value:.3g}" for _, value in unsure)
        drawn.append(charts.curve(unsure, "validation loss", f"Validation loss after each epoch: {told}.", dots=True))
    if rates:
        top = max(value for _, value in rates)
        drawn.append(charts.curve(rates, "learning rate", f"The learning rate peaks at {top:.3g}.", smooth=False))
    return fragment("How it learned", "learning", charts=drawn, epochs=len(judged), steps=data.history[-1]["step"])


def confusion(data: ReportData) -> Fragment | None:
    """The pairs of labels that are confused most, and a map of the labels in them."""
    if data.outputs is None or not data.rows:
        return None
    pairs = metrics.confused_pairs(np.asarray(data.outputs), data.targets, data.labels)
    if not pairs:
        return None
    matrix = metrics.confusion(np.asarray(data.outputs), data.targets, data.labels)
    chosen = _in_map(pairs, data.labels)
    shown = matrix[np.ix_(chosen, chosen)]
    names = [data.labels[place] for place in chosen]
    worst = pairs[0]
    alt = (
        f"Confusion of {len(names)} labels. Most often {worst['target']} is taken for {worst['predicted']}: "
        f"{worst['rows']} rows."
    )
    return fragment(
        "What it mixes up",
        "confusion",
        pairs=pairs[:MOST_PAIRS],
        map=charts.confusion_map(shown, matrix[chosen].sum(axis=1), names, alt),
        part=len(names) < len(data.labels),
        errors=sum(pair["rows"] for pair in pairs),
        kinds=len(pairs),
        data=data,
    )


def confidence(data: ReportData) -> Fragment | None:
    """Whether its confidence is worth believing."""
    if data.outputs is None or not data.rows:
        return None
    bins = metrics.reliability(np.asarray(data.outputs), data.targets)
    error = metrics.calibration_error(np.asarray(data.outputs), data.targets)
    sure = float(metrics.confidences(np.asarray(data.outputs)).mean())
    right = float(np.mean(np.asarray(data.outputs).argmax(axis=1) == np.asarray(data.targets)))
    alt = f"Reliability diagram: mean confidence {sure:.1%}, accuracy {right:.1%}, calibration error {error:.1%}."
    chart = charts.reliability_diagram(bins, alt)
    told = {"chart": chart, "error": error, "data": data, "sure": sure, "right": right}
    return fragment("How far to trust its confidence", "confidence", **told)


def errors(data: ReportData) -> Fragment | None:
    """The rows it got wrong while being most certain: where it is blind, or where a label is wrong."""
    if data.outputs is None or not data.rows or not data.texts:
        return None
    places = metrics.confident_errors(np.asarray(data.outputs), data.targets, MOST_ERRORS)
    if not len(places):
        return None
    sure = metrics.confidences(np.asarray(data.outputs))
    predicted = np.asarray(data.outputs).argmax(axis=1)
    shown = [
        {
            "text": charts.clipped(data.texts[place], MOST_CHARACTERS),
            "shown": data.shown(place),
            "target": data.labels[data.targets[place]],
            "predicted": data.labels[predicted[place]],
            "confidence": float(sure[place]),
        }
        for place in places.tolist()
    ]
    return fragment("Wrong and certain", "errors", errors=shown)


def labels(data: ReportData) -> Fragment | None:
    """Every label's precision, recall and F1; the weakest first."""
    if data.outputs is None or not data.rows:
        return None
    rows = metrics.per_class(np.asarray(data.outputs), data.targets, data.labels)
    return rates("Label", "Rows", f"{len(rows)} labels.", rows)


def sources(data: ReportData) -> Fragment | None:
    """The way of the rows from the sources to the splits, with every loss counted."""
    if not data.data:
        return None
    empty = {"sources": {}, "joins": [], "cleaned": {}, "split": {}, "rejected": {}, "notes": [], "fingerprint": ""}
    report = empty | dict(data.data)
    splits = report.get("splits", {})
    way, _, column = str(report["split"].get("by", "")).partition(" ")
    by = WAYS[way].format(column) if way in WAYS else ""
    total = sum(splits.values())
    return fragment("The data", "sources", report=report, splits=splits, total=total, by=by, steps=STEPS)


def recipe(data: ReportData) -> Fragment | None:
    """What made it."""
    return fragment("The recipe", "recipe", recipe=data.recipe) if data.recipe else None


def making(data: ReportData) -> Fragment | None:
    """When, for how long and with which versions it was made."""
    if not (data.versions or data.seconds or data.created):
        return None
    return fragment("How it was made", "making", data=data)


def many_labels(data: ReportData) -> Fragment | None:
    """Of each label of several: how many rows have it, how many it is said of, and how well."""
    if data.outputs is None or not data.rows:
        return None
    targets = metrics.indicators(data.targets, len(data.labels))
    predicted = np.asarray(data.outputs) >= 0
    rows = [metrics.of_label(label, targets[:, place], predicted[:, place]) for place, label in enumerate(data.labels)]
    return rates("Label", "Rows", f"{len(rows)} labels.", rows)


CLASSIFICATION: tuple[Section, ...] = (
    verdict,
    comparison,
    learning,
    confusion,
    errors,
    confidence,
    labels,
    sources,
    recipe,
    making,
)
"""The sections of a classifier's report, in their order."""


MULTILABEL: tuple[Section, ...] = (verdict, comparison, learning, many_labels, sources, recipe, making)
"""The sections of a model that gives a row any number of labels."""

REGRESSION: tuple[Section, ...] = (verdict, comparison, learning, sources, recipe, making)
"""The sections of a model that says a number."""


def _rank(measured: Mapping[str, float], data: ReportData) -> float:
    """Better ones first, what was not measured last."""
    value = measured.get(f"{data.judged}/{data.headline}")
    return float("inf") if value is None else -data.sign * value


def _has(measured: Mapping[str, float], data: ReportData) -> bool:
    return f"{data.judged}/{data.headline}" in measured


def _points(
    history: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], Any]
) -> list[tuple[float, float]]:
    return [(moment["step"], float(value(moment))) for moment in history if value(moment) is not None]


def _in_map(pairs: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[int]:
    """The labels of the map: all where they are few, else those of the worst pairs."""
    if len(labels) <= MOST_IN_MAP:
        return list(range(len(labels)))
    index = {label: place for place, label in enumerate(labels)}
    chosen: list[int] = []
    for pair in pairs:
        new = [index[pair[side]] for side in ("target", "predicted") if index[pair[side]] not in chosen]
        if len(chosen) + len(new) > MOST_IN_MAP:
            break
        chosen += new
    return chosen
