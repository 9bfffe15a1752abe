"""Convert a checkpoint that ETRIS's or CRIS's code saved; the result runs without a CLIP file.

    python tools/convert_checkpoint.py --from best_model.pth \\
        --config config/etris_rn101_released.yaml --output pretrain/etris-rn101.safetensors
    python test.py --checkpoint pretrain/etris-rn101.safetensors --splits val testA testB

One of CRIS takes --config config/cris_rn50.yaml or cris_rn101.yaml. The backbone is in the output:
CRIS trains it, and ETRIS parts of it (positional embeddings, BatchNorm statistics). The file is
read without running code from it; anything whose keys are not exactly those of the released model
is refused.
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
    parser.add_argument("--from", dest="source", required=True, help="the released .pth file")
    parser.add_argument(
        "--config", required=True, help="config/cris_*.yaml or etris_*_released.yaml"
    )
    parser.add_argument("--output", required=True, type=Path, help="the .safetensors to write")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY=VALUE", help="overrides")
    return parser.parse_args(argv)


def convert(source: str, config_path: str, output: Path, overrides: list[str]) -> None:
    from engine.checkpoint import save_checkpoint
    from model import build_segmenter
    from model.backbones import sha256_of
    from tools.released import load_released, read_released
    from utils.config import load_config

    config = load_config(config_path, overrides)
    released = read_released(source)
    segmenter = build_segmenter(
        config.model,
        image_size=config.data.image_size,
        max_words=config.data.longest_sentence,
        load_weights=False,
    )
    load_released(segmenter, released, source)
    extra = {"converted_from": {"file": Path(source).name, "sha256": sha256_of(source)}}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(output, segmenter, config, everything=True, extra=extra)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        convert(arguments.source, arguments.config, arguments.output, arguments.opts)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
