"""Segment what sentences name in pictures, exactly as test.py does by its native protocol.

Writes <n>-mask.png (0 or 255, at the size of the picture) and <n>-overlay.png for the n-th
sentence, and predictions.json, which lists the files of each sentence. Several pictures get a
folder each. Prints how much of the picture each mask covers and where. A picture is turned as its
EXIF orientation says. A picture that cannot be read gets a line, and the others are segmented.

Exit code: 0 if everything was segmented, 1 if some pictures or pairs were not, 2 if none was.
"""

import argparse
import sys
from pathlib import Path

from utils.cli import make_parser, run_command
from utils.files import check_folder

KINDS = ("mask", "overlay", "cutout", "probability", "rle")
EXAMPLES = """\
  python predict.py --checkpoint pretrain/demo-etris.safetensors --image photo.jpg \\
      --text "the small red star" --text "the star on the left" --output found
  python predict.py --checkpoint best.safetensors --image pictures/ 'more/**/*.png' \\
      --text "the dog" --save mask cutout rle --output found
  python predict.py --checkpoint best.safetensors --pairs pairs.csv --output found
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="best.safetensors of a run")
    add("--config", type=Path, help="default: the checkpoint's own")
    add("--opts", nargs="+", default=[], metavar="key=value", help="keys that replace the config's")
    add("--image", nargs="+", action="extend", metavar="PICTURE", help="files, folders and globs")
    add("--text", action="append", help="what to find; may be given several times")
    pairs = ".csv or .jsonl with the columns image (relative to its folder) and sentence instead"
    add("--pairs", type=Path, metavar="TABLE", help=pairs)
    add("--output", type=Path, required=True, help="folder of the results")
    kinds = f"what to write: {', '.join(KINDS)} (mask overlay); probability in 16 bits, rle as "
    kinds += "COCO has it, into predictions.json"
    default = ["mask", "overlay"]
    add("--save", nargs="+", choices=KINDS, default=default, metavar="KIND", help=kinds)
    add("--threshold", type=float, help="pixels above this probability are mask (the config's)")
    add("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    logits = "also write the logits: float32 (N, H, W)"
    add("--logits", type=Path, metavar="FILE.npy", help=logits)
    arguments = parser.parse_args(argv)
    if (arguments.pairs is None) == (arguments.image is None and arguments.text is None):
        parser.error("give --image and --text, or --pairs alone")
    if arguments.pairs is None and not (arguments.image and arguments.text):
        parser.error("--image needs --text, and --text needs --image")
    return arguments


def predict(arguments: argparse.Namespace) -> int:
    """Segment the pictures; return the exit code."""
    from engine.checkpoint import choose_config, read_checkpoint
    from engine.prediction import load
    from engine.prediction_io import Job, find_pictures, read_pairs, report_problem
    from utils.memory import keep_freed_memory

    output, logits = arguments.output, arguments.logits
    check_folder("--output", output)
    if logits is not None:
        check_folder("--logits", logits.parent)
        if logits.suffix != ".npy" or logits.is_dir():
            raise ValueError(f"--logits {logits} should be a file that ends in .npy")
    if arguments.pairs is not None:
        inputs = read_pairs(arguments.pairs)
    else:
        inputs = find_pictures(arguments.image, arguments.text)
    num_pictures = len(inputs.texts)
    if logits is not None and num_pictures > 1:
        raise ValueError(
            f"--logits {logits}: takes the logits of one picture, not of {num_pictures}; "
            "use --save probability"
        )
    for problem in inputs.problems:
        report_problem(problem)
    if not inputs.texts:
        return 2
    keep_freed_memory()
    options = list(arguments.opts)
    if arguments.threshold is not None:
        options.append(f"eval.threshold={arguments.threshold}")
    config = choose_config(read_checkpoint(arguments.checkpoint), arguments.config, options)
    predictor = load(arguments.checkpoint, config=config, device=arguments.device)
    num_done = Job(predictor, inputs, output, arguments.save, logits).run()
    if num_done == num_pictures and not inputs.problems:
        return 0
    return 1 if num_done else 2


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return run_command(
        lambda: predict(arguments), on_interrupt="\nstopped; the finished files stay"
    )


if __name__ == "__main__":
    sys.exit(main())
