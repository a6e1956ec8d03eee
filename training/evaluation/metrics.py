"""What is measured of a classifier. NumPy and scikit-learn; every formula names its source.

Everywhere ``outputs`` are unnormalised log-probabilities (logits) of shape ``[n, labels]``, ``targets`` label indices
of shape ``[n]`` and ``labels`` the names that both index.
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
    matrix = confusion(outputs, truth, labels)
    rows, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    return [
        {
            "label": label,
            "rows": int(rows[index]),
            "predicted": int(predicted[index]),
            "precision": float(right[index] / predicted[index]) if predicted[index] else None,
            "recall": float(right[index] / rows[index]) if rows[index] else None,
            "f1": float(2 * right[index] / (rows[index] + predicted[index])) if rows[index] else None,
        }
        for index, label in enumerate(labels)
    ]


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


def share_interval(share: float, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share seen on ``rows`` rows; 95 % for the ``z`` given.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    if rows == 0:
        return 0.0, 1.0
    spread = z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    middle, scale = share + z**2 / (2 * rows), 1 + z**2 / rows
    return float(max(0.0, (middle - spread) / scale)), float(min(1.0, (middle + spread) / scale))


def gain_interval(share: float, other: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of ``share - other``, both seen on ``rows`` rows.

    Newcombe, "Interval Estimation for the Difference Between Independent Proportions" (1998), method 10. Two models
    on the same rows tend to be right together, which makes the true interval narrower: this one errs on the safe side.
    """
    (low, high), (other_low, other_high) = share_interval(share, rows), share_interval(other, rows)
    gain = share - other
    below = np.sqrt((share - low) ** 2 + (other_high - other) ** 2)
    above = np.sqrt((high - share) ** 2 + (other - other_low) ** 2)
    return float(gain - below), float(gain + above)


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
