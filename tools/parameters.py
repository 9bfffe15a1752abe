"""Count what trains and what is frozen in the model of a configuration; needs no weights."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
  python tools/parameters.py --config config/etris_rn101.yaml
  python tools/parameters.py --config config/etris_vitb16.yaml --json
  python tools/parameters.py --config config/etris_vitb16.yaml --opts model.bridges.0.dim=64"""
LABELS = {
    "backbone": "trained of CLIP itself",
    "attached": "attached to CLIP",
    "head": "head (neck to projector)",
    "trainable": "trainable",
    "frozen_image_tower": "frozen image tower",
    "frozen_text_tower": "frozen text tower",
    "frozen": "frozen",
}


def format_table(name: str, counts: dict[str, Any]) -> str:
    """Format the result of :func:`engine.parameters.count` for people."""
    lines = [f"{name}\n"]
    lines += [f"  {part:<28}{number:>14,}" for part, number in counts["parts"].items()]
    lines.append(f"  {'-' * 42}")
    for key, label in LABELS.items():
        if key != "backbone" or counts["backbone"]:
            lines.append(f"  {label:<28}{counts[key]:>14,}")
    for key, label in (("image_tower", "of the image tower"), ("both_towers", "of both towers")):
        share = counts[f"attached_share_of_{key}"]
        if share is not None:
            lines.append(f"  {'attached, ' + label:<32}{share:>10.2%}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("--config", required=True, help="a YAML file of config/")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that override the file's"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    def run() -> None:
        from engine.parameters import count
        from utils.config import load_config

        counts = count(load_config(arguments.config, arguments.opts))
        as_json = json.dumps({"config": arguments.config, **counts}, indent=2)
        print(as_json if arguments.json else format_table(arguments.config, counts))

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
