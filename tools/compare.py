"""Compare runs that test.py scored: mean and range over seeds, as a Markdown table and a chart.

Files called NAME-seed0.json, NAME-seed1.json, or NAME-seed0/test/results.json, are seeds of one
method and must agree in everything else. The rows have the order in which methods are named.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/compare.py runs/*/test/results.json
  python tools/compare.py docs/demo-study/*_vit-seed*.json --splits val testA --chart vit.png"""
CHART_ENDINGS = (".png", ".svg", ".pdf")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("results", nargs="+", type=Path, help="results files of test.py")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="default: all that every run was scored on"
    )
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        help="scores over the parameters that train outside the head, with bars over seeds; "
        f"{', '.join(CHART_ENDINGS)}",
    )
    arguments = parser.parse_args(argv)

    def run() -> None:
        from tools.study import comparison
        from utils.files import check_output

        if arguments.chart is not None:
            check_output("--chart", arguments.chart, CHART_ENDINGS)
        methods = comparison.group_runs(comparison.read_runs(arguments.results))
        splits = comparison.find_splits(methods, arguments.splits)
        print(comparison.compare_methods(methods, splits))
        for sentence in comparison.list_caveats(methods):
            print(f"\n{sentence}")
        if arguments.chart is not None:
            comparison.draw_chart(methods, splits, arguments.chart)
            print(f"\nchart written to {arguments.chart}")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
