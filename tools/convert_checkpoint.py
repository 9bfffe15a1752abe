"""Convert a checkpoint that ETRIS's or CRIS's code saved; the result runs without a CLIP file.

A checkpoint of CRIS takes --config config/cris_rn50.yaml or cris_rn101.yaml. The output includes
the backbone: CRIS trains all of it, ETRIS parts (positional embeddings, BatchNorm statistics). No
code of the file runs. A file is refused if its keys are not exactly those of the released model.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/convert_checkpoint.py --from best_model.pth \\
      --config config/etris_rn101_released.yaml --output pretrain/etris-rn101.safetensors
  python test.py --checkpoint pretrain/etris-rn101.safetensors --splits val testA testB"""


def convert(source: str, config_path: str, output: Path, overrides: list[str]) -> None:
    """Write the checkpoint ``source`` to ``output``; ``ValueError`` if it is not of that method."""
    from engine.checkpoint import save_checkpoint
    from model import build_segmenter
    from tools.released import load_released, read_released
    from utils.config import load_config
    from utils.files import sha256_of

    config = load_config(config_path, overrides)
    released = read_released(source)
    segmenter = build_segmenter(
        config.model,
        image_size=config.data.image_size,
        max_tokens=config.data.longest_sentence,
        load_weights=False,
    )
    load_released(segmenter, released, source)
    extra = {"converted_from": {"file": Path(source).name, "sha256": sha256_of(source)}}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(output, segmenter, config, everything=True, extra=extra)
    print(f"wrote {output} ({output.stat().st_size / 1e6:.0f} MB)")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--from", dest="source", required=True, metavar="FILE.pth", help="the released file"
    )
    parser.add_argument(
        "--config", required=True, help="config/cris_*.yaml or etris_*_released.yaml"
    )
    parser.add_argument("--output", required=True, type=Path, help="the .safetensors to write")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="key=value", help="keys that override the file's"
    )
    arguments = parser.parse_args(argv)
    return run_command(
        lambda: convert(arguments.source, arguments.config, arguments.output, arguments.opts)
    )


if __name__ == "__main__":
    sys.exit(main())
