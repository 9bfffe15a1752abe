"""Count what trains and what is frozen in the model of a configuration; needs no weights.

python tools/parameters.py --config config/etris_rn101.yaml
python tools/parameters.py --config config/etris_vitb16.yaml --json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file of config/")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY=VALUE", help="overrides")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(argv)


def count(config: Any) -> dict[str, Any]:
    """Numbers of parameters by part, for the model of a :class:`utils.config.Config`.

    Shares are trainable parameters outside the decoder over those of the image tower and of both.
    """
    import torch
    from torchvision.ops import FrozenBatchNorm2d

    from model import build_segmenter

    with torch.device("meta"):
        segmenter = build_segmenter(
            config.model,
            image_size=config.data.image_size,
            max_words=config.data.longest_sentence,
            load_weights=False,
        )
    clip, decoder = segmenter.encoder.clip, segmenter.decoder

    def size(module: Any, trains: bool = True) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad == trains)

    def affine(module: Any) -> int:
        """Scales and shifts of frozen normalisation layers, which are buffers there."""
        norms = (m for m in module.modules() if isinstance(m, FrozenBatchNorm2d))
        return sum(norm.weight.numel() + norm.bias.numel() for norm in norms)

    parts = {"inside the towers": size(clip)} if size(clip) else {}
    for options, bridge in zip(config.model.bridges, segmenter.encoder.bridges, strict=True):
        parts[options["name"]] = size(bridge)
        for stage, module in enumerate(getattr(bridge, "stages", [])):
            parts[f"{options['name']} stage {options.get('stages', (0, 1, 2))[stage]}"] = size(
                module
            )
    attached = size(segmenter.encoder)
    if segmenter.side is not None:
        parts[config.model.side["name"]] = size(segmenter.side)
        attached += size(segmenter.side)
    if decoder.connect is not None:
        parts["connect"] = size(decoder.connect)
    parts |= {"neck": size(decoder.neck), "decoder": size(decoder.transformer)}
    parts["projector"] = size(decoder.projector)
    image = size(clip.visual, trains=False) + affine(clip.visual)
    text = size(clip.text, trains=False)
    return {
        "parts": parts,
        "attached": attached,
        "head": size(decoder),
        "trainable": size(segmenter),
        "frozen": image + text,
        "frozen_image_tower": image,
        "frozen_text_tower": text,
        "attached_share_of_image_tower": attached / image if image else None,
        "attached_share_of_both_towers": attached / (image + text) if image + text else None,
    }


def print_table(name: str, counts: dict[str, Any]) -> None:
    print(f"{name}\n")
    for part, number in counts["parts"].items():
        print(f"  {part:<28}{number:>14,}")
    print(f"  {'-' * 42}")
    labels = {
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
