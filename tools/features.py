"""Draw what a trained model sees in a picture: one PNG file with captions.

Feature maps of the three stages of the image tower with and without what is attached to it, how
much of each word every place of the picture reads, the global prior of BarLeRIa, the probability
and the mask.  What a model has none of is named, with the reason.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """example:
  python tools/features.py --checkpoint pretrain/demo-etris.safetensors --image photo.jpg \\
      --text "the small red star" --output features.png"""


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
    parser.add_argument("--text", required=True, help="what to find in it")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("features.png"),
        metavar="FILE.png",
        help="default: features.png",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    output = arguments.output
    try:
        if output.suffix != ".png":
            raise ValueError(f"--output {output} should end in .png")
        from engine.checkpoint import choose_config, load_segmenter, read_checkpoint
        from engine.prediction_io import read_image
        from tools.feature_maps import look
        from tools.feature_sheet import draw
        from utils.distributed import start_processes
        from utils.pictures import write_image

        image = read_image(arguments.image)
        checkpoint = read_checkpoint(arguments.checkpoint)
        config = choose_config(checkpoint, arguments.config, arguments.opts)
        segmenter = load_segmenter(checkpoint, config)
        with start_processes() as processes:
            sight = look(segmenter, config, image, arguments.text, device=processes.device)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_image(output, draw(sight))
        except OSError as error:
            raise ValueError(
                f"--output {output} cannot be written: {error.strerror}; name another file"
            ) from None
        print(f"{output}  {arguments.text!r}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
