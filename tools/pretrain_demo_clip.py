"""Train the small CLIPs of the demo, contrastively, on captions of generated scenes.

    python tools/pretrain_demo_clip.py --name demo-vit --steps 20000

No mask is ever seen in training. A batch holds scenes that are in no demo data set, a caption of
each whole scene, and expressions that single out its objects. Three contrastive losses are summed:

1. CLIP's own (Radford et al., 2021), between pooled images and whole-scene captions;
2. the same between expressions and images, where the similarity of a pair is that of its best
   patches, log(sum_p exp(k cos(patch_p, text))) / k; pairs that happen to be true are left out;
3. within an image: the patches that an expression points at must fit it better than they fit the
   other expressions about the same image.

Every interval adds a line to NAME-pretraining.jsonl, now and then with the pointing accuracy on
held-out scenes: the share of expressions whose arg-max patch has its centre in the target. An
interrupted run continues where it last wrote its weights.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", choices=["demo-vit", "demo-resnet"], default="demo-vit")
    parser.add_argument("--output", type=Path, help="weights file (default: pretrain/NAME.pt)")
    parser.add_argument("--steps", type=int, default=20_000, help="optimizer steps (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="scenes a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak rate of AdamW (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and weights (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="drawing processes (%(default)s)")
    parser.add_argument(
        "--attribute-steps",
        type=int,
        default=0,
        help="first steps whose expressions name attributes alone (%(default)s)",
    )
    parser.add_argument("--log-interval", type=int, default=50, help="steps (%(default)s)")
    parser.add_argument("--eval-interval", type=int, default=500, help="steps (%(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = vars(parse_arguments(argv))
    from tools.pretraining import Pretraining, pretrain

    arguments["output"] = arguments["output"] or ROOT / "pretrain" / f"{arguments['name']}.pt"
    arguments["output"].parent.mkdir(parents=True, exist_ok=True)
    pretrain(Pretraining(**arguments))


if __name__ == "__main__":
    main()
