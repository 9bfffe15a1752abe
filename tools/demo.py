"""Show what checkpoints find, on a page in the browser.

Upload or paste a picture or take an example, type sentences, and see the mask of each over the
picture; two checkpoints can be compared side by side. The page is for this machine alone, makes no
request to any other, and stores no picture.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/demo.py
  python tools/demo.py --checkpoint runs/a/best.safetensors runs/b/best.safetensors
  python tools/demo.py --checkpoint best.safetensors --examples pictures/ --port 8000"""
# by make demo, and the one that comes with the project
DEMO_CHECKPOINTS = ("runs/demo-etris/best.safetensors", "pretrain/demo-etris.safetensors")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES)
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
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free (%(default)s)")
    return parser.parse_args(argv)


def choose_checkpoints(paths: Sequence[Path] | None) -> dict[str, Path]:
    """Name each checkpoint for the page by its file, or by the run's folder; or take the demo's.

    Raises:
        ValueError: none is given and none of the demo is found, or one is given twice.
    """
    if not paths:
        found = [name for name in DEMO_CHECKPOINTS if (ROOT / name).is_file()]
        if not found:
            names = " nor ".join(DEMO_CHECKPOINTS)
            raise ValueError(f"no --checkpoint, and neither {names} exists; run `make demo`")
        print(f"no --checkpoint: taking {found[0]}")
        paths = [ROOT / found[0]]
    chosen: dict[str, Path] = {}
    for path in paths:
        if path.resolve() in (other.resolve() for other in chosen.values()):
            raise ValueError(f"--checkpoint {path} is given twice; give it once")
        name = path.resolve().parent.name if path.stem in ("best", "last") else path.stem
        number = sum(other.split(" (")[0] == name for other in chosen)
        chosen[f"{name} ({number + 1})" if number else name] = path
    return chosen


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for gradio's files that only its owner can read; delete it at the end.

    Enter it before gradio is imported, which reads these variables then. SIGTERM ends the process
    as Ctrl-C does, so that the folder is deleted in both cases.
    """
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as folder:
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        try:
            yield Path(folder)
        finally:
            signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket at ``host`` and ``port`` (0: any that is free); ``ValueError`` if it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        is_six = family == socket.AF_INET6
        return socket.create_server((host, port), family=family, dualstack_ipv6=is_six)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise ValueError(f"--host {host} --port {port}: {reason}; choose another") from None


def show(arguments: argparse.Namespace) -> None:
    """Serve the page until the process is told to end; ``ValueError`` for a user's mistake."""
    from tools.page.inputs import draw_examples, read_examples

    host = arguments.host
    paths = choose_checkpoints(arguments.checkpoint)
    examples = read_examples(arguments.examples) if arguments.examples else draw_examples()
    with private_folder() as folder, listen(host, arguments.port) as listener:
        try:
            from tools.page.app import LOOPBACK, build, make_server
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
        handlers = Handlers(predictors, examples, folder)
        server = make_server(build(handlers, threshold), host)
        if host not in LOOPBACK:
            print(
                f"warning: --host {host}: whoever reaches this machine can use the page; "
                "there is no password and no encryption",
                file=sys.stderr,
            )
        address = f"[{host}]" if ":" in host else host
        print(f"open http://{address}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return run_command(lambda: show(arguments))


if __name__ == "__main__":
    sys.exit(main())
