"""A sweep at work: as many jobs at a time as there are slots, and the comparison at the end."""

import fcntl
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from engine.comparison import Run, caveats, draw_chart, find_splits, group_runs, to_markdown
from engine.precision import resolve_precision
from tools.study.job import Job
from tools.study.sweep_config import SweepConfig
from utils.cli import Commands
from utils.files import write_text

Slot = Mapping[str, str]  # environment of the jobs that run in it, over that of the sweep


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with the ``run`` that was scored, or with a ``failure``."""

    job: Job
    seconds: float
    run: Run | None = None
    failure: str = ""


def open_slots(sweep: SweepConfig) -> list[Slot]:
    """A slot for each job that may run at a time, with a GPU or some threads to itself."""
    gpus = _gpus()
    if gpus:
        number = len(gpus) if sweep.parallel == "auto" else sweep.parallel
        return [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(number)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    number = (cores or 1) // sweep.threads if sweep.parallel == "auto" else sweep.parallel
    return [{"OMP_NUM_THREADS": str(sweep.threads)}] * max(number, 1)


def _gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(gpu) for gpu in range(count)]


def precisions(done: Iterable[Run], left: Iterable[Job]) -> str:
    """A note if what is ``left`` would be computed in another precision than what is done, or "".

    ``train.precision: auto`` is not the same on every machine.
    """
    device = torch.device("cuda" if _gpus() else "cpu")
    before = {run.results["protocol"].get("precision", "one that is not told") for run in done}
    here = {resolve_precision(job.config.train.precision, device) for job in left}
    if not before or here <= before:
        return ""
    return (
        f"note: what is done was computed in {', '.join(sorted(before))}, what is left would be in "
        f"{', '.join(sorted(here))} on this machine; the comparison will say which is which"
    )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of ``folder``, which is made; ``ValueError`` if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"folder: {folder} cannot be made ({error.strerror}); give the sweep another"
        ) from None
    with (folder / "sweep.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another sweep is at work there; wait for it or stop it"
            ) from None
        yield


def run_jobs(jobs: Sequence[Job], slots: Sequence[Slot], commands: Commands) -> Iterator[Outcome]:
    """Run ``jobs`` in their order, each in the first slot that is free; yield them as they end.

    Once ``commands`` were stopped no other begins.
    """
    free: SimpleQueue[Slot] = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def work(job: Job) -> Outcome | None:
        if commands.stopped:
            return None
        slot = free.get()
        try:
            return _run_job(job, slot, commands)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots)) as pool:
        waiting = {pool.submit(work, job) for job in jobs}
        while waiting:
            # The timeout: a signal that the system gave to another thread is handled in this one.
            ended, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            outcomes = [future.result() for future in ended]
            yield from (outcome for outcome in outcomes if outcome is not None)


def _run_job(job: Job, slot: Slot, commands: Commands) -> Outcome:
    began = time.monotonic()

    def ended(run: Run | None = None, failure: str = "") -> Outcome:
        return Outcome(job, time.monotonic() - began, run, failure)

    try:
        with job.log.open("a", encoding="utf-8") as log:
            for words in job.commands():
                print("$", shlex.join(["python", *words]), file=log, flush=True)
                code = commands.run(words, output=log, environment=os.environ | slot)
                if code:
                    return ended(failure=f"{words[0]} ended with {code}: {_last_line(job.log)}")
        run = job.finished()
    except (OSError, ValueError) as error:
        return ended(failure=str(error))
    return ended(run, "" if run else f"no results of this configuration in {job.results}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()


def compare(sweep: SweepConfig, runs: Sequence[Run], *, command: str, missing: str) -> str:
    """Write ``comparison.md`` and ``comparison.png`` to the sweep's folder; return the table.

    ``missing`` names the jobs that the table lacks.
    """
    folder = Path(sweep.folder)
    methods = group_runs(runs)
    labels = find_splits(methods)
    splits = [label for label in labels if label.rpartition("/")[2] in sweep.splits]
    table = to_markdown(methods, splits)
    notes = [f"not the same for all: {sentence}" for sentence in caveats(methods)]
    notes += [f"missing: {missing}"] if missing else []
    page = [
        f"# {folder.name}",
        f"Mean and, in brackets, lowest and highest seed, in percent, by `{command}`.",
        table,
        "\n".join(f"- {note}" for note in notes),
        "![Scores over the parameters that train outside the head](comparison.png)",
    ]
    draw_chart(methods, splits, folder / "comparison.png")
    write_text(folder / "comparison.md", "\n\n".join(part for part in page if part) + "\n")
    return "\n\n".join([table, *notes])
