"""What a cluster lacks, and what no job can bring along."""

import pytest

from cluster.errors import UserError
from cluster.requirements import lacking, pins

COMPLETE = {name: pin.removeprefix("==") for name, pin in pins().items()}


def test_a_cluster_as_the_tests_ran_with_lacks_nothing() -> None:
    assert lacking([], "3.11.7", COMPLETE) == []


def test_what_is_missing_is_pinned_with_its_extras() -> None:
    have = {name: version for name, version in COMPLETE.items() if name not in ("optuna", "psycopg")}
    wanted = lacking(["psycopg"], "3.12.1", have)
    assert wanted == [f"optuna{pins()['optuna']}", f"psycopg[binary]{pins().get('psycopg', '>=3.2')}"]
    assert lacking(["psycopg"], "3.12.1", have, "none") == []


@pytest.mark.parametrize(
    ("python", "ray", "message"),
    [
        ("3.9.18", COMPLETE["ray"], "the cluster runs Python 3.9.18 and headrace needs >=3.11"),
        ("3.11.7", "2.49.0", "the cluster runs Ray 2.49.0 and headrace needs ray==2.60"),
    ],
)
def test_a_python_or_a_ray_that_does_not_fit_is_told(python: str, ray: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lacking([], python, COMPLETE | {"ray": ray})
