"""Compare runs that test.py scored: mean and range over seeds, as a Markdown table and a chart.

Files called NAME-seed0.json, NAME-seed1.json, or NAME-seed0/test/results.json, are seeds of one
method, and must agree in everything else.  Rows come in the order in which methods are named.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """examples:
  python tools/compare.py runs/*/test/results.json
  python tools/compare.py docs/demo-study/*_vit-seed*.json --splits val testA --chart vit.png"""
FORMS = (".png", ".svg", ".pdf")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="results files of test.py")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="by default all that every run was scored on"
    )
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        help="scores over the parameters that train outside the head, with bars over seeds; "
        f"{', '.join(FORMS)}",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        from utils.files import check_output

        if arguments.chart is not None:
            check_output("--chart", arguments.chart, FORMS)
        from engine.comparison import (
            caveats,
            draw_chart,
            find_splits,
            group_runs,
            read_runs,
            to_markdown,
        )

        methods = group_runs(read_runs(arguments.results))
        splits = find_splits(methods, arguments.splits)
        print(to_markdown(methods, splits))
        for sentence in caveats(methods):
            print(f"\nnot the same for all: {sentence}")
        if arguments.chart is not None:
            draw_chart(methods, splits, arguments.chart)
            print(f"\nchart written to {arguments.chart}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
