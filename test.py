"""Score a checkpoint on splits of a data set: every sentence, masks at the original size.

Prints a table in percent and writes results.json (scores and all that fixes them), and for each
split <split>.jsonl (one row per sentence) and <split>.png (the best, the worst, random cases). Of
several data sets each is scored as if it were alone, its files called <data set>-<split>.
With --record the numbers and all that made them are stored in results/, with the log of the run.

--protocol released scores as the released code of CRIS and ETRIS does, which the papers' figures
were made with; `--protocol native released` gives both, in one pass through the model.
"""

import argparse
import shlex
import sys
from pathlib import Path

from utils.cli import make_parser, run_command
from utils.config import load_config, run_folder
from utils.files import check_folder

EXAMPLES = """\
  python test.py --config config/demo/etris.yaml
  python test.py --checkpoint runs/demo-etris/best.safetensors --splits val testA testB
  python test.py --checkpoint runs/etris_rn101/best.safetensors --protocol native released
  python test.py --checkpoint runs/etris_rn101/best.safetensors --record
"""


def find_checkpoint(path: Path, overrides: list[str]) -> Path:
    """Return the best checkpoint of the run that ``train.py --config path --opts ...`` makes.

    Raises:
        ValueError: there is none; the message has the command that makes it.
    """
    checkpoint = run_folder(load_config(path, overrides), path) / "best.safetensors"
    if not checkpoint.is_file():
        options = ["--opts", *overrides] if overrides else []
        command = shlex.join(["python", "train.py", "--config", str(path), *options])
        raise ValueError(
            f"{checkpoint}: no such checkpoint; to train it: {command}; "
            "or name another with --checkpoint"
        )
    return checkpoint


def test(arguments: argparse.Namespace) -> None:
    """Score the checkpoint, print the tables and record the run if asked."""
    from loguru import logger

    from engine.checkpoint import choose_config, read_checkpoint
    from engine.record import open_recording
    from engine.results import Scoring, default_output, format_tables
    from utils.distributed import start_processes
    from utils.logging import start_logging

    if arguments.pictures < 0:
        raise ValueError(f"--pictures is {arguments.pictures}; give 0 or more")
    if arguments.output is not None:
        check_folder("--output", arguments.output)
    path = arguments.checkpoint or find_checkpoint(arguments.config, arguments.opts)
    with start_processes() as processes:
        start_logging(rank=processes.rank)
        if arguments.checkpoint is None:
            logger.info(f"scoring {path}")
        checkpoint = read_checkpoint(path)
        if not checkpoint.has_checksum:
            logger.info(f"{path} was written without a checksum: damage would not be noticed")
        config = choose_config(checkpoint, arguments.config, arguments.opts)
        recording = None
        if arguments.record is not None:  # a mistake shows before hours of scoring
            recording = open_recording(path, config, arguments.record)
        scoring = Scoring(
            config=config,
            checkpoint=checkpoint,
            output=arguments.output or default_output(path),
            processes=processes,
            num_pictures=arguments.pictures,
            protocols=tuple(dict.fromkeys(arguments.protocol or [config.eval.protocol])),
        )
        results = scoring.run(arguments.splits)
        if processes.is_main:
            print(format_tables(results))
            if recording is not None:
                print(recording.write(results))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    default = "best.safetensors of a run; default: of the one that train.py makes of --config"
    add("--checkpoint", type=Path, help=default)
    add("--config", type=Path, help="default: the checkpoint's own")
    add("--opts", nargs="+", default=[], metavar="key=value", help="keys that replace the config's")
    add("--splits", nargs="+", default=[], help="default: all but train")
    names = ("native", "released")
    protocol = "native, released or both; the first is that of the files; default: eval.protocol"
    add("--protocol", nargs="+", choices=names, metavar="NAME", help=protocol)
    output = "default: test/ beside the checkpoint of a run, runs/<its name>-test for another"
    add("--output", type=Path, help=f"folder of the results; {output}")
    pictures = "cases of each kind, 0: none (%(default)s)"
    add("--pictures", type=int, default=6, metavar="N", help=pictures)
    record = "keep the run as results/NAME-seed<N>.json and .log; default: the name of its config"
    add("--record", nargs="?", const="", metavar="NAME", help=record)
    arguments = parser.parse_args(argv)
    if arguments.checkpoint is None and arguments.config is None:
        parser.error("give --checkpoint, or the --config that it was trained with")
    return run_command(lambda: test(arguments))


if __name__ == "__main__":
    sys.exit(main())
