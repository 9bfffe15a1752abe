"""Segment what sentences name in pictures, exactly as test.py does by its native protocol.

Writes <n>-mask.png (0 or 255, at the size of the picture) and <n>-overlay.png for the n-th
sentence, and predictions.json, which says what belongs to which sentence. Several pictures get a
folder each. Prints how much of the picture each mask covers and where. A picture is turned as its
EXIF orientation says. One that cannot be read gets a line, and the others are done.

Exit code: 0 if all was done, 1 if some pictures or pairs were not, 2 if nothing was.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.prediction_inputs import Inputs

KINDS = ("mask", "overlay", "cutout", "probability", "rle")
EXAMPLE = """examples:
  python predict.py --checkpoint pretrain/demo-etris.safetensors --image photo.jpg \\
      --text "the small red star" --text "the star on the left" --output found
  python predict.py --checkpoint best.safetensors --image pictures/ 'more/**/*.png' \\
      --text "the dog" --save mask cutout rle --output found
  python predict.py --checkpoint best.safetensors --pairs pairs.csv --output found
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
    parser.add_argument(
        "--image", nargs="+", action="extend", metavar="PICTURE", help="files, folders and globs"
    )
    parser.add_argument("--text", action="append", help="what to find; may be given several times")
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="TABLE",
        help=".csv or .jsonl with image (from the table's folder) and sentence, "
        "in place of --image and --text",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--save",
        nargs="+",
        choices=KINDS,
        default=["mask", "overlay"],
        metavar="KIND",
        help=f"what to write: {', '.join(KINDS)} (mask overlay); probability in 16 bits, "
        "rle as COCO has it, into predictions.json",
    )
    parser.add_argument(
        "--threshold", type=float, help="the least probability of the mask; the config's without it"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    parser.add_argument(
        "--logits", type=Path, metavar="FILE.npy", help="also keep the logits: float32 (N, H, W)"
    )
    arguments = parser.parse_args(argv)
    if (arguments.pairs is None) == (arguments.image is None and arguments.text is None):
        parser.error("give --image and --text, or --pairs alone")
    if arguments.pairs is None and not (arguments.image and arguments.text):
        parser.error("--image needs --text, and --text needs --image")
    return arguments


def predict(arguments: argparse.Namespace, inputs: "Inputs") -> int:
    """Answer ``inputs``; return the exit code."""
    from engine.checkpoint import choose_config
    from engine.prediction import load
    from engine.prediction_job import Job
    from utils.allocator import keep_freed_memory

    keep_freed_memory()
    options = list(arguments.opts)
    if arguments.threshold is not None:
        options.append(f"eval.threshold={arguments.threshold}")
    config = choose_config(arguments.checkpoint, arguments.config, options)
    job = Job(
        load(arguments.checkpoint, config=config, device=arguments.device),
        inputs,
        arguments.output,
        arguments.save,
        arguments.logits,
        tell=_print,
        complain=_complain,
    )
    num_bad = job.run() + len(inputs.problems)
    if job.num_replaced:
        print(
            f"note: {job.num_replaced} files of an earlier run were replaced in {arguments.output}",
            file=sys.stderr,
        )
    if not num_bad:
        return 0
    return 1 if job.num_done else 2


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        from engine.prediction_inputs import from_pairs, from_pictures

        if arguments.pairs is not None:
            inputs = from_pairs(arguments.pairs)
        else:
            inputs = from_pictures(arguments.image, arguments.text)
        _check(arguments, inputs)
        for problem in inputs.problems:
            _complain(problem)
        return predict(arguments, inputs) if inputs.questions else 2
    except ValueError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what is done stays", file=sys.stderr)
        return 130


def _check(arguments: argparse.Namespace, inputs: "Inputs") -> None:
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"--output {arguments.output}: is a file; name a folder")
    if arguments.logits is not None and len(inputs.questions) > 1:
        raise ValueError(
            f"--logits {arguments.logits}: keeps those of one picture, and "
            f"{len(inputs.questions)} are given; use --save probability"
        )


def _print(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line)


def _complain(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"error: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
