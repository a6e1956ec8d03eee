"""Work in threads of its own."""

import subprocess
import sys

import pytest

from cluster.threads import apart

HELPERS = """
import time, psutil, torch
from cluster.threads import apart
torch.set_num_threads(3)
process = psutil.Process()
before = process.num_threads()
print(apart(lambda: float(torch.ones(10_000_000).sum())))
until = time.monotonic() + 30
while process.num_threads() > before and time.monotonic() < until:
    time.sleep(0.01)  # the system ends a thread a little after Python has
print(process.num_threads() - before)
float(torch.ones(10_000_000).sum())
print(process.num_threads() - before)
"""


def test_what_is_computed_apart_leaves_no_helpers_behind() -> None:
    out = subprocess.run([sys.executable, "-c", HELPERS], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert out.splitlines() == ["10000000.0", "0", "2"]  # in this thread they stay


def test_what_is_done_apart_raises_what_it_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0)
