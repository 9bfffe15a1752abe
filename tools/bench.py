"""Measure speed and memory, beside the released code's and, if asked, an older checkout's.

Every case runs in a process of its own, with random weights of the real sizes and generated
pictures. docs/performance.md says how to read the table.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.benchmark.cases import CONFIGS, choose, describe_cases, list_cases  # noqa: E402
from tools.benchmark.yardstick import MACHINE  # noqa: E402

EXAMPLE = """examples:
  python tools/bench.py --json bench.json
  python tools/bench.py --case train memory/etris_rn101 --rounds 3
  python tools/bench.py --case '*/bf16' loader --against ../before
  python tools/bench.py --case train/etris_rn101/bf16 --profile
  python tools/bench.py --compare before.json after.json

cases:
"""
STOPPED = 130


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE + describe_cases(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--case",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these: a name, its beginning up to a slash, or with wildcards; default: all "
        "(end-to-end on a GPU alone)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures there")
    parser.add_argument(
        "--against", type=Path, metavar="ROOT", help="a checkout to take turns with, case by case"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="measure nothing"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="repetitions, for medians (%(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=int(MACHINE["threads"]),
        metavar="N",
        help="of the computation (%(default)s, as the released code had)",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: time of our processes alone, where others use the machine; one thread",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="tell which operations take the time of training and inference, and the least that "
        "their arithmetic could take",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        default=list(CONFIGS),
        metavar="FILE",
        help="other configurations in place of the three",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that go over the files'"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        if arguments.compare:
            return compare_files(*arguments.compare)
        check(arguments)
        return measure(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check(arguments: argparse.Namespace) -> None:
    """``ValueError`` for options that cannot be, before anything is started."""
    for name in ("rounds", "threads"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)} should be 1 or more")
    if arguments.clock == "processor" and (arguments.threads > 1 or arguments.device != "cpu"):
        raise ValueError(
            "--clock processor adds up the time of all threads and knows no GPU; "
            "give it with --threads 1 and --device cpu"
        )
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(f"{arguments.json.parent}, the folder of --json, is not there; make it")
    if arguments.against and not (arguments.against / "engine/update.py").is_file():
        raise ValueError(
            f"--against {arguments.against}: no checkout of this project; make one with "
            "`git worktree add FOLDER COMMIT`"
        )
    for path in arguments.config:
        if not place_of(path).is_file():
            raise ValueError(f"--config {path}: no such file")
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no CUDA GPU here; use --device cpu")


def place_of(config: str) -> Path:
    """A configuration as the user names it, or as this checkout does."""
    return Path(config) if Path(config).is_file() else ROOT / config


def inside(config: str) -> str:
    """Its path in any checkout, or the absolute one if it is of none."""
    path = place_of(config).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def measure(arguments: argparse.Namespace) -> int:
    """Run the cases, print the table, keep the file."""
    from tools.benchmark.driver import Driver, Plan
    from tools.benchmark.summary import results_of
    from tools.benchmark.tables import last_line, to_table
    from utils.files import write_text

    cases = list_cases([inside(config) for config in arguments.config])
    sides = {"against": arguments.against.resolve()} if arguments.against else {}
    plan = Plan(
        cases=choose(cases, arguments.case, device=arguments.device, profiles=arguments.profile),
        sides={**sides, "this": ROOT},
        device=arguments.device,
        threads=arguments.threads,
        rounds=arguments.rounds,
        clock=arguments.clock,
        opts=arguments.opts,
        profiles=arguments.profile,
    )
    driver = Driver(plan)

    def results() -> dict[str, Any]:
        return results_of(driver, shlex.join(["python", *sys.argv]))

    def keep() -> None:
        if arguments.json:
            write_text(arguments.json, json.dumps(results(), indent=1) + "\n")

    driver.run(keep)
    keep()
    found = results()
    print(to_table(found))
    where = f"; written to {arguments.json}" if arguments.json else ""
    print(f"\n{last_line(found)}{where}")
    if driver.interrupted:
        return STOPPED
    return 1 if any(entry["failures"] for entry in found["cases"].values()) else 0


def compare_files(first: Path, second: Path) -> int:
    """Print how many times better the second file's figures are."""
    from tools.benchmark.summary import read_results
    from tools.benchmark.tables import compare, differences_in_kind

    results = [read_results(path) for path in (first, second)]
    print(f"A: {first}\nB: {second}\nratios are A / B: above 1, B is better\n")
    print(compare(*results))
    for sentence in differences_in_kind(*results):
        print(f"\nnot the same for both: {sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
