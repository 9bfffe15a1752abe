"""Score a checkpoint on splits of a data set: every sentence, masks at the original size.

Prints a table in percent and writes results.json (scores and all that fixes them), and for each
split <split>.jsonl (one row per sentence) and <split>.png (the best, the worst, random cases). Of
several data sets each is scored as if it were alone, its files called <data set>-<split>.
With --record the numbers and all that made them are kept in results/, with the log of the run.

--protocol released scores as the released code of CRIS and ETRIS does, which the papers' figures
were made with; `--protocol native released` gives both, in one pass through the model.
"""

import argparse
import shlex
import sys
from pathlib import Path

EXAMPLE = """examples:
  python test.py --config config/demo/etris.yaml
  python test.py --checkpoint runs/demo-etris/best.safetensors --splits val testA testB
  python test.py --checkpoint runs/etris_rn101/best.safetensors --protocol native released
  python test.py --checkpoint runs/etris_rn101/best.safetensors --record
  python test.py --checkpoint pretrain/demo-etris.safetensors --opts eval.threshold=0.5
  torchrun --nproc-per-node 4 test.py --checkpoint runs/etris_rn101/best.safetensors
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="best.safetensors of a run; default: of the one that train.py makes of --config",
    )
    parser.add_argument("--config", type=Path, help="default: the checkpoint's own")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that go over the config's"
    )
    parser.add_argument("--splits", nargs="+", default=[], help="default: all but train")
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=("native", "released"),
        metavar="NAME",
        help="native, released or both; the first one is that of the files; default: eval.protocol",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the results; default: test/ beside the checkpoint of a run, "
        "runs/<its name>-test for another",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=6,
        metavar="N",
        help="cases of each kind, 0: none (%(default)s)",
    )
    parser.add_argument(
        "--record",
        nargs="?",
        const="",
        metavar="NAME",
        help="keep the run as results/NAME-seed<N>.json and .log; default: the name of its config",
    )
    arguments = parser.parse_args(argv)
    if arguments.checkpoint is None and arguments.config is None:
        parser.error("give --checkpoint, or the --config that it was trained with")
    return arguments


def checkpoint_of(path: Path, overrides: list[str]) -> Path:
    """The best checkpoint of the run that ``train.py --config path --opts ...`` makes.

    Raises:
        ValueError: if there is none, with the command that makes it.
    """
    from utils.config import load_config, run_folder

    folder = run_folder(load_config(path, overrides), path)
    checkpoint = folder / "best.safetensors"
    if not checkpoint.is_file():
        words = [
            "python",
            "train.py",
            "--config",
            str(path),
            *(["--opts", *overrides] * bool(overrides)),
        ]
        raise ValueError(
            f"{checkpoint}: no such checkpoint; to train it: {shlex.join(words)}; "
            "or name another with --checkpoint"
        )
    return checkpoint


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        from loguru import logger

        from engine.checkpoint import choose_config, read_checkpoint
        from engine.record import open_recording
        from engine.results import Scoring, default_output, format_tables
        from utils.distributed import start_processes
        from utils.logging import start_logging

        checkpoint = arguments.checkpoint or checkpoint_of(arguments.config, arguments.opts)
        with start_processes() as processes:
            start_logging(rank=processes.rank)
            if arguments.checkpoint is None:
                logger.info(f"scoring {checkpoint}")
            read = read_checkpoint(checkpoint)
            config = choose_config(read, arguments.config, arguments.opts)
            recording = None
            if arguments.record is not None:  # a mistake is told before hours of scoring
                recording = open_recording(checkpoint, config, arguments.record)
            scoring = Scoring(
                config=config,
                checkpoint=read,
                output=arguments.output or default_output(checkpoint),
                processes=processes,
                num_pictures=arguments.pictures,
                protocols=tuple(dict.fromkeys(arguments.protocol or [config.eval.protocol])),
            )
            results = scoring.run(arguments.splits)
            if processes.is_main:
                print(format_tables(results))
                if recording is not None:
                    print(recording.write(results))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
