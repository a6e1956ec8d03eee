"""Every number against scikit-learn, or worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

from training.evaluation import intervals, metrics

LABELS = ["a", "b", "c", "d", "never seen"]


def some_outputs(rows: int = 400, seed: int = 3) -> tuple[metrics.Floats, metrics.Integers]:
    chance = np.random.default_rng(seed)
    targets = chance.integers(0, 4, rows)
    outputs = chance.normal(0, 1, (rows, len(LABELS)))
    outputs[np.arange(rows), targets] += 1.5
    outputs[:, 4] = -9
    return outputs.astype(np.float32), targets


def logits(*probabilities: float) -> list[float]:
    return [float(np.log(one)) for one in probabilities]


def test_metrics_equal_those_of_scikit_learn() -> None:
    outputs, targets = some_outputs()
    found = metrics.classification(outputs, targets, LABELS)
    predicted = outputs.argmax(axis=1)
    assert set(found) == set(metrics.CLASSIFICATION)
    assert found["accuracy"] == accuracy_score(targets, predicted)
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(targets, predicted, average=average)
        expected = {f"{average}_precision": precision, f"{average}_recall": recall, f"{average}_f1": f1}
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    shares = np.exp(metrics.log_probabilities(outputs))
    assert found["loss"] == pytest.approx(log_loss(targets, shares, labels=range(5)), abs=1e-9)


def test_a_label_that_is_nowhere_does_not_lower_the_macro_average() -> None:
    outputs = np.array([logits(0.9, 0.05, 0.05), logits(0.1, 0.8, 0.1)])
    assert metrics.classification(outputs, [0, 1], ["a", "b", "nowhere"])["macro_f1"] == 1.0


def test_a_label_that_is_predicted_and_never_true_does() -> None:
    outputs = np.array([logits(0.9, 0.05, 0.05), logits(0.1, 0.1, 0.8)])
    assert metrics.classification(outputs, [0, 0], ["a", "b", "c"])["macro_recall"] == pytest.approx(0.25)


def test_calibration_error_worked_out_by_hand() -> None:
    # 15 bins: 0.9, 0.9 and 0.92 fall into (13/15, 14/15], 0.6 into (8/15, 9/15]
    outputs = np.array([logits(0.9, 0.1), logits(0.9, 0.1), logits(0.08, 0.92), logits(0.6, 0.4)])
    targets = [0, 1, 1, 1]
    expected = 3 / 4 * abs(2 / 3 - (0.9 + 0.9 + 0.92) / 3) + 1 / 4 * abs(0 - 0.6)
    assert metrics.calibration_error(outputs, targets) == pytest.approx(expected, abs=1e-12)


def test_bins_hold_every_row_once_and_say_when_they_are_empty() -> None:
    outputs, targets = some_outputs()
    bins = metrics.reliability(outputs, targets)
    assert len(bins) == 15
    assert sum(one["rows"] for one in bins) == len(targets)
    assert bins[0]["low"] == 0.0 and bins[-1]["high"] == 1.0
    assert all((one["confidence"] is None) == (one["rows"] == 0) for one in bins)
    for one in bins:
        assert one["rows"] == 0 or one["low"] < one["confidence"] <= one["high"] + 1e-9


def test_a_certain_answer_falls_into_the_last_bin() -> None:
    bins = metrics.reliability(np.array([[1000.0, 0.0]]), [0])
    assert bins[-1] == {"low": pytest.approx(14 / 15), "high": 1.0, "rows": 1, "confidence": 1.0, "accuracy": 1.0}


def test_huge_logits_have_a_finite_loss() -> None:
    assert metrics.classification(np.array([[1e4, 0.0]]), [1], ["a", "b"])["loss"] == pytest.approx(1e4)


def test_per_class_equals_scikit_learn_and_leaves_out_what_has_no_value() -> None:
    outputs, targets = some_outputs()
    rows = metrics.per_class(outputs, targets, LABELS)
    expected = precision_recall_fscore_support(targets, outputs.argmax(axis=1), labels=range(4))
    for index, row in enumerate(rows[:4]):
        assert [row["precision"], row["recall"], row["f1"], row["rows"]] == pytest.approx(
            [column[index] for column in expected]
        )
    nothing = {"rows": 0, "predicted": 0, "precision": None, "recall": None, "f1": None}
    assert rows[4] == {"label": "never seen", **nothing}


def test_confusion_equals_scikit_learn() -> None:
    outputs, targets = some_outputs()
    expected = confusion_matrix(targets, outputs.argmax(axis=1), labels=range(5))
    assert np.array_equal(metrics.confusion(outputs, targets, LABELS), expected)


def test_pairs_are_the_matrix_off_its_diagonal_most_first() -> None:
    outputs = np.eye(3)[[1, 1, 2, 0, 1, 2]]
    targets = [0, 0, 0, 0, 1, 1]
    assert metrics.confused_pairs(outputs, targets, ["a", "b", "c"]) == [
        {"target": "a", "predicted": "b", "rows": 2, "share": 0.5},
        {"target": "a", "predicted": "c", "rows": 1, "share": 0.25},
        {"target": "b", "predicted": "c", "rows": 1, "share": 0.5},
    ]
    assert len(metrics.confused_pairs(outputs, targets, ["a", "b", "c"], limit=1)) == 1


def test_errors_come_most_confident_first() -> None:
    outputs = np.array([logits(0.6, 0.4), logits(0.9, 0.1), logits(0.2, 0.8), logits(0.3, 0.7)])
    assert metrics.confident_errors(outputs, [1, 1, 1, 0]).tolist() == [1, 3, 0]
    assert metrics.confident_errors(outputs, [1, 1, 1, 0], limit=1).tolist() == [1]
    assert metrics.confident_errors(outputs, [0, 0, 1, 1]).tolist() == []


def test_an_empty_split_has_no_metrics() -> None:
    nothing = np.zeros((0, 2), dtype=np.float32)
    assert metrics.classification(nothing, [], ["a", "b"]) == {}
    assert metrics.confused_pairs(nothing, [], ["a", "b"]) == []
    assert metrics.confident_errors(nothing, []).tolist() == []
    assert all(one["rows"] == 0 for one in metrics.reliability(nothing, []))


def test_one_row_is_enough() -> None:
    found = metrics.classification(np.array([[2.0, 0.0]], dtype=np.float32), [0], ["a", "b"])
    assert found["accuracy"] == found["macro_f1"] == found["weighted_f1"] == 1.0


def test_wilson_interval_worked_out_by_hand() -> None:
    # z² = 3.8415: (0.8 + 0.19207 ± 1.96 · √(0.016 + 0.0096036)) / 1.38415
    assert intervals.share_interval(0.8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert intervals.share_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert intervals.share_interval(0.0, 0) == (0.0, 1.0)


def test_newcombe_interval_of_a_difference() -> None:
    (low, high), (other_low, other_high) = intervals.share_interval(0.8, 70), intervals.share_interval(0.6, 70)
    below = ((0.8 - low) ** 2 + (other_high - 0.6) ** 2) ** 0.5
    above = ((high - 0.8) ** 2 + (0.6 - other_low) ** 2) ** 0.5
    assert intervals.gain_interval(0.8, 0.6, 70) == pytest.approx((0.2 - below, 0.2 + above))
    least, most = intervals.gain_interval(0.7, 0.7, 50)
    assert least == pytest.approx(-most)


def test_numbers_that_are_all_equal_have_nothing_to_explain() -> None:
    measured = metrics.regression(np.full(3, 0.2), np.full(3, 0.1), 1.0)
    assert np.var(np.full(3, 0.1)) > 0, "by rounding"
    assert measured["r2"] == 0
    assert measured["mae"] == pytest.approx(0.1)
