"""How long our own commands take to start."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tools.benchmark.machine import Clock
from tools.benchmark.task import Repeat, Task

ARGUMENTS = {
    "startup/train-help": ["train.py", "--help"],
    "startup/import-model": ["-c", "import model"],
}


@contextmanager
def process_start(task: Task) -> Iterator[Repeat]:
    """Seconds of a Python that shows the help of ``train.py``, or imports the model."""

    clock = Clock(task)

    def repeat() -> dict[str, float]:
        began = clock()
        command = [sys.executable, *ARGUMENTS[task.name]]
        subprocess.run(command, cwd=task.root, check=True, stdout=subprocess.DEVNULL)
        return {"seconds": clock() - began}

    yield repeat
