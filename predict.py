"""Segment what sentences name in a picture, exactly as test.py would.

Writes <n>-mask.png (0 or 255, at the size of the picture) and <n>-overlay.png for the n-th
sentence and prints how much of the picture each mask covers and where. A picture is turned as its
EXIF orientation says.
"""

import argparse
import sys
from pathlib import Path

EXAMPLE = """example:
  python predict.py --checkpoint pretrain/demo-etris.safetensors --image photo.jpg \\
      --text "the small red star" --text "the star on the left" --output found
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
    parser.add_argument("--image", type=Path, required=True, help="the picture")
    parser.add_argument(
        "--text", action="append", required=True, help="what to find; may be given several times"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the masks")
    parser.add_argument(
        "--logits", type=Path, metavar="FILE.npy", help="also keep the logits: float32 (N, H, W)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        from engine.checkpoint import choose_config
        from engine.prediction import find
        from utils.distributed import start_processes

        with start_processes() as processes:
            report = find(
                choose_config(arguments.checkpoint, arguments.config, arguments.opts),
                arguments.checkpoint,
                image_path=arguments.image,
                texts=arguments.text,
                output=arguments.output,
                logits_path=arguments.logits,
                device=processes.device,
            )
        print(report)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
