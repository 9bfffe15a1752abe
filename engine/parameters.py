"""Count the parameters of a model that train and those that are frozen, by part."""

from typing import Any

import torch
from torch import nn

from model import build_segmenter
from model.backbones.cpu_kernels import FrozenNorm
from utils.config import Config


def count(config: Config) -> dict[str, Any]:
    """Count parameters by part for the model of a configuration; no file of weights is needed.

    ``backbone`` counts CLIP's own parameters that train, ``attached`` what trains in, between and
    beside its towers. Shares are ``attached`` over the frozen ones of the image tower and of both.
    """
    with torch.device("meta"):
        segmenter = build_segmenter(
            config.model,
            image_size=config.data.image_size,
            max_tokens=config.data.longest_sentence,
            load_weights=False,
        )
    clip, decoder = segmenter.encoder.clip, segmenter.decoder

    def size(module: nn.Module | None, trains: bool = True) -> int:
        parameters = module.parameters() if module is not None else ()
        return sum(p.numel() for p in parameters if p.requires_grad == trains)

    def tuned(tower: str) -> int:
        """Count CLIP's own parameters that train because all do."""
        named = getattr(clip, tower).named_parameters(prefix=tower)
        return sum(parameter.numel() for name, parameter in named if name in clip.tuned)

    towers = {"image tower": tuned("visual"), "text tower": tuned("text")}
    backbone = sum(towers.values())
    parts = towers | {"inside the towers": size(clip) - backbone}
    parts = {part: number for part, number in parts.items() if number}
    for options, bridge in zip(config.model.bridges, segmenter.encoder.bridges, strict=True):
        name, stages = options["name"], options.get("stages", (0, 1, 2))
        parts[name] = size(bridge)
        for stage, module in enumerate(getattr(bridge, "stages", [])):
            parts[f"{name} stage {stages[stage]}"] = size(module)
    attached = size(segmenter.encoder) - backbone + size(segmenter.side)
    if config.model.side is not None:
        parts[config.model.side["name"]] = size(segmenter.side)
    if decoder.connect is not None:
        parts["connect"] = size(decoder.connect)
    parts["neck"] = size(decoder.neck)
    parts["decoder"] = size(decoder.transformer)
    parts["projector"] = size(decoder.projector)
    # Scales and shifts of frozen normalisation layers are buffers.
    norms = [module for module in clip.visual.modules() if isinstance(module, FrozenNorm)]
    image = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    image += size(clip.visual, trains=False)
    text = size(clip.text, trains=False)
    return {
        "parts": parts,
        "backbone": backbone,
        "attached": attached,
        "head": size(decoder),
        "trainable": size(segmenter),
        "frozen": image + text,
        "frozen_image_tower": image,
        "frozen_text_tower": text,
        "attached_share_of_image_tower": attached / image if image else None,
        "attached_share_of_both_towers": attached / (image + text) if image + text else None,
    }
