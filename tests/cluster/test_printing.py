"""What a person reads on a terminal."""

import pytest

from cluster.printing import measured


@pytest.mark.parametrize(
    ("headline", "direction", "ours", "said"),
    [
        ("test/auc", "max", 0.8, "verdict: test/auc 0.8000, 0.0500 better than trees, the best baseline"),
        ("test/auc", "max", 0.7, "verdict: test/auc 0.7000, 0.0500 worse than trees, the best baseline"),
        ("test/auc", "max", 0.75, "verdict: test/auc 0.7500, the same as trees, the best baseline"),
        ("test/mae", "min", 0.3, "verdict: test/mae 0.3000, 0.2000 better than majority, the best baseline"),
        ("validation/auc", "max", 0.8, None),
    ],
)
def test_a_run_ends_with_how_it_does_next_to_the_best_baseline(
    headline: str, direction: str, ours: float, said: str | None
) -> None:
    result = {
        "model": "churn",
        "version": 3,
        "metrics": {headline: ours},
        "baselines": {"majority": {"test/auc": 0.5, "test/mae": 0.5}, "trees": {"test/auc": 0.75, "test/mae": 0.75}},
        "data": {"headline": headline, "direction": direction},
    }
    lines = measured(result)
    assert [line for line in lines if line.startswith("verdict")] == ([said] if said else [])
    assert lines[-1] == "next: headrace serve churn"


def test_a_finished_model_that_is_measured_on_other_rows_has_no_verdict() -> None:
    result = {"model": "churn", "metrics": {"data/auc": 0.7, "test/auc": 0.8}, "baselines": {}, "data": {"rows": 5}}
    assert not [line for line in measured(result) if line.startswith(("verdict", "next"))]
