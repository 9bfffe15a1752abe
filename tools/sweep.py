"""Train and test methods x overrides x seeds, several at a time; compare them: a table and a chart.

Give the same command again after a stop or a failure: what is done is skipped, what was begun goes
on. With `record: true`, what has a record in results/ is done, whatever became of its folder. Each
GPU has a run to itself; without any, runs share the cores. Ctrl-C and SIGTERM let those that run
save first.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tools.study.job import Job
    from tools.study.sweep import Outcome, Slot
    from tools.study.sweep_config import SweepConfig

EXAMPLE = """examples:
  python tools/sweep.py sweeps/demo.yaml --dry-run
  python tools/sweep.py sweeps/demo.yaml

all keys of a sweep, of which only configs and splits are needed:
  configs:                      # a path, or {config: PATH, name: ROW, opts: {section.key: value}}
    - config/demo/frozen.yaml
    - {config: config/demo/etris.yaml, name: etris_32, opts: {model.bridges.0.dim: 32}}
  seeds: [0, 1]
  opts: {train.max_steps: 600, train.max_minutes: null}   # over those of every configuration
  overrides: {slow: {train.lr: 1e-4}, fast: {train.lr: 1e-3}}   # rows frozen.slow, frozen.fast, ...
  splits: [val, testA, testB]
  folder: runs/sweep-mine       # default: runs/sweep-<name of the file>
  parallel: auto                # or a number; auto: one per GPU, or per `threads` cores of a CPU
  threads: 1                    # of each run on a CPU
  record: false                 # true: keep each in results/ as <folder's name>-NAME-seedN.json

The folder gets NAME-seedN/ (a run, its results in test/) and NAME-seedN.log for each, then
comparison.md and comparison.png. Paths count from the project's folder."""


def describe(jobs: Sequence["Job"]) -> str:
    """A line for each job: whether it is done, and the command that trains it."""
    lines, done = [], 0
    for job in jobs:
        begun = (job.folder / "last.pt").is_file()
        state = "done" if job.finished() else "begun" if begun else "to do"
        done += state == "done"
        lines.append(f"{state:6} {shlex.join(['python', *job.commands()[0]])}")
    return "\n".join([*lines, _counts(len(jobs), done)])


def run_sweep(sweep: "SweepConfig", jobs: Sequence["Job"], command: str) -> int:
    """Do what is not done yet, then compare; ``command`` goes on with it. Return the exit code."""
    from tools.study.sweep import alone_in, compare, open_slots, precisions, run_jobs
    from utils.cli import Commands

    with alone_in(Path(sweep.folder)):
        runs = {job.name: run for job in jobs if (run := job.finished())}
        left = [job for job in jobs if job.name not in runs]
        slots = open_slots(sweep)
        where = f"{sweep.folder} and results/" if sweep.record else sweep.folder
        print(f"{_counts(len(jobs), len(runs))}, {_parallel(slots)}, in {where}", flush=True)
        if note := precisions(runs.values(), left):
            print(note, flush=True)
        ended: list[Outcome] = []
        with Commands() as commands:
            for outcome in run_jobs(left, slots, commands):
                ended.append(outcome)
                to_do = len(left) - len(ended)
                print(_line(outcome, commands.stopped, _rest(ended, to_do, len(slots))), flush=True)
        runs |= {outcome.job.name: outcome.run for outcome in ended if outcome.run}
        if commands.stopped:
            print(f"\nstopped; {_counts(len(jobs), len(runs))}; to go on: {command}", flush=True)
            return 128 + commands.stopped
        missing = [job.name for job in jobs if job.name not in runs]
        if runs:
            ordered = [runs[job.name] for job in jobs if job.name in runs]
            print(f"\n{compare(sweep, ordered, command=command, missing=', '.join(missing))}")
            print(f"\nwritten to {sweep.folder}/comparison.md and {sweep.folder}/comparison.png")
    failed = [outcome for outcome in ended if outcome.failure]
    for outcome in failed:
        print(f"failed: {outcome.job.name}, log: {outcome.job.log}", file=sys.stderr)
    return 1 if failed else 0


def _counts(jobs: int, done: int) -> str:
    return f"{jobs} job{'s' * (jobs != 1)}, {done} done"


def _parallel(slots: Sequence["Slot"]) -> str:
    gpus = [slot["CUDA_VISIBLE_DEVICES"] for slot in slots if "CUDA_VISIBLE_DEVICES" in slot]
    where = f"GPU {', '.join(dict.fromkeys(gpus))}" if gpus else "the CPU"
    return f"{len(slots)} at a time on {where}"


def _line(outcome: "Outcome", stopped: int, rest: str) -> str:
    """What became of a job, how long it took, and the ``rest`` unless it was stopped."""
    if outcome.run:
        scores = (f"{label} {score['oIoU']:.2f}" for label, score in outcome.run.splits.items())
        told = f"oIoU {', '.join(scores)}"
    else:
        told = "stopped" if stopped else f"failed: {outcome.failure}"
    return f"{outcome.job.name}: {told} ({_duration(outcome.seconds)}{'' if stopped else rest})"


def _rest(ended: Sequence["Outcome"], to_do: int, slots: int) -> str:
    """How many jobs are left and, from the mean of those that succeeded, for how long."""
    seconds = [outcome.seconds for outcome in ended if outcome.run]
    if not seconds or not to_do:
        return f"; {to_do} to go"
    left = sum(seconds) / len(seconds) * to_do / min(slots, to_do)
    return f"; {to_do} to go, about {_duration(left)}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="YAML file of the sweep")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the jobs and what is done, and run nothing"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    spec = arguments.spec.resolve()
    os.chdir(ROOT)  # configs name weights and data from there
    spec = spec.relative_to(ROOT) if spec.is_relative_to(ROOT) else spec
    try:
        from tools.study.job import plan
        from tools.study.sweep_config import load_sweep

        sweep = load_sweep(spec)
        jobs = plan(sweep, spec)
        if arguments.dry_run:
            print(describe(jobs))
            return 0
        return run_sweep(sweep, jobs, shlex.join(["python", "tools/sweep.py", str(spec)]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped while no run was going on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
