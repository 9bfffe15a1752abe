"""Measure speed and memory, and compare them with the released code's.

Every case runs in its own process, with random weights of the real sizes and generated pictures.
docs/performance.md explains the table.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.benchmark.cases import (  # noqa: E402
    CONFIGS,
    CORE_KINDS,
    MODEL_KINDS,
    Case,
    choose_cases,
    list_cases,
)
from utils.cli import INTERRUPTED, make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/bench.py --json bench.json
  python tools/bench.py --case train memory/etris_rn101 --rounds 3
  python tools/bench.py --case train/etris_rn101/bf16 --profile
  python tools/bench.py --compare before.json after.json

cases (MODEL: the name of a configuration; PRECISION: fp32 or bf16):
"""
WORKER = [sys.executable, "-m", "tools.benchmark.worker"]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    works = {f"{kind}/MODEL/PRECISION": work for kind, work in MODEL_KINDS.items()} | CORE_KINDS
    cases = "".join(f"  {name}\n      {work}\n" for name, work in works.items())
    parser = make_parser(__doc__, EXAMPLES + cases)
    add = parser.add_argument
    add("--case", nargs="+", default=[], metavar="NAME", help="only these: a name, its beginning "
        "up to a slash, or with wildcards; default: all (end-to-end only on a GPU)")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--json", type=Path, metavar="FILE", help="store all figures there")
    add("--against", help=argparse.SUPPRESS)
    add("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="measure nothing")
    add("--rounds", type=int, default=5, metavar="N", help="repetitions (%(default)s)")
    add("--threads", type=int, default=2, metavar="N", help="of the computation (%(default)s)")
    add("--clock", choices=("wall", "processor"), default="wall", help="processor: only the time "
        "of our processes, if others use the machine; needs --threads 1")  # fmt: skip
    add("--profile", action="store_true", help="measure which operations take the time of training "
        "and inference, and the least time of their arithmetic")  # fmt: skip
    add("--config", nargs="+", default=CONFIGS, metavar="FILE", help="replace the three models")
    add("--opts", nargs="+", default=[], metavar="key=value", help="keys that override the files'")
    return parser.parse_args(argv)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that cannot work, before a process starts."""
    from utils.files import check_output

    if arguments.against:
        raise ValueError(
            f"--against {arguments.against} was removed: run `python tools/bench.py --json FILE` "
            "in each checkout, then --compare before.json after.json"
        )
    for name in ("rounds", "threads"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)} should be 1 or more")
    if arguments.clock == "processor" and (arguments.threads > 1 or arguments.device != "cpu"):
        raise ValueError(
            "--clock processor adds up the time of all threads and cannot see a GPU; "
            "give it with --threads 1 and --device cpu"
        )
    if arguments.json:
        check_output("--json", arguments.json)
    for path in arguments.config:
        if not locate_config(path).is_file():
            raise ValueError(f"--config {path}: no such file")
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no CUDA GPU here; use --device cpu")


def locate_config(path: str) -> Path:
    """Return a configuration as the user names it, or as this project does."""
    return Path(path).resolve() if Path(path).is_file() else ROOT / path


def run_case(case: Case) -> Iterator[dict[str, Any]]:
    """Yield what a new process answers: whose code it runs, then a row for each repetition.

    Raises:
        ChildProcessError: with the last line of what a process printed that failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(case.threads)}
    if case.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # a GPU would be preferred
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            [*WORKER, json.dumps(asdict(case))],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,  # one Ctrl-C, ours, so that it can remove its data
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield from map(json.loads, process.stdout)
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        if code := process.wait():
            errors.seek(0)
            lines = errors.read().split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no message")
            memory = "; the memory may be full" if code == -signal.SIGKILL else ""
            raise ChildProcessError(f"its process ended with exit code {code}{memory}: {last}")


def measure(arguments: argparse.Namespace) -> int:
    """Run the cases, print the table and store the file after every case."""
    from tools.benchmark.report import FORMAT, format_results, summarise
    from utils.files import write_text
    from utils.logging import progress_bar

    configs = [locate_config(path).resolve() for path in arguments.config]
    names = [str(p.relative_to(ROOT) if p.is_relative_to(ROOT) else p) for p in configs]
    how = {key: getattr(arguments, key) for key in ("rounds", "clock", "opts")}
    on_device = {"device": arguments.device, "threads": arguments.threads}
    profile = arguments.profile
    cases = [
        replace(case, **how, profile=profile, **(on_device if case.kind in MODEL_KINDS else {}))
        for case in choose_cases(
            list_cases(names), arguments.case, device=arguments.device, profile=profile
        )
    ]
    results: dict[str, Any] = {
        "format": FORMAT,
        "command": shlex.join(["python", *sys.argv]),
        **on_device,
        **how,
        "profiles": profile,
        "interrupted": False,
        "code": {},
        "cases": {},
    }
    total = sum(1 if case.is_of_memory else case.rounds for case in cases)
    with progress_bar(total=total, unit="repetition", leave=False) as bar:
        for case in cases:
            bar.set_description(case.name)
            rows: list[dict[str, Any]] = []
            start: dict[str, Any] = {}
            failure = ""
            try:
                for row in run_case(case):
                    if "provenance" in row:
                        start = row
                        continue
                    rows.append(row)
                    bar.update()
            except ChildProcessError as error:
                failure = str(error)
            except KeyboardInterrupt:
                results["interrupted"] = True
            if start:
                code = start["provenance"]
                results["code"] = {key: code[key] for key in code if key != "command"}
            if rows or failure:
                results["cases"][case.name] = {
                    "case": asdict(case),
                    "summary": summarise(rows) if rows else None,
                    "profile": start.get("profile", ""),
                    "failure": failure,
                }
            if arguments.json:
                write_text(arguments.json, json.dumps(results, indent=1) + "\n")
            if results["interrupted"]:
                break
    print(format_results(results) + (f"; written to {arguments.json}" if arguments.json else ""))
    has_failed = any(entry["failure"] for entry in results["cases"].values())
    return INTERRUPTED if results["interrupted"] else int(has_failed)


def compare_files(first: Path, second: Path) -> None:
    """Print how many times better the second file's figures are."""
    from tools.benchmark.report import compare, read_results

    table = compare(read_results(first), read_results(second))
    print(f"A: {first}\nB: {second}\nratios are A / B: above 1, B is better\n\n{table}")


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    def run() -> int:
        if arguments.compare:
            compare_files(*arguments.compare)
            return 0
        check_arguments(arguments)
        return measure(arguments)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
