"""Train what is attached to a frozen CLIP to segment what a sentence names.

Run again after a stop it continues where it was; SIGTERM and Ctrl-C save first. The folder of the
run gets config.yaml, run.log, metrics.jsonl, last.pt and best.safetensors.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cli import make_parser, run_command
from utils.config import load_config, run_folder
from utils.files import check_folder, locked

EXAMPLES = """\
  python train.py --config config/demo/etris.yaml
  python train.py --config config/etris_vitb16.yaml --opts data.dataset=refcoco+ train.seed=1
  python train.py --config config/etris_vitb16.yaml --opts 'data.dataset=[refcoco, refcocog_u]'
  torchrun --nproc-per-node 4 train.py --config config/etris_rn101.yaml
"""


def train(arguments: argparse.Namespace) -> int:
    """Train, or continue a run; return the exit code."""
    file, config = arguments.config, load_config(arguments.config, arguments.opts)
    folder = run_folder(config, file)

    from engine import trainer  # slow: it loads torch
    from utils.distributed import start_processes

    check_folder("run.folder", folder)
    with start_processes() as processes, lock_run(folder, processes.is_main):
        options = {"config_file": file, "fresh": arguments.fresh}
        return trainer.train(config, folder=folder, processes=processes, **options)


@contextmanager
def lock_run(folder: Path, is_main: bool) -> Iterator[None]:
    """Keep other commands from training in ``folder``; ``ValueError`` if one does."""
    if not is_main:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{folder}: another process trains in it; wait until it ends, or name another"
    with locked(folder.parent / f".{folder.name}.lock", f"{refusal} run.folder"):
        yield


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of the experiment")
    add("--opts", nargs="+", default=[], metavar="key=value", help="keys that replace the file's")
    add("--fresh", action="store_true", help="start a new run and move the folder's old files away")
    arguments = parser.parse_args(argv)
    on_interrupt = "stopped before training began; nothing to save"
    return run_command(lambda: train(arguments), on_interrupt=on_interrupt)


if __name__ == "__main__":
    sys.exit(main())
