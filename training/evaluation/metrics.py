"""What is measured of a model. NumPy and scikit-learn; every formula names its source.

Of a classifier ``outputs`` are unnormalised log-probabilities (logits) of shape ``[n, labels]``, ``targets`` label
indices of shape ``[n]`` and ``labels`` the names that both index.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Targets = Sequence[int] | Integers

BINS = 15
"""Bins of equal width for calibration, as in Guo et al. (2017)."""

CLASSIFICATION = {
    "accuracy": "max",
    "macro_precision": "max",
    "macro_recall": "max",
    "macro_f1": "max",
    "weighted_precision": "max",
    "weighted_recall": "max",
    "weighted_f1": "max",
    "calibration_error": "min",
    "loss": "min",
}
"""The metrics of :func:`classification`, and whether more or less is better."""

RANKED = {"auc": "max", "average_precision": "max", **CLASSIFICATION, "brier": "min"}
"""The metrics of :func:`ranked`."""

ORDINAL = {**CLASSIFICATION, "mae": "min", "quadratic_kappa": "max"}
"""The metrics of :func:`ordinal`."""

MULTILABEL = {
    "micro_f1": "max",
    "macro_f1": "max",
    "micro_precision": "max",
    "micro_recall": "max",
    "average_precision": "max",
    "exact_match": "max",
    "loss": "min",
}
"""The metrics of :func:`multilabel`."""

REGRESSION = {"mae": "min", "rmse": "min", "r2": "max", "loss": "min"}
"""The metrics of :func:`regression`."""

FORECAST = {"mae": "min", "mase": "min", "pinball": "min", "coverage_error": "min", "loss": "min"}
"""The metrics of :func:`forecast`."""

OF_ROWS = frozenset({"accuracy", "exact_match"})
"""Metrics that are a share of the rows, whose interval follows from their number."""

NUMBERS = frozenset({"loss", "perplexity", "mae", "rmse", "r2", "quadratic_kappa", "brier", "mase", "pinball"})
"""Metrics that are read as a number; every other one lies between 0 and 1 and is read in percent."""


def classification(outputs: Floats, targets: Targets, labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, macro and weighted precision, recall and F1, calibration error, and the mean cross-entropy.

    Macro averages are taken over the labels that occur among the targets or the predictions, as scikit-learn does
    when it is given no labels; a precision or recall of 0/0 counts as 0. Weighted averages weigh a label by its
    number of targets. The loss is in nats.

    Returns:
        One number for each name of ``CLASSIFICATION``; nothing where there are no rows.
    """
    from sklearn.metrics import precision_recall_fscore_support  # a replica decodes with this module, unscored

    outputs, truth = _checked(outputs, targets, labels)
    if len(truth) == 0:
        return {}
    predicted = outputs.argmax(axis=1)
    metrics = {"accuracy": float(np.mean(predicted == truth))}
    for average in ("macro", "weighted"):
        scores = precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        for name, score in zip(("precision", "recall", "f1"), scores, strict=False):
            metrics[f"{average}_{name}"] = float(score)
    metrics["calibration_error"] = calibration_error(outputs, truth)
    metrics["loss"] = float(-np.mean(log_probabilities(outputs)[np.arange(len(truth)), truth]))
    return metrics


def ordinal(outputs: Floats, targets: Targets, labels: Sequence[str]) -> dict[str, float]:
    """As :func:`classification`, and how far the likeliest label, which is the answer, lies from the target.

    ``mae`` counts in labels where they are no numbers, else in their own unit. ``quadratic_kappa`` is Cohen's weighted
    kappa ("Weighted kappa", 1968) with squared distances as weights; 0 where it is not defined.

    Returns:
        One number for each name of ``ORDINAL``; nothing where there are no rows.
    """
    from sklearn.metrics import cohen_kappa_score  # as above

    outputs, truth = _checked(outputs, targets, labels)
    if len(truth) == 0:
        return {}
    predicted = outputs.argmax(axis=1)
    values = _places(labels)
    kappa = cohen_kappa_score(truth, predicted, weights="quadratic", labels=range(len(labels)))
    return {
        **classification(outputs, truth, labels),
        "mae": float(np.abs(values[predicted] - values[truth]).mean()),
        "quadratic_kappa": float(np.nan_to_num(kappa)),
    }


def ranked(outputs: Floats, targets: Targets, labels: Sequence[str]) -> dict[str, float]:
    """As :func:`classification`, and how well rows are ranked by the probability of a label.

    Of two labels the last is the one that is looked for. Of more, each is ranked against all others, and the mean is
    taken over those that can be. ``auc`` is the area under the receiver operating characteristic: the
    share of pairs of a row that has the label and one that has it not in which the former is ranked first; one half
    where there is no such pair. ``brier`` is the mean squared distance of the probabilities from the truth, summed over
    labels and halved, which of two labels is the square of one probability's error.

    Returns:
        One number for each name of ``RANKED``; nothing where there are no rows.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # as above

    outputs, truth = _checked(outputs, targets, labels)
    if len(truth) == 0:
        return {}
    has = np.eye(len(labels), dtype=bool)[truth]
    shares = np.exp(log_probabilities(outputs))
    looked_for = [1] if len(labels) == 2 else range(len(labels))
    pairs = [label for label in looked_for if has[:, label].any() and not has[:, label].all()]
    areas = [roc_auc_score(has[:, label], shares[:, label]) for label in pairs]
    occur = [label for label in looked_for if has[:, label].any()]
    precisions = [average_precision_score(has[:, label], shares[:, label]) for label in occur]
    return {
        "auc": float(np.mean(areas)) if areas else 0.5,
        "average_precision": float(np.mean(precisions)) if precisions else 0.0,
        **classification(outputs, truth, labels),
        "brier": float(np.square(shares - has).sum(axis=1).mean() / 2),
    }


def _places(labels: Sequence[str]) -> npt.NDArray[np.float64]:
    try:
        return np.array([float(label) for label in labels])
    except ValueError:
        return np.arange(len(labels), dtype=np.float64)


def multilabel(outputs: Floats, targets: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Precision, recall and F1 over all pairs of row and label, average precision, rows that are right altogether.

    A label is predicted from a probability of one half. ``macro_f1`` is the mean over labels, 0/0 counting as 0;
    ``average_precision`` the mean over the labels that occur; ``loss`` the mean binary cross-entropy in nats.

    Args:
        outputs: logits of shape ``[n, labels]``.
        targets: of the same shape.

    Returns:
        One number for each name of ``MULTILABEL``; nothing where there are no rows.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support  # as above

    if len(targets) == 0:
        return {}
    logits = np.asarray(outputs, dtype=np.float64)
    predicted = logits >= 0
    micro = precision_recall_fscore_support(targets, predicted, average="micro", zero_division=0)
    macro = precision_recall_fscore_support(targets, predicted, average="macro", zero_division=0)
    occur = targets.any(axis=0)
    ranked = average_precision_score(targets[:, occur], logits[:, occur], average="macro") if occur.any() else 0.0
    return {
        "micro_f1": float(micro[2]),
        "macro_f1": float(macro[2]),
        "micro_precision": float(micro[0]),
        "micro_recall": float(micro[1]),
        "average_precision": float(ranked),
        "exact_match": float((predicted == targets).all(axis=1).mean()),
        "loss": float((np.logaddexp(0, logits) - targets * logits).mean()),
    }


def regression(predicted: Floats, truth: Floats, spread: float) -> dict[str, float]:
    """Mean absolute error, root mean squared error, the coefficient of determination, and the loss.

    Args:
        predicted: of shape ``[n]``, in the unit of ``truth``.
        spread: the standard deviation of the training rows; ``loss`` is the mean squared error in units of it.

    Returns:
        One number for each name of ``REGRESSION``; nothing where there are no rows. ``r2`` is 0 where all of ``truth``
        is equal.
    """
    if len(truth) == 0:
        return {}
    squared = float(np.mean((predicted - truth) ** 2))
    variance = float(np.var(truth)) if np.ptp(truth) else 0.0  # equal numbers may differ from their rounded mean
    return {
        "mae": float(np.abs(predicted - truth).mean()),
        "rmse": squared**0.5,
        "r2": 1 - squared / variance if variance else 0.0,
        "loss": squared / spread**2,
    }


def forecast(said: Floats, truth: Floats, scales: Floats, quantiles: Sequence[float]) -> dict[str, float]:
    """How far forecasts lie from what came, each mean taken over all steps whose truth is known.

    ``mae`` is of the median, ``mase`` the same in units of each series' seasonal-naive error on the training rows
    (Hyndman and Koehler, "Another look at measures of forecast accuracy", 2006): below 1 it beats that. ``pinball`` is
    the mean over the quantiles (Koenker and Bassett, "Regression Quantiles", 1978), ``loss`` the same in those units.
    ``coverage_error`` is how far the share of the truth between the outermost quantiles lies from what they promise.

    Args:
        said: of shape ``[windows, horizon, quantiles]``.
        truth: of shape ``[windows, horizon]``; not a number where it is not known.
        scales: of shape ``[windows, 1]``.

    Returns:
        One number for each name of ``FORECAST``; nothing where there are no windows.
    """
    if len(truth) == 0:
        return {}
    known = ~np.isnan(truth)
    off = truth[:, :, None] - said
    wanted = np.asarray(quantiles)
    pinball = np.maximum(wanted * off, (wanted - 1) * off).mean(axis=2)
    error = np.abs(off[:, :, list(quantiles).index(0.5)])
    inside = (truth >= said[:, :, 0]) & (truth <= said[:, :, -1])
    return {
        "mae": float(error[known].mean()),
        "mase": float((error / scales)[known].mean()),
        "pinball": float(pinball[known].mean()),
        "coverage_error": float(abs(inside[known].mean() - (wanted[-1] - wanted[0]))),
        "loss": float((pinball / scales)[known].mean()),
    }


def sigmoid(outputs: Floats) -> npt.NDArray[np.float64]:
    """The logistic function, in double precision and without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(outputs, dtype=np.float64))))


def indicators(targets: Sequence[Sequence[int]], labels: int) -> npt.NDArray[np.bool_]:
    """Lists of label indices as a table of shape ``[n, labels]``."""
    table = np.zeros((len(targets), labels), dtype=bool)
    for row, chosen in enumerate(targets):
        table[row, list(chosen)] = True
    return table


def log_probabilities(outputs: Floats) -> npt.NDArray[np.float64]:
    """The log-softmax of each row, in double precision."""
    shifted = np.asarray(outputs, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def confidences(outputs: Floats) -> npt.NDArray[np.float64]:
    """The probability of the predicted label, for each row."""
    return np.asarray(np.exp(log_probabilities(outputs)).max(axis=1))


def calibration_error(outputs: Floats, targets: Targets, bins: int = BINS) -> float:
    """The expected calibration error: how far confidence and accuracy lie apart, weighted by rows.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3: over the bins ``((m-1)/M, m/M]`` of
    confidence, the sum of ``rows_m / n * |accuracy_m - confidence_m|``.
    """
    filled = [one for one in reliability(outputs, targets, bins) if one["rows"]]
    rows = sum(one["rows"] for one in filled)
    return float(sum(one["rows"] / rows * abs(one["accuracy"] - one["confidence"]) for one in filled))


def reliability(outputs: Floats, targets: Targets, bins: int = BINS) -> list[dict[str, Any]]:
    """The bins of a reliability diagram: ``low``, ``high``, ``rows``, and their mean ``confidence`` and ``accuracy``.

    A bin without rows has ``None`` for both means.
    """
    truth = np.asarray(targets, dtype=np.int64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    if len(truth) == 0:
        return [_bin(edges[index], edges[index + 1], truth, truth) for index in range(bins)]
    confidence = confidences(outputs)
    right = np.asarray(outputs).argmax(axis=1) == truth
    # rounding can lift a confidence above 1, which would fall out of the last bin
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return [
        _bin(edges[index], edges[index + 1], confidence[place == index], right[place == index]) for index in range(bins)
    ]


def per_class(outputs: Floats, targets: Targets, labels: Sequence[str]) -> list[dict[str, Any]]:
    """For every label, in the order of ``labels``: ``rows``, ``predicted``, ``precision``, ``recall`` and ``f1``.

    A label that is never a target has no recall and no F1, one that is never predicted no precision: they are
    ``None``, not 0.
    """
    outputs, truth = _checked(outputs, targets, labels)
    predicted = outputs.argmax(axis=1)
    return [of_label(label, truth == index, predicted == index) for index, label in enumerate(labels)]


def of_label(label: str, truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """One line of :func:`per_class`: whether each row has the label, and whether it was said to."""
    rows, said, right = int(truth.sum()), int(predicted.sum()), int((truth & predicted).sum())
    return {
        "label": label,
        "rows": rows,
        "predicted": said,
        "precision": right / said if said else None,
        "recall": right / rows if rows else None,
        "f1": 2 * right / (rows + said) if rows else None,
    }


def confusion(outputs: Floats, targets: Targets, labels: Sequence[str]) -> Integers:
    """Counts of shape ``[labels, labels]``: row = target, column = prediction."""
    outputs, truth = _checked(outputs, targets, labels)
    size = len(labels)
    return np.bincount(truth * size + outputs.argmax(axis=1), minlength=size * size).reshape(size, size)


def confused_pairs(
    outputs: Floats, targets: Targets, labels: Sequence[str], limit: int | None = None
) -> list[dict[str, Any]]:
    """The pairs of labels that are confused most often: ``target``, ``predicted``, ``rows``, ``share`` of the target's.

    Most rows first; equal ones in the order of ``labels``.
    """
    matrix = confusion(outputs, targets, labels)
    totals = matrix.sum(axis=1)
    wrong = matrix - np.diag(matrix.diagonal())
    pairs = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda pair: -wrong[pair])
    return [
        {
            "target": labels[target],
            "predicted": labels[predicted],
            "rows": int(wrong[target, predicted]),
            "share": float(wrong[target, predicted] / totals[target]),
        }
        for target, predicted in pairs[:limit]
    ]


def confident_errors(outputs: Floats, targets: Targets, limit: int | None = None) -> Integers:
    """The indices of the rows that are wrong, most confident first."""
    truth = np.asarray(targets, dtype=np.int64)
    if len(truth) == 0:
        return truth
    wrong = np.flatnonzero(np.asarray(outputs).argmax(axis=1) != truth)
    order = np.argsort(-confidences(np.asarray(outputs)[wrong]), kind="stable") if len(wrong) else wrong
    return np.asarray(wrong[order][:limit])


def _bin(low: float, high: float, confidence: npt.NDArray[Any], right: npt.NDArray[Any]) -> dict[str, Any]:
    rows = len(confidence)
    return {
        "low": float(low),
        "high": float(high),
        "rows": rows,
        "confidence": float(confidence.mean()) if rows else None,
        "accuracy": float(right.mean()) if rows else None,
    }


def _checked(outputs: Floats, targets: Targets, labels: Sequence[str]) -> tuple[Floats, Integers]:
    truth = np.asarray(targets, dtype=np.int64)
    outputs = np.asarray(outputs).reshape(len(truth), len(labels))
    assert len(truth) == 0 or (truth.min() >= 0 and truth.max() < len(labels)), "targets are indices of labels"
    return outputs, truth
