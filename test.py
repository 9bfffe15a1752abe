"""Score a checkpoint on splits of a data set: every sentence, masks at the original size.

Prints a table in percent and writes results.json (scores and all that fixes them), and for each
split <split>.jsonl (one row per sentence) and <split>.png (the best, the worst, random cases). Of
several data sets each is scored as if it were alone, its files called <data set>-<split>.
With --record the numbers and all that made them are kept in results/, with the log of the run.
"""

import argparse
import json
import sys
from pathlib import Path

EXAMPLE = """examples:
  python test.py --checkpoint runs/demo-etris/best.safetensors --splits val testA testB
  python test.py --checkpoint runs/etris_rn101/best.safetensors --record
  python test.py --checkpoint pretrain/demo-etris.safetensors --opts eval.threshold=0.5
  torchrun --nproc-per-node 4 test.py --checkpoint runs/etris_rn101/best.safetensors
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="best.safetensors of a run")
    parser.add_argument("--config", type=Path, help="default: the checkpoint's own")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that go over the config's"
    )
    parser.add_argument("--splits", nargs="+", default=[], help="default: all but train")
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
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        from engine.checkpoint import choose_config
        from engine.record import open_recording
        from engine.scoring import Scoring, default_output
        from utils.distributed import start_processes
        from utils.logging import start_logging

        checkpoint = arguments.checkpoint
        with start_processes() as processes:
            start_logging(rank=processes.rank)
            config = choose_config(checkpoint, arguments.config, arguments.opts)
            recording = None
            if arguments.record is not None:  # a mistake is told before hours of scoring
                recording = open_recording(checkpoint, config, arguments.record)
            scoring = Scoring(
                config=config,
                checkpoint=checkpoint,
                output=arguments.output or default_output(checkpoint),
                processes=processes,
                num_pictures=arguments.pictures,
            )
            report = scoring.run(arguments.splits)
            if processes.is_main:
                print(report)
                if recording is not None:
                    results = (scoring.output / "results.json").read_text("utf-8")
                    print(recording.write(json.loads(results)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
