"""Train what is attached to a frozen CLIP to segment what a sentence names.

Run again after a stop it goes on where it was; SIGTERM and Ctrl-C save first. The folder of the
run gets config.yaml, run.log, metrics.jsonl, last.pt and best.safetensors.
"""

import argparse
import sys
from pathlib import Path

from utils.config import load_config, run_folder

EXAMPLE = """examples:
  python train.py --config config/demo/etris.yaml
  python train.py --config config/etris_vitb16.yaml --opts data.dataset=refcoco+ train.seed=1
  python train.py --config config/etris_vitb16.yaml --opts 'data.dataset=[refcoco, refcocog_u]'
  torchrun --nproc-per-node 4 train.py --config config/etris_rn101.yaml
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that go over the file's"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="begin anew, the folder's old files moved aside"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        config = load_config(arguments.config, arguments.opts)
        folder = run_folder(config, arguments.config)

        from engine.trainer import train
        from utils.distributed import start_processes

        with start_processes() as processes:
            return train(
                config,
                folder=folder,
                processes=processes,
                config_file=arguments.config,
                fresh=arguments.fresh,
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before training began; nothing to save", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
