"""Show what checkpoints find, on a page in the browser.

Upload or paste a picture or take an example, type sentences, and see the mask of each laid over;
two checkpoints stand side by side. The page is for this machine alone, makes no request to any
other, and stores no picture.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """examples:
  python tools/demo.py
  python tools/demo.py --checkpoint runs/a/best.safetensors runs/b/best.safetensors
  python tools/demo.py --checkpoint best.safetensors --examples pictures/ --port 8000"""
TRAINED = ROOT / "runs/demo-etris/best.safetensors"  # by make demo
COMMITTED = ROOT / "pretrain/demo-etris.safetensors"
PORT = 7860


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="best.safetensors of runs; without it that of `make demo`",
    )
    parser.add_argument(
        "--examples",
        nargs="+",
        metavar="PICTURE",
        help="files, folders and globs to begin with; without it scenes of the demo",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=PORT, help="0: any that is free (%(default)s)")
    return parser.parse_args(argv)


def choose_checkpoints(given: Sequence[Path] | None) -> dict[str, Path]:
    """Checkpoints by the names they have on the page: that of the file, or of the run's folder.

    Raises:
        ValueError: none is given and none of the demo is there, or one is given twice.
    """
    if not given:
        found = next((path for path in (TRAINED, COMMITTED) if path.is_file()), None)
        if found is None:
            raise ValueError(
                f"no --checkpoint, and neither {TRAINED.relative_to(ROOT)} nor "
                f"{COMMITTED.relative_to(ROOT)} is there; run `make demo`, or name one"
            )
        print(f"no --checkpoint: taking {found.relative_to(ROOT)}")
        given = [found]
    names: dict[str, Path] = {}
    for path in given:
        if path.resolve() in (other.resolve() for other in names.values()):
            raise ValueError(f"--checkpoint {path} is given twice; give it once")
        name = path.resolve().parent.name if path.stem in ("best", "last") else path.stem
        number = sum(other.split(" (")[0] == name for other in names)
        names[f"{name} ({number + 1})" if number else name] = path
    return names


def show(arguments: argparse.Namespace) -> None:
    """Serve the page until the process is told to end; ``ValueError`` for a user's mistake."""
    from tools.page.examples import draw_examples, read_examples
    from tools.page.server import LOOPBACK, application, listen, private_folder, serve
    from tools.page.uploads import MOST_BYTES

    paths = choose_checkpoints(arguments.checkpoint)
    examples = read_examples(arguments.examples) if arguments.examples else draw_examples()
    with private_folder(), listen(arguments.host, arguments.port) as listener:
        try:
            from tools.page.app import appearance, build
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the page needs {error.name}; get it with `pip install -r requirements-demo.txt`"
            ) from None
        from engine.prediction import load
        from tools.page.handlers import Handlers

        predictors = {name: load(path, device=arguments.device) for name, path in paths.items()}
        for name, predictor in predictors.items():
            print(f"{name}: {predictor}")
        threshold = next(iter(predictors.values())).threshold
        page = build(Handlers(predictors, examples), threshold)
        app = application(page, appearance(), arguments.host, MOST_BYTES)
        if arguments.host not in LOOPBACK:
            print(
                f"warning: --host {arguments.host}: whoever reaches this machine can use the page; "
                "there is no password and no encryption",
                file=sys.stderr,
            )
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"open http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        serve(app, listener)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        show(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
