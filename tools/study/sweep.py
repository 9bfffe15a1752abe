"""Run the jobs of a sweep, as many at a time as there are slots, and compare their results."""

import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from engine.precision import resolve_precision
from tools.study.comparison import (
    Run,
    compare_methods,
    draw_chart,
    find_splits,
    group_runs,
    list_caveats,
)
from tools.study.job import Job
from tools.study.sweep_config import SweepConfig
from utils.cli import Commands
from utils.files import write_text

Slot = Mapping[str, str]  # environment of its jobs, in addition to that of the sweep


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with the ``run`` that was scored, or with a ``failure``."""

    job: Job
    seconds: float
    run: Run | None = None
    failure: str = ""


def run_sweep(sweep: SweepConfig, jobs: Sequence[Job], command: str) -> int:
    """Run the jobs that are not done, then compare all; return the exit code.

    ``command`` is what continues the sweep, for the messages.
    """
    with _lock(Path(sweep.folder)):
        runs = {job.name: run for job in jobs if (run := job.finished_run())}
        to_do = [job for job in jobs if job.name not in runs]
        slots = open_slots(sweep)
        gpus = dict.fromkeys(slot.get("CUDA_VISIBLE_DEVICES", "") for slot in slots)
        device = f"GPU {', '.join(gpus)}" if _visible_gpus() else "the CPU"
        where = f"{sweep.folder} and results/" if sweep.record else sweep.folder
        counts = count_jobs(len(jobs), len(runs))
        print(f"{counts}, {len(slots)} at a time on {device}, in {where}", flush=True)
        if note := _note_on_precision(runs.values(), to_do):
            print(note, flush=True)
        ended: list[Outcome] = []
        with Commands() as commands:
            for outcome in run_jobs(to_do, slots, commands):
                ended.append(outcome)
                rest = "" if commands.stopped else _describe_rest(ended, len(to_do), len(slots))
                took = f"{_format_duration(outcome.seconds)}{rest}"
                result = f"failed: {outcome.failure}"
                if outcome.run:
                    scores = (f"{x} {score['oIoU']:.2f}" for x, score in outcome.run.splits.items())
                    result = f"oIoU {', '.join(scores)}"
                elif commands.stopped:
                    result = "stopped"
                print(f"{outcome.job.name}: {result} ({took})", flush=True)
        runs |= {outcome.job.name: outcome.run for outcome in ended if outcome.run}
        if commands.stopped:
            counts = count_jobs(len(jobs), len(runs))
            print(f"\nstopped; {counts}; to continue: {command}", flush=True)
            return 128 + commands.stopped
        if runs:
            print(f"\n{write_comparison(sweep, jobs, runs, command)}")
            print(f"\nwritten to {sweep.folder}/comparison.md and {sweep.folder}/comparison.png")
    failed = [outcome for outcome in ended if outcome.failure]
    for outcome in failed:
        print(f"failed: {outcome.job.name}, log: {outcome.job.log}", file=sys.stderr)
    return 1 if failed else 0


def open_slots(sweep: SweepConfig) -> list[Slot]:
    """Make a slot, with a GPU or some threads, for each job that may run at a time."""
    gpus = _visible_gpus()
    if gpus:
        number = len(gpus) if sweep.parallel == "auto" else sweep.parallel
        return [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(number)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    number = (cores or 1) // sweep.threads if sweep.parallel == "auto" else sweep.parallel
    return [{"OMP_NUM_THREADS": str(sweep.threads)}] * max(number, 1)


def _visible_gpus() -> list[str]:
    """List the GPUs that may be used, by the names that CUDA_VISIBLE_DEVICES takes."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(gpu) for gpu in range(count)]


def _note_on_precision(done: Iterable[Run], to_do: Iterable[Job]) -> str:
    """Say if ``to_do`` would be computed in another precision than ``done``, else return "".

    ``train.precision: auto`` depends on the machine.
    """
    device = torch.device("cuda" if _visible_gpus() else "cpu")
    before = {run.results["protocol"].get("precision", "an unknown precision") for run in done}
    here = {resolve_precision(job.config.train.precision, device) for job in to_do}
    if not before or here <= before:
        return ""
    return (
        f"note: the finished jobs were computed in {', '.join(sorted(before))}, the others would "
        f"be in {', '.join(sorted(here))} on this machine; the comparison reports which is which"
    )


def _lock(folder: Path) -> AcquireReturnProxy:
    """Make ``folder`` and keep other sweeps out of it until the lock is released."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "sweep.lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder}: another sweep is running there; wait for it or stop it"
        ) from None
    except OSError as error:
        raise ValueError(
            f"folder: cannot write to {folder} ({error.strerror}); give the sweep another folder"
        ) from None


def run_jobs(jobs: Sequence[Job], slots: Sequence[Slot], commands: Commands) -> Iterator[Outcome]:
    """Run ``jobs`` in their order, each in the first free slot; yield them as they end.

    No job begins after ``commands`` were stopped.
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
    started = time.monotonic()
    run, failure = None, ""
    try:
        with job.log.open("a", encoding="utf-8") as log:
            for words in job.commands():
                print("$", shlex.join(["python", *words]), file=log, flush=True)
                code = commands.run(words, output=log, environment=os.environ | slot)
                if code:
                    lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
                    last = next(line for line in reversed(lines) if line.strip())
                    failure = f"{words[0]} ended with {code}: {last.strip()}"
                    break
        if not failure:
            run = job.finished_run()
            failure = "" if run else f"no results of this configuration in {job.results}"
    except (OSError, ValueError) as error:
        failure = str(error)
    return Outcome(job, time.monotonic() - started, run, failure)


def write_comparison(
    sweep: SweepConfig, jobs: Sequence[Job], runs: Mapping[str, Run], command: str
) -> str:
    """Write ``comparison.md`` and ``comparison.png`` to the sweep's folder; return the table."""
    folder = Path(sweep.folder)
    methods = group_runs(runs[job.name] for job in jobs if job.name in runs)
    labels = find_splits(methods)
    splits = [label for label in labels if label.rpartition("/")[2] in sweep.splits]
    table = compare_methods(methods, splits)
    missing = [job.name for job in jobs if job.name not in runs]
    notes = list_caveats(methods) + [f"missing: {', '.join(missing)}"] * bool(missing)
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


def list_jobs(jobs: Sequence[Job]) -> str:
    """Write a line for each job: whether it is done, and the command that trains it."""
    lines, done = [], 0
    for job in jobs:
        state = "started" if (job.folder / "last.pt").is_file() else "to do"
        if job.finished_run():
            state, done = "done", done + 1
        lines.append(f"{state:7} {shlex.join(['python', *job.commands()[0]])}")
    return "\n".join([*lines, count_jobs(len(jobs), done)])


def count_jobs(jobs: int, done: int) -> str:
    return f"{jobs} job{'s' * (jobs != 1)}, {done} done"


def _describe_rest(ended: Sequence[Outcome], jobs: int, slots: int) -> str:
    """Say how many jobs are left and, by the mean time of those that succeeded, for how long."""
    seconds = [outcome.seconds for outcome in ended if outcome.run]
    left = jobs - len(ended)
    if not seconds or not left:
        return f"; {left} to go"
    estimate = sum(seconds) / len(seconds) * left / min(slots, left)
    return f"; {left} to go, about {_format_duration(estimate)}"


def _format_duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
