"""Work in processes: in order, with errors as they are, and no process is left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.prepare.workers import FEW_ITEMS, start_workers

ROOT = Path(__file__).parents[3]


def test_two_processes_do_as_one_and_take_a_few_chunks_ahead() -> None:
    taken = []

    def chunks() -> Iterator[str]:
        for number in range(1000):
            taken.append(number)
            yield str(number)

    with start_workers(2, 0) as run:
        results = run(int, chunks())
        for number in range(50):
            assert next(results) == number
            assert len(taken) <= number + 6
        assert list(run(abs, [])) == []
        with pytest.raises(ValueError, match=r"^invalid literal for int.* 'three'$"):
            list(run(int, ["1", "2", "three"]))


@pytest.mark.parametrize(("num", "num_items"), [(None, FEW_ITEMS - 1), (1, 10**6)])
def test_little_work_needs_no_process(num: int | None, num_items: int) -> None:
    with start_workers(num, num_items) as run:
        assert list(run(lambda _: os.getpid(), [0])) == [os.getpid()]


def test_a_process_that_ends_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="--workers 1"), start_workers(2, 0) as run:
        list(run(os._exit, [3]))


def test_ctrl_c_ends_all_of_them() -> None:
    code = (
        "import signal, time; from utils.prepare.workers import start_workers\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a background job
        "with start_workers(2, 0) as run:\n"
        "    for _ in run(time.sleep, [0.1] * 1000): print('.', flush=True)"
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


def test_importing_what_the_workers_run_is_light(demo_root: Path) -> None:
    modules = "data.store prepare.images prepare.pack prepare.verify"
    code = "import sys\n" + "".join(f"import utils.{name}\n" for name in modules.split())
    code += (
        "print(sorted({'torch', 'cv2', 'open_clip'} & set(sys.modules)))\n"
        "from utils.data.dataset import ReferDataset\n"
        f"dataset = ReferDataset({str(demo_root)!r}, 'demo', 'train', image_size=32)\n"
        "print(dataset[0]['ids'].shape, 'open_clip' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\ntorch.Size([17]) False\n"
