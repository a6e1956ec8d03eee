"""Imports without the garbage collector, and what it still finds afterwards."""

import gc
import subprocess
import sys
import weakref

import pytest

from cluster.imports import importing


class Ring:
    """Refers to itself, so that the collector alone can free it."""

    def __init__(self) -> None:
        self.ring = self


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_off_in_the_block_and_afterwards_as_before(collecting: bool) -> None:
    if not collecting:
        gc.disable()
    try:
        with pytest.raises(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == collecting
    finally:
        gc.enable()


def test_where_nothing_is_imported_garbage_is_found_as_ever() -> None:
    ring = Ring()
    seen = weakref.ref(ring)
    with importing():
        import json  # noqa: F401
    del ring
    gc.collect()
    assert seen() is None


def test_what_was_imported_is_not_looked_through_again() -> None:
    count = "import gc; from cluster.imports import importing\n"
    count += "with importing():\n    import pydantic, yaml\nprint(gc.get_freeze_count(), len(gc.get_objects()))"
    run = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    frozen, looked_through = map(int, run.stdout.split())
    assert frozen > 10 * looked_through
