"""Train and test methods x overrides x seeds, several at a time, and compare them.

After a stop or a failure the same command continues: finished jobs are skipped, started ones
resume. With `record: true` a job with a record in results/ is finished, even without its folder.
Each GPU has one run at a time; without GPUs, runs share the cores. Ctrl-C and SIGTERM let the
running jobs save first.
"""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/sweep.py sweeps/demo.yaml --dry-run
  python tools/sweep.py sweeps/demo.yaml

all keys of a sweep, of which only configs and splits are needed:
  configs:                      # a path, or {config: PATH, name: ROW, opts: {section.key: value}}
    - config/demo/frozen.yaml
    - {config: config/demo/etris.yaml, name: etris_32, opts: {model.bridges.0.dim: 32}}
  seeds: [0, 1]
  opts: {train.max_steps: 600, train.max_minutes: null}   # replace those of every configuration
  overrides: {slow: {train.lr: 1e-4}, fast: {train.lr: 1e-3}}   # rows frozen.slow, frozen.fast, ...
  splits: [val, testA, testB]
  folder: runs/sweep-mine       # default: runs/sweep-<name of the file>
  parallel: auto                # or a number; auto: one per GPU, or per `threads` cores of a CPU
  threads: 1                    # of each run on a CPU
  record: false                 # true: keep each in results/ as <folder's name>-NAME-seedN.json

The folder gets NAME-seedN/ (a run, its results in test/) and NAME-seedN.log for each, then
comparison.md and comparison.png. Paths are relative to the project's folder."""


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("spec", type=Path, help="YAML file of the sweep")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the jobs and what is done, and run nothing"
    )
    arguments = parser.parse_args(argv)
    spec = arguments.spec.resolve()
    os.chdir(ROOT)  # configurations name weights and data from there
    spec = spec.relative_to(ROOT) if spec.is_relative_to(ROOT) else spec

    def run() -> int | None:
        from tools.study.job import plan_jobs
        from tools.study.sweep import list_jobs, run_sweep
        from tools.study.sweep_config import load_sweep

        sweep = load_sweep(spec)
        jobs = plan_jobs(sweep, spec)
        if arguments.dry_run:
            print(list_jobs(jobs))
            return None
        return run_sweep(sweep, jobs, shlex.join(["python", "tools/sweep.py", str(spec)]))

    return run_command(run, on_interrupt="stopped while no run was going on")


if __name__ == "__main__":
    sys.exit(main())
