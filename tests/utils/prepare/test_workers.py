"""Work in processes: in order, with errors as they are, and nobody left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.prepare.workers import SMALL, Workers

ROOT = Path(__file__).parents[3]
MY_PROCESS = "__import__('os').getpid()"


@pytest.mark.parametrize("num", [1, 2])
def test_results_come_in_order(num: int) -> None:
    with Workers(num, 0) as workers:
        assert list(workers.map(abs, range(-40, 0))) == list(range(40, 0, -1))
        assert list(workers.map(abs, [])) == []


def test_little_work_needs_no_process() -> None:
    for num, num_items, is_here in ((None, SMALL - 1, True), (1, 10**6, True), (2, 1, False)):
        with Workers(num, num_items) as workers:
            [process] = workers.map(eval, [MY_PROCESS])
            assert (process == os.getpid()) == is_here


def test_only_a_few_chunks_are_taken_ahead() -> None:
    taken = []

    def chunks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with Workers(2, 0) as workers:
        results = workers.map(abs, chunks())
        for number in range(50):
            assert next(results) == number
            assert len(taken) <= number + 6


@pytest.mark.parametrize("num", [1, 2])
def test_an_error_comes_through_as_it_is(num: int) -> None:
    with Workers(num, 0) as workers, pytest.raises(ValueError) as info:
        list(workers.map(int, ["1", "2", "three"]))
    assert str(info.value) == "invalid literal for int() with base 10: 'three'"


def test_a_process_that_ends_is_one_sentence() -> None:
    with (
        Workers(2, 0) as workers,
        pytest.raises(ValueError, match=r"a worker process ended .* --workers 1"),
    ):
        list(workers.map(os._exit, [3]))


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="0 workers"):
        Workers(0, 10)


def test_ctrl_c_ends_all_of_them() -> None:
    code = (
        "import signal, time; from utils.prepare.workers import Workers\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a background job
        "with Workers(2, 0) as workers:\n"
        "    for _ in workers.map(time.sleep, [0.1] * 1000): print('.', flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == ".\n"
    os.killpg(process.pid, 2)  # a terminal sends it to all
    errors = process.communicate(timeout=20)[1]
    assert errors.count("KeyboardInterrupt") == 1 and process.returncode
    until = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_importing_what_the_workers_run_is_light() -> None:
    modules = "data.datasets data.masks data.store"
    modules += " prepare.annotations prepare.pack"
    modules += " prepare.images prepare.records prepare.verify prepare.workers"
    code = "import sys\n" + "".join(f"import utils.{name}\n" for name in modules.split())
    code += "print(sorted({'torch', 'cv2', 'open_clip'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
