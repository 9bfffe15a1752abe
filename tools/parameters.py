"""Count what trains and what is frozen in the model of a configuration; needs no weights."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """examples:
  python tools/parameters.py --config config/etris_rn101.yaml
  python tools/parameters.py --config config/etris_vitb16.yaml --json
  python tools/parameters.py --config config/etris_vitb16.yaml --opts model.bridges.0.dim=64"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file of config/")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that go over the file's"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(argv)


def print_table(name: str, counts: dict[str, Any]) -> None:
    print(f"{name}\n")
    for part, number in counts["parts"].items():
        print(f"  {part:<28}{number:>14,}")
    print(f"  {'-' * 42}")
    labels = {
        **({"backbone": "trained of CLIP itself"} if counts["backbone"] else {}),
        "attached": "attached to CLIP",
        "head": "head (neck to projector)",
        "trainable": "trainable",
        "frozen_image_tower": "frozen image tower",
        "frozen_text_tower": "frozen text tower",
        "frozen": "frozen",
    }
    for key, label in labels.items():
        print(f"  {label:<28}{counts[key]:>14,}")
    for key, label in (("image_tower", "of the image tower"), ("both_towers", "of both towers")):
        share = counts[f"attached_share_of_{key}"]
        if share is not None:
            print(f"  {'attached, ' + label:<32}{share:>10.2%}")


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from engine.parameters import count
    from utils.config import load_config

    try:
        counts = count(load_config(arguments.config, arguments.opts))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({"config": arguments.config, **counts}, indent=2))
    else:
        print_table(arguments.config, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
