"""Compare this code with what released code computed: masks, training steps, scoring.

FILE has what the released code of a method computed with stand-in weights: tensors that anybody can
make again from the names and shapes of a released checkpoint (--keys). Its content decides what is
compared:

  inference  feature maps, words, sentence and logits of two pictures
  training   losses, gradients and logits of four steps of Adam, dropout off, float32
  scoring    masks, IoU and training targets of given logits and masks; needs no model

Prints every difference with its limit; the exit code is 1 if a difference is larger.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402
from utils.memory import keep_freed_memory  # noqa: E402

GOLDEN = ROOT / "tests/golden"
EXAMPLES = """\
  python tools/parity.py tests/golden/etris_rn50.npz --config config/etris_rn50_released.yaml \\
      --keys tests/golden/keys/etris_rn50.tsv
  python tools/parity.py tests/golden/train_etris_vitb16.npz \\
      --config config/etris_vitb16_released.yaml --keys tests/golden/keys/etris_vitb16.tsv
  python tools/parity.py tests/golden/released_protocol.npz"""


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE.npz")
    parser.add_argument("--config", type=Path, help="of the method, as released")
    parser.add_argument(
        "--keys", type=Path, metavar="NAME.tsv", help="names and shapes of its checkpoint"
    )
    parser.add_argument(
        "--images",
        type=Path,
        nargs=2,
        default=[GOLDEN / "example_image0.png", GOLDEN / "example_image1.png"],
        metavar="PNG",
        help="two pictures of data.image_size; default: tests/golden/example_image0.png and 1",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that override the config's"
    )
    arguments = parser.parse_args(argv)

    def run() -> int:
        keep_freed_memory()
        from tools.golden import compare_file

        differences = compare_file(
            arguments.file,
            config_path=arguments.config,
            keys=arguments.keys,
            images=arguments.images,
            options=arguments.opts,
        )
        print(f"{'difference of':<44}{'is':>10}{'allowed':>10}")
        found = []
        for difference in differences:
            print(difference, flush=True)
            found.append(difference.fits)
        if all(found):
            print(f"all {len(found)} equal")
            return 0
        print(f"{sum(found)} of {len(found)} within the limits")
        return 1

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
