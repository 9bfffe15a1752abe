"""Print the tables of ETRIS and BarLeRIa: published figures, and ours beside them.

Scores are read from the records that test.py --record wrote, and are empty where nothing was run.
Numbers of parameters are counted from the configurations; no weights are needed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/tables.py
  python tools/tables.py --table etris-2 barleria-5
  python tools/tables.py --write docs/tables.md"""


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
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
    arguments = parser.parse_args(argv)

    def run() -> None:
        from tools.study.tables import read_records, read_tables, write_page
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

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
