"""How many parameters of a model train, and how many are frozen."""

from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from model import build_segmenter
from utils.config import Config


def count(config: Config) -> dict[str, Any]:
    """Numbers of parameters by part, for the model of a configuration; needs no weights.

    Shares are trainable parameters outside the decoder over those of the image tower and of both.
    """
    with torch.device("meta"):
        segmenter = build_segmenter(
            config.model,
            image_size=config.data.image_size,
            max_words=config.data.longest_sentence,
            load_weights=False,
        )
    clip, decoder = segmenter.encoder.clip, segmenter.decoder

    def size(module: nn.Module, trains: bool = True) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad == trains)

    def affine(module: nn.Module) -> int:
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
    if segmenter.side is not None and config.model.side is not None:
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
