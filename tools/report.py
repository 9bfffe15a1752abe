"""Write what a run has learnt, or two runs side by side, as one HTML file.

The file needs no server and no network: configuration, parameters, curves, scores with intervals,
what is found well and what is not, and a gallery with a filter. A run may still be in progress; the
page shows what there is. Of two runs it shows which sentences improved and which got worse. For the
gallery the best checkpoint runs again on the sentences that are shown.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/report.py runs/demo-etris
  python tools/report.py runs/demo-etris_vit runs/demo-frozen_vit --gallery 12
  python tools/report.py runs/etris_rn101 --gallery 0 --output etris.html"""


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="one folder, or two")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="default: report.html in the folder of the run, report-OTHER.html of two",
    )
    parser.add_argument(
        "--gallery",
        type=int,
        default=4,
        metavar="N",
        help="sentences of each kind and split to show, 50 kB each at most; 0: none (%(default)s)",
    )
    parser.add_argument(
        "--root", type=Path, help="folder of the packed data; default: the run's data.root"
    )
    arguments = parser.parse_args(argv)
    folders: list[Path] = arguments.runs
    name = "-".join(["report", *(folder.resolve().name for folder in folders[1:])])
    output: Path = arguments.output or folders[0] / f"{name}.html"

    def run() -> None:
        if len(folders) > 2:
            raise ValueError(f"{len(folders)} runs are too many side by side; name one or two")
        if arguments.gallery < 0:
            raise ValueError(f"--gallery {arguments.gallery} should be 0 or more")
        from tools.reporting.page import make_page
        from tools.reporting.runs import read_runs
        from utils.distributed import start_processes
        from utils.files import check_output, write_text

        runs = read_runs(folders, arguments.root)
        check_output("--output", output, (".html",))
        with start_processes() as processes:
            page = make_page(runs, num_cases=arguments.gallery, device=processes.device)
        write_text(output, page)
        print(f"{output}: {len(page) / 1e6:.1f} MB")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
