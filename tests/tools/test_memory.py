"""The memory of processes is measured as they are known to hold it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.scale_test import PeakMemory, family
from utils.memory import peak_size, present_size

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system has no /proc"
)
MEGABYTE = 1_000_000
# a parent and a child that hold so many megabytes until the input ends
HOLD = """
import subprocess, sys
mine, *theirs = sys.argv[2:]
words = [sys.executable, "-c", sys.argv[1], sys.argv[1], *theirs]
child = subprocess.Popen(words) if theirs else None
held = b"x" * (int(mine) * 1_000_000)
print("ready", flush=True)
sys.stdin.read()
"""


def start(*megabytes: int) -> subprocess.Popen[str]:
    """A process and its descendants, each with so many megabytes, when all have them."""
    words = [sys.executable, "-c", HOLD, HOLD, *map(str, megabytes)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in megabytes:
        assert process.stdout.readline() == "ready\n"
    return process


def test_a_family_is_counted_together_and_its_peaks_stay() -> None:
    process = start(40, 60)
    with PeakMemory(process.pid, interval=0.01) as memory:
        time.sleep(0.2)
        process.communicate()
        before = sum(memory.peaks.values())
        time.sleep(0.1)
    assert 100 * MEGABYTE < before == sum(memory.peaks.values()) < 160 * MEGABYTE
    first, second = memory.peaks.values()
    assert memory.peaks.keys() > {process.pid} and second - first > 15 * MEGABYTE
    assert (peak_size(process.pid), present_size(process.pid), family(process.pid)) == (0, 0, [])


# a fork that waits, as one does between fork and exec, then becomes a small program
FORK = """
import os, sys, time
held = b"x" * 60_000_000
if not os.fork():
    time.sleep(0.3)
    os.execv(sys.executable, [sys.executable, "-c", "input()"])
print("ready", flush=True)
os.wait()
"""


def test_a_program_is_not_counted_with_the_memory_it_was_forked_from() -> None:
    words = [sys.executable, "-c", FORK]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with PeakMemory(process.pid, interval=0.01) as memory:
        time.sleep(1.0)
        during = dict(memory.peaks)
        process.communicate()
    first, second = during.values()
    assert first > 60 * MEGABYTE and second < 40 * MEGABYTE


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
