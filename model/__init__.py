"""From a configuration to a model."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from model.adapters import ADAPTERS
from model.backbones import (
    CLIP,
    agree,
    load_weights,
    read_weights,
    sha256_of,
    sizes_of_name,
    sizes_of_state,
)
from model.backbones.norm import FrozenNorm
from model.bridges import BRIDGES
from model.decoder import Decoder
from model.encoder import Encoder
from model.segmenter import Segmenter
from model.side import SIDES, Side

__all__ = ["Segmenter", "build_clip", "build_segmenter"]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenNorm,
    "batch": nn.BatchNorm2d,
}

LR_SCALE = "lr_scale"  # an option of every module, which its constructor does not see


def build_segmenter(
    config: Any, *, image_size: int, max_words: int, load_weights: bool = True
) -> Segmenter:
    """Build the model that a configuration's section ``model`` describes.

    Args:
        config: the section ``model`` as ``utils.config`` reads it.
        image_size: side of the square input in pixels.
        max_words: longest sentence in tokens, start and end included.
        load_weights: read CLIP's weights; if not, they are random, and only the sizes are real.

    Raises:
        ValueError: for every mistake in the configuration or the weights that it names.
    """
    trains_clip = config.backbone.tuning == "full"
    clip, backbone = build_clip(
        config.backbone.name,
        config.backbone.weights,
        image_size=image_size,
        max_words=max_words,
        norm=NORMS["batch" if trains_clip else config.backbone_norm],
        load=load_weights,
    )
    if trains_clip:
        clip.tune()
    else:
        clip.freeze(train_positions=config.train_positions)
    lr_scales: dict[str, float] = {}  # by the name of a parameter
    for place, options in enumerate(config.adapters):
        before = {name for name, _ in clip.named_parameters()}
        attach(ADAPTERS, options, f"model.adapters.{place}", clip)
        added = [name for name, _ in clip.named_parameters() if name not in before]
        lr_scales |= own_lr_scales(options, "encoder.clip", added)
    bridges = []
    for place, options in enumerate(config.bridges):
        bridge = attach(BRIDGES, options, f"model.bridges.{place}", clip)
        bridges.append(bridge)
        added = [name for name, _ in bridge.named_parameters()]
        lr_scales |= own_lr_scales(options, f"encoder.bridges.{place}", added)
    grid = image_size // clip.visual.strides[1]
    decoder = Decoder(clip, grid=grid, max_words=max_words, **dict(config.decoder))
    side = None
    if config.side is not None:
        # last: a seed gives all the rest the same weights as without it
        side = attach(SIDES, config.side, "model.side", clip, grid, config.decoder.dim)
        added = [name for name, _ in side.named_parameters()]
        lr_scales |= own_lr_scales(config.side, "side", added)
    taps = cast(Side, side).taps if side is not None else ()
    segmenter = Segmenter(Encoder(clip, bridges, taps=taps), decoder, backbone, side, lr_scales)
    # a sixth faster for a ResNet's training step on a CPU, and what tensor cores want
    return segmenter.to(memory_format=torch.channels_last)


def own_lr_scales(
    options: Mapping[str, Any], prefix: str, names: Sequence[str]
) -> dict[str, float]:
    """``lr_scale`` of a module for each of its parameters, by full name; nothing without one."""
    return {f"{prefix}.{name}": options[LR_SCALE] for name in names if LR_SCALE in options}


def build_clip(
    name: str | None,
    weights: str | None,
    *,
    image_size: int,
    max_words: int,
    norm: Callable[[int], nn.Module] = FrozenNorm,
    load: bool = True,
) -> tuple[CLIP, dict[str, str | None]]:
    """A CLIP by its name, its file or both, and what it is: name, weights, SHA-256 of the file.

    Raises:
        ValueError: if both are missing, the file cannot be read, or the two don't agree.
    """
    backbone: dict[str, str | None] = {"name": name, "weights": weights, "sha256": None}
    if not weights and load:
        raise ValueError(
            f"model.backbone.weights is not set: a random CLIP is of no use; get the file with "
            f"`python tools/download_weights.py {name or 'RN101'}` and name it there"
        )
    if weights and (load or name is None):
        state = read_weights(weights)
        sizes = sizes_of_state(state)
        if name is not None:
            agree(name, sizes, weights)
        clip = CLIP(sizes, image_size=image_size, max_words=max_words, norm=norm)
        load_weights(clip, state, weights)
        backbone["sha256"] = sha256_of(weights)
        return clip, backbone
    if name is None:
        raise ValueError("model.backbone: give a name, a file of weights or both")
    sizes = sizes_of_name(name)
    return CLIP(sizes, image_size=image_size, max_words=max_words, norm=norm), backbone


def attach(
    registry: Mapping[str, Callable[..., Any]], options: Mapping[str, Any], place: str, *built: Any
) -> Any:
    """Call the entry called ``options['name']`` with what is built and the other options.

    Raises:
        ValueError: if the name or an option is not known, naming the place in the configuration.
    """
    name = options.get("name")
    if name is None or name not in registry:
        known = ", ".join(registry) or "none yet"
        raise ValueError(f"{place}: no {name!r}; known: {known}")
    rest = {key: value for key, value in options.items() if key not in ("name", LR_SCALE)}
    known_options = [*list(inspect.signature(registry[name]).parameters)[len(built) :], LR_SCALE]
    for key in rest:
        if key not in known_options:
            near = difflib.get_close_matches(key, known_options, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known_options)}"
            raise ValueError(f"{place}: {name} has no option {key!r}; {hint}")
    try:
        return registry[name](*built, **rest)
    except TypeError as error:
        raise ValueError(f"{place}: {name} cannot be built with {rest}: {error}") from error
