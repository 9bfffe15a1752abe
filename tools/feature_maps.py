"""What a model sees in a picture: its feature maps, who reads which word, the prior, the mask.

All is read from the one pass that ``test.py`` and ``predict.py`` would make, by forward hooks that
are gone when it ends.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engine.evaluator import predict_logits
from engine.precision import autocast, scoring_precision
from model import Segmenter
from model.backbones import CLIP
from model.backbones.attention import Attention, hide, weigh
from model.backbones.blocks import Features, to_map, to_tokens
from model.backbones.eva import RotaryAttention
from model.bridges.bridger import Bridger, Gate, Stage
from model.bridges.intertwine import Intertwine
from model.encoder import Encoder
from model.side.gst import GlobalShortcut, global_prior
from utils.config import Config
from utils.data.tokenizer import split_words, tokenize
from utils.data.transforms import Letterbox, letterbox_image, restore_logits

PLAIN = "CLIP alone"


@dataclass(frozen=True)
class Sight:
    """What was seen in ``image`` (H, W, 3) for ``text``; maps cover the letterboxed square.

    Attributes:
        model: the backbone, what is attached to it, and the side of its square.
        maps: what is attached -> a map (C, H, W) after each of the three stages.
        words: what the sentence reads as, start and end with it.
        attention: reader -> how much each cell reads of each word (words, H, W).
        prior: weight of each cell in BarLeRIa's global prior (H, W).
        logits: (H, W) at the size of the picture; ``threshold`` is that of the mask.
        absent: what this model has none of, and why.
    """

    model: str
    image: np.ndarray
    text: str
    letterbox: Letterbox
    maps: Mapping[str, tuple[Tensor, ...]]
    words: tuple[str, ...]
    attention: Mapping[str, Tensor]
    prior: Tensor | None
    logits: Tensor
    threshold: float
    absent: Mapping[str, str]


class Reader(NamedTuple):
    """Attention by which image cells read words: the modules, and which of their keys are words."""

    modules: Sequence[nn.Module]
    words: slice


class Given(NamedTuple):
    """What a pass gets: letterboxed pixels (1, 3, S, S) uint8, ids (1, L), and how it runs."""

    pixels: Tensor
    ids: Tensor
    letterbox: Letterbox
    precision: str
    device: torch.device


@torch.no_grad()
def look(
    segmenter: Segmenter, config: Config, image: np.ndarray, text: str, *, device: torch.device
) -> Sight:
    """Segment ``text`` in ``image`` (H, W, 3) RGB uint8 and keep what is seen on the way.

    Raises:
        ValueError: if the text is empty.
    """
    if not text.strip():
        raise ValueError("--text is empty; say what to find")
    segmenter = segmenter.to(device).eval()
    square, letterbox = letterbox_image(image, config.data.image_size)
    pixels = torch.from_numpy(square).permute(2, 0, 1)[None].to(device)
    length = len(segmenter.encoder.clip.text.positions)
    max_words = config.data.max_words or length
    ids, lengths = tokenize(text, max_words, length)
    precision = scoring_precision(config, device)
    given = Given(pixels, ids.to(device), letterbox, precision, device)
    readers, absent = find_readers(segmenter, ids.shape[1])
    features, weights, logits = _segment(segmenter, given, readers)
    with autocast(precision, device):
        prior = read_prior(segmenter.side, features, given.ids)
    if prior is None:
        absent["prior"] = "model.side is null"
    if lengths[0] > ids.shape[1]:
        absent["sentence"] = f"it has {lengths[0]} tokens and is cut to {ids.shape[1]}"
    words, grid = split_words(text, ids.shape[1]), features.maps[1].shape[2:]
    return Sight(
        model=_describe(segmenter, config),
        image=image,
        text=text,
        letterbox=letterbox,
        maps=_maps_without(segmenter, config, given) | {_label(config): _first_maps(features.maps)},
        words=tuple(word for word, _ in words),
        attention={
            name: _by_word(weights[name], reader.words, words, grid)
            for name, reader in readers.items()
        },
        prior=prior,
        logits=logits,
        threshold=config.eval.threshold,
        absent=absent,
    )


@contextmanager
def recorded(
    modules: Iterable[nn.Module], read: Callable[[Any, Mapping[str, Any], Any], Any]
) -> Iterator[list[Any]]:
    """Collect ``read(module, arguments, output)`` of every pass through one of ``modules``."""
    heard: list[Any] = []

    def hear(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        heard.append(read(module, arguments, output))

    handles = [module.register_forward_hook(hear, with_kwargs=True) for module in modules]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(
    attention: Attention | RotaryAttention, arguments: Mapping[str, Any]
) -> Tensor:
    """``softmax(Q K^T / sqrt(D))``, mean over heads: ``(B, N, M)`` of a call with ``arguments``."""
    names = inspect.signature(attention.queries_and_keys).parameters
    given = {name: value for name, value in arguments.items() if name in names}
    q, k = attention.queries_and_keys(**given)  # (B, heads, N, D), (B, heads, M, D)
    keep = arguments.get("keep")
    bias = None if keep is None else hide(keep, q)[:, None, None]
    return weigh(q * q.shape[3] ** -0.5, k, bias).float().mean(dim=1)


def find_readers(segmenter: Segmenter, num_words: int) -> tuple[dict[str, Reader], dict[str, str]]:
    """Where image cells of this model read its ``num_words`` tokens, and why elsewhere none do."""
    readers: dict[str, Reader] = {}
    absent = {
        "decoder": "model.decoder.layers is 0",
        "bridger": "no bridger stands in model.bridges",
        "intertwine": "no intertwine stands in model.bridges",
    }
    for bridge in segmenter.encoder.bridges:
        if isinstance(bridge, Bridger):
            modules = [_cross_attention(bridge.stage(i)) for i in range(len(bridge.stages))]
            readers["bridger"] = Reader(modules, slice(None))
        elif isinstance(bridge, Intertwine) and bridge.to_image is None:
            absent["intertwine"] = "its directions are text, the image tower reads no words"
        elif isinstance(bridge, Intertwine):
            blocks: Any = segmenter.encoder.clip.visual.blocks
            first = slice(1, 1 + num_words)  # behind the class token
            words = slice(-num_words, None) if bridge.refresh == "block" else first
            readers["intertwine"] = Reader([block.attention.branch for block in blocks], words)
    transformer = segmenter.decoder.transformer
    if transformer is not None:
        layers: Any = transformer.layers
        modules = [layer.cross_attention for layer in layers]
        readers["decoder"] = Reader(modules, slice(None))
    return readers, {name: why for name, why in absent.items() if name not in readers}


def read_prior(side: nn.Module | None, features: Features, ids: Tensor) -> Tensor | None:
    """The factor ``clamp(cos(x, f), 0, 1)`` of every cell ``x`` in ``global_prior``: ``(H, W)``."""
    if not isinstance(side, GlobalShortcut):
        return None
    words, joint = (side.narrow(x[:1]) for x in (features.words, to_tokens(features.joint)))
    prior = global_prior(words, joint, ids != 0)[:, words.shape[1] :]  # (1, HW, C)
    cells = joint.float()
    factor = (prior * cells).sum(dim=2) / cells.square().sum(dim=2).clamp(min=1e-12)
    return factor[0].unflatten(0, features.joint.shape[2:]).cpu()


def plain_clip(clip: CLIP, image_size: int) -> CLIP:
    """The same CLIP without what is attached inside its blocks.

    Adapters add state and rename none, so that its own weights are found by their names.
    """
    plain = CLIP(clip.sizes, image_size=image_size, max_words=len(clip.text.positions))
    state = clip.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    return plain.to(clip.mean.device).to(memory_format=torch.channels_last).eval()


def _cross_attention(stage: Stage) -> Attention:
    """By which the image reads the words in a stage of the Bridger."""
    interactor: Any = stage.image_interactor
    return interactor.attention if isinstance(interactor, Gate) else interactor.cross_attention


def _segment(
    segmenter: Segmenter, given: Given, readers: Mapping[str, Reader]
) -> tuple[Features, dict[str, Tensor], Tensor]:
    """Features, weights (modules, N, M) of every reader, and logits (H, W), all of one pass."""
    with ExitStack() as stack:
        passes = stack.enter_context(recorded([segmenter.encoder], lambda _, __, output: output))
        weights = {
            name: stack.enter_context(recorded(reader.modules, _read_weights))
            for name, reader in readers.items()
        }
        logits = predict_logits(
            segmenter,
            given.pixels,
            [given.ids],
            precision=given.precision,
            device=given.device,
        )[0]
    restored = restore_logits(logits[0], given.letterbox).cpu()
    return passes[0], {name: torch.stack(rows) for name, rows in weights.items()}, restored


def _maps_without(
    segmenter: Segmenter, config: Config, given: Given
) -> dict[str, tuple[Tensor, ...]]:
    """Maps of the towers without the bridges, and without the adapters, where there are such."""
    clip, attached = segmenter.encoder.clip, config.model
    encoders: dict[str, Encoder] = {}
    if attached.adapters or attached.bridges:
        encoders[PLAIN] = Encoder(plain_clip(clip, config.data.image_size), [])
    if attached.adapters and attached.bridges:
        encoders[f"with {_names(attached.adapters)}, without the bridges"] = Encoder(clip, [])
    with autocast(given.precision, given.device):
        image = clip.normalize(given.pixels)
        return {
            label: _first_maps(encoder.encode_image(image).maps)
            for label, encoder in encoders.items()
        }


def _first_maps(maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x[0].float().cpu() for x in maps)


def _label(config: Config) -> str:
    attached = [*config.model.adapters, *config.model.bridges]
    return f"with {_names(attached)}" if attached else PLAIN


def _describe(segmenter: Segmenter, config: Config) -> str:
    side = [] if config.model.side is None else [config.model.side]
    attached = _names([*config.model.adapters, *config.model.bridges, *side]) or "nothing attached"
    name = segmenter.backbone["name"] or segmenter.backbone["weights"]
    return f"{name} with {attached}, at {config.data.image_size} x {config.data.image_size} pixels"


def _names(attached: Iterable[Any]) -> str:
    return " and ".join(dict(options)["name"] for options in attached)


def _read_weights(module: Any, arguments: Mapping[str, Any], _: Any) -> Tensor:
    first = {
        name: value[:1] if name not in ("cosine", "sine") and value is not None else value
        for name, value in arguments.items()
    }
    return attention_weights(module, first)[0].cpu()  # (N, M)


def _by_word(
    weights: Tensor, columns: slice, words: list[tuple[str, int]], grid: torch.Size
) -> Tensor:
    """``weights`` (modules, N, M), of all of them the mean, summed over each word's tokens.

    Image cells are the last of the queries: -> ``(words, H, W)``.
    """
    mean = weights.mean(dim=0)[-math.prod(grid) :, columns]  # (HW, L)
    maps = to_map(mean[None], grid)[0]  # (L, H, W)
    counts = [count for _, count in words]
    return torch.stack([tokens.sum(dim=0) for tokens in maps[: sum(counts)].split(counts)])
