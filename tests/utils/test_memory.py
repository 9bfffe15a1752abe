"""The memory of a process is measured as it is known to use it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system has no /proc"
)
MEGABYTE = 1_000_000
# prints what the process holds before, while and after it has 30 megabytes more
REPORT = """
import os
from utils.memory import own_size, peak_size, present_size
def report():
    print(present_size(os.getpid()), own_size(os.getpid()), peak_size(os.getpid()))
report()
held = b"x" * 30_000_000
report()
del held
report()
"""


def test_a_peak_is_kept_and_the_present_size_falls() -> None:
    # a process of its own: a large one has memory left over that it takes without growing
    root = Path(__file__).parents[2]
    output = subprocess.run(
        [sys.executable, "-c", REPORT], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    before, during, after = ([int(size) for size in line.split()] for line in output.splitlines())
    assert 25 * MEGABYTE < during[0] - before[0] < 40 * MEGABYTE
    assert 25 * MEGABYTE < during[1] - before[1] < 40 * MEGABYTE
    assert after[0] < before[0] + 10 * MEGABYTE
    assert after[2] > during[0] - 5 * MEGABYTE  # Linux counts it roughly
