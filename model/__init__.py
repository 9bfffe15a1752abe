"""Build a model from a configuration."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from model.adapters import ADAPTERS
from model.backbones import (
    CLIP,
    check_sizes_match,
    find_weights,
    load_weights,
    read_weights,
    sha256_of,
    sizes_of_name,
    sizes_of_state,
)
from model.backbones.cpu_kernels import FrozenNorm
from model.bridges import BRIDGES
from model.decoder import Decoder
from model.encoder import Encoder
from model.segmenter import Segmenter
from model.side import SIDES, Side

__all__ = ["Segmenter", "build_clip", "build_segmenter"]

NORMS: dict[str, Callable[[int], nn.Module]] = {"frozen": FrozenNorm, "batch": nn.BatchNorm2d}

LR_SCALE = "lr_scale"  # an option of every module, which its constructor does not get


def build_segmenter(
    config: Any, *, image_size: int, max_tokens: int, load_weights: bool = True
) -> Segmenter:
    """Build the model that the section ``model`` of a configuration describes.

    First comes CLIP, frozen; then what is attached to it, which trains.

    Args:
        config: the section ``model``, as ``utils.config`` reads it.
        image_size: side of the square input in pixels.
        max_tokens: longest sentence in tokens, start and end included.
        load_weights: read CLIP's weights; if not, they are random, and only the sizes are right.

    Raises:
        ValueError: for a mistake in the configuration or the file of weights.
    """
    is_tuned = config.backbone.tuning == "full"
    clip, backbone = build_clip(
        config.backbone.name,
        config.backbone.weights,
        image_size=image_size,
        max_tokens=max_tokens,
        norm=NORMS["batch" if is_tuned else config.backbone_norm],
        load=load_weights,
    )
    if is_tuned:
        clip.tune()
    else:
        clip.freeze(train_positions=config.train_positions)
    lr_scales: dict[str, float] = {}  # by the name of a parameter
    for place, options in enumerate(config.adapters):
        before = {name for name, _ in clip.named_parameters()}
        build_from_registry(ADAPTERS, options, f"model.adapters.{place}", clip)
        added = [name for name, _ in clip.named_parameters() if name not in before]
        lr_scales |= own_lr_scales(options, "encoder.clip", added)
    bridges = []
    for place, options in enumerate(config.bridges):
        bridge = build_from_registry(BRIDGES, options, f"model.bridges.{place}", clip)
        bridges.append(bridge)
        added = [name for name, _ in bridge.named_parameters()]
        lr_scales |= own_lr_scales(options, f"encoder.bridges.{place}", added)
    grid = image_size // clip.visual.strides[1]
    decoder = Decoder(clip, grid=grid, max_tokens=max_tokens, **dict(config.decoder))
    side = None
    if config.side is not None:
        # last, so that with one seed all other parts start the same with and without it
        side = build_from_registry(SIDES, config.side, "model.side", clip, grid, config.decoder.dim)
        added = [name for name, _ in side.named_parameters()]
        lr_scales |= own_lr_scales(config.side, "side", added)
    tap_steps = cast(Side, side).tap_steps if side is not None else ()
    encoder = Encoder(clip, bridges, tap_steps=tap_steps)
    segmenter = Segmenter(encoder, decoder, backbone, side, lr_scales)
    # a ResNet's training step is a sixth faster on a CPU, and tensor cores want this layout
    return segmenter.to(memory_format=torch.channels_last)


def own_lr_scales(
    options: Mapping[str, Any], prefix: str, names: Sequence[str]
) -> dict[str, float]:
    """Return the ``lr_scale`` of a module for each of its parameters, if the module has one."""
    return {f"{prefix}.{name}": options[LR_SCALE] for name in names if LR_SCALE in options}


def build_clip(
    name: str | None,
    weights: str | None,
    *,
    image_size: int,
    max_tokens: int,
    norm: Callable[[int], nn.Module] = FrozenNorm,
    load: bool = True,
) -> tuple[CLIP, dict[str, str | None]]:
    """Build a CLIP from its name, its file of weights or both.

    Returns:
        The CLIP, and its ``name``, ``weights`` and the ``sha256`` of the file, None if not read.

    Raises:
        ValueError: if both are missing, the file cannot be read, or the two do not match.
    """
    backbone: dict[str, str | None] = {"name": name, "weights": weights, "sha256": None}
    if not weights and load:
        raise ValueError(
            f"model.backbone.weights is not set, and a random CLIP is of no use; get the file with "
            f"`python tools/download_weights.py {name or 'RN101'}` and set the key to it"
        )
    if weights and (load or name is None):
        file = find_weights(weights)
        state = read_weights(file)
        sizes = sizes_of_state(state)
        if name is not None:
            check_sizes_match(name, sizes, weights)
        clip = CLIP(sizes, image_size=image_size, max_tokens=max_tokens, norm=norm)
        load_weights(clip, state, weights)
        backbone["sha256"] = sha256_of(file)
        return clip, backbone
    if name is None:
        raise ValueError("model.backbone: give a name, a file of weights or both")
    sizes = sizes_of_name(name)
    return CLIP(sizes, image_size=image_size, max_tokens=max_tokens, norm=norm), backbone


def build_from_registry(
    registry: Mapping[str, Callable[..., Any]], options: Mapping[str, Any], place: str, *built: Any
) -> Any:
    """Call the entry ``options['name']`` of a registry with ``built`` and the other options.

    Args:
        place: the place of the options in the configuration, for messages.
        built: what the entry is attached to: a CLIP and, for a side network, two sizes.

    Raises:
        ValueError: if the name or an option is not known, or a value is of a wrong type.
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
