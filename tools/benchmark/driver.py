"""The measuring process: it starts workers, lets them take turns, and keeps what they answer."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.benchmark.cases import KINDS, Case
from tools.benchmark.task import Task
from utils.logging import progress_bar

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
Row = dict[str, Any]


class WorkerFailed(Exception):  # noqa: N818 - one case of many; the others go on
    """A worker could not measure its case; the text says why, in one line."""


class Worker:
    """Context with a process that has prepared ``task`` and repeats it when asked.

    It is in a session of its own, so that Ctrl-C reaches this process alone.

    Attributes:
        provenance: of the code that it runs.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __enter__(self) -> "Worker":
        # a file: a pipe that nobody reads would fill up and stop the worker
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), self.task.root, json.dumps(asdict(self.task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=self.task.root,
            env=_environment(self.task),
            start_new_session=True,
        )
        try:
            self.provenance = self._read()["provenance"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended
            self._process.stdin.close()  # then it ends by itself and tidies up after the case
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def repeat(self) -> Row:
        """Run the case once; ``WorkerFailed`` if that fails."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # reading tells why it ended
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> Row:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        row = json.loads(line) if line else {"error": self._ending()}
        if "error" in row:
            raise WorkerFailed(row["error"])
        return row

    def _ending(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        memory = "; the memory may be full" if code == -9 else ""
        return f"its process ended with exit code {code}{memory}: {said}"


def _environment(task: Task) -> dict[str, str]:
    """Ours, with the threads of a case, and for the CPU without GPUs, which are chosen first."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if task.device == "cpu" else {}
    return {**os.environ, "OMP_NUM_THREADS": str(task.threads), **hidden}


@dataclass
class Measurement:
    """The repetitions of a case by the name of the code that ran, or why there are none."""

    case: Case
    rows: dict[str, list[Row]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What to run and how; ``sides`` are checkouts by name, which take turns."""

    cases: Sequence[Case]
    sides: Mapping[str, Path]
    device: str
    threads: int
    rounds: int
    clock: str
    opts: Sequence[str] = ()
    profiles: bool = False


class Driver:
    """Measures all cases of a plan, one after the other.

    Attributes:
        measurements: what is finished or begun, in order.
        provenance: of the code of each side, as soon as it has run.
        interrupted: whether Ctrl-C ended it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.measurements: list[Measurement] = []
        self.provenance: dict[str, Any] = {}
        self.interrupted = False

    def run(self, keep: Callable[[], None]) -> None:
        """Measure; ``keep`` is called after every case. Ctrl-C ends it and raises nothing."""
        total = sum(self._num_rounds(case) for case in self.plan.cases) * len(self.plan.sides)
        with progress_bar(total=total, unit="repetition", leave=False) as self._bar:
            try:
                for case in self.plan.cases:
                    self._bar.set_description(case.name)
                    self.measurements.append(Measurement(case))
                    self._measure(self.measurements[-1])
                    keep()
            except KeyboardInterrupt:
                self.interrupted = True

    def _num_rounds(self, case: Case) -> int:
        return 1 if KINDS[case.kind].fresh else self.plan.rounds

    def _measure(self, measurement: Measurement) -> None:
        """Prepare all sides, then let them take turns: A B A B."""
        case = measurement.case
        if KINDS[case.kind].fresh:
            for side in self.plan.sides:
                self._take_turns(measurement, [side])
        else:
            self._take_turns(measurement, list(self.plan.sides))

    def _take_turns(self, measurement: Measurement, sides: list[str]) -> None:
        with ExitStack() as stack:
            workers = {}
            for side in sides:
                try:
                    workers[side] = stack.enter_context(Worker(self._task(measurement.case, side)))
                    self.provenance.setdefault(side, workers[side].provenance)
                except WorkerFailed as failure:
                    measurement.failures[side] = str(failure)
            for _ in range(self._num_rounds(measurement.case)):
                for side, worker in workers.items():
                    if side in measurement.failures:
                        continue
                    try:
                        row = worker.repeat()
                        measurement.rows.setdefault(side, []).append(row)
                    except WorkerFailed as failure:
                        measurement.failures[side] = str(failure)
                    self._bar.update()

    def _task(self, case: Case, side: str) -> Task:
        plan, on_device = self.plan, KINDS[case.kind].on_device
        return Task(
            name=case.name,
            kind=case.kind,
            root=str(plan.sides[side]),
            config=case.config,
            precision=case.precision,
            device=plan.device if on_device else "cpu",
            threads=plan.threads if on_device else 1,
            clock=plan.clock,
            opts=tuple(plan.opts),
            profiles=plan.profiles,
        )
