"""Train the small CLIPs of the demo contrastively on captions of generated scenes.

Training sees no mask. A batch has scenes that are in no demo data set, a caption of each whole
scene, and expressions that single out its objects. Three contrastive losses are summed:

1. CLIP's own (Radford et al., 2021), between pooled images and whole-scene captions;
2. the same between expressions and images, where the similarity of a pair is that of its best
   patches, log(sum_p exp(k cos(patch_p, text))) / k, without pairs that happen to be true;
3. within an image: the patches that an expression points at must fit it better than they fit the
   other expressions about the same image.

Every interval adds a line to NAME-pretraining.jsonl; at --eval-interval it has the pointing
accuracy on held-out scenes: the share of expressions whose best patch has its centre in the
target. An interrupted run continues from the last weights that it wrote.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = "  python tools/pretrain_demo_clip.py --name demo-vit --steps 20000"


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--name", choices=["demo-vit", "demo-resnet"], default="demo-vit")
    add("--output", type=Path, help="weights file (default: pretrain/NAME.pt)")
    add("--steps", type=int, default=20_000, help="optimizer steps (%(default)s)")
    add("--batch-size", type=int, default=128, help="scenes a step (%(default)s)")
    add("--lr", type=float, default=1e-3, help="highest rate of AdamW (%(default)s)")
    add("--seed", type=int, default=0, help="of scenes and weights (%(default)s)")
    add("--workers", type=int, default=1, help="processes that draw scenes (%(default)s)")
    add(
        "--attribute-steps",
        type=int,
        default=0,
        help="first steps, whose expressions name only attributes (%(default)s)",
    )
    add("--log-interval", type=int, default=50, help="steps (%(default)s)")
    add("--eval-interval", type=int, default=500, help="steps (%(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    options = vars(parser.parse_args(argv))
    options["output"] = options["output"] or ROOT / "pretrain" / f"{options['name']}.pt"

    def run() -> None:
        from tools.pretraining import Pretraining, pretrain

        options["output"].parent.mkdir(parents=True, exist_ok=True)
        pretrain(Pretraining(**options))

    return run_command(run, on_interrupt="stopped; the same command continues the run")


if __name__ == "__main__":
    sys.exit(main())
