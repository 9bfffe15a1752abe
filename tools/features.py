"""Draw what a trained model sees in a picture: one PNG file with captions.

Feature maps of the three stages of the image tower with and without what is attached to it, how
much every place of the picture reads of each word, the global prior of BarLeRIa, the probability
and the mask. A part that the model does not have is named, with the reason.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLE = """\
  python tools/features.py --checkpoint pretrain/demo-etris.safetensors --image photo.jpg \\
      --text "the small red star" --output features.png"""


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="best.safetensors of a run")
    add("--config", type=Path, help="default: the checkpoint's own")
    add("--opts", nargs="+", default=[], metavar="key=value", help="keys that replace the config's")
    add("--image", type=Path, required=True, help="the picture")
    add("--text", required=True, help="what to find in it")
    add(
        "--output", type=Path, default=Path("features.png"), help="features.png", metavar="FILE.png"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: draw_features(arguments))


def draw_features(arguments: argparse.Namespace) -> None:
    """Segment the picture, draw the sheet and write it."""
    output = arguments.output
    if output.suffix != ".png":
        raise ValueError(f"--output {output} should end in .png")
    from engine.checkpoint import choose_config, load_for_inference, read_checkpoint
    from engine.prediction_io import read_image
    from tools.feature_maps import draw_sheet, view_model
    from utils.distributed import start_processes
    from utils.images import write_image

    image = read_image(arguments.image)
    checkpoint = read_checkpoint(arguments.checkpoint)
    config = choose_config(checkpoint, arguments.config, arguments.opts)
    with start_processes() as processes:
        model = load_for_inference(checkpoint, config, processes.device)
        view = view_model(model.segmenter, config, image, arguments.text, device=processes.device)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_image(output, draw_sheet(view))
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise ValueError(f"--output {output} {reason}; name another file") from None
    print(f"{output}  {arguments.text!r}")


if __name__ == "__main__":
    sys.exit(main())
