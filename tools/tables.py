"""Print the tables of ETRIS and BarLeRIa: published figures, and beside them ours.

Scores are read from the records that test.py --record wrote, and stay empty where nothing was run.
Numbers of parameters are counted from the configurations; no weights are needed.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """examples:
  python tools/tables.py
  python tools/tables.py --table etris-2 barleria-5
  python tools/tables.py --write docs/tables.md"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table",
        nargs="+",
        default=[],
        metavar="NAME",
        help="etris-1 to etris-6, barleria-1 to barleria-5; default: all",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there too")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of records (%(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        from tools.study.published import read_tables
        from tools.study.tables import read_records, write_page
        from utils.files import check_output, write_text

        if arguments.write is not None:
            check_output("--write", arguments.write)
        tables = read_tables()
        for name in arguments.table:
            if name not in tables:
                raise ValueError(f"--table {name}: no such table; there are {', '.join(tables)}")
        chosen = {name: tables[name] for name in arguments.table or tables}
        page = write_page(chosen, read_records(arguments.results))
        print(page)
        if arguments.write is not None:
            write_text(arguments.write, f"{page}\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
