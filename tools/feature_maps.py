"""Read what a model sees in a picture by forward hooks, and draw it as one sheet.

Everything comes from the one forward pass that ``test.py`` and ``predict.py`` would make.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor, nn

from engine.evaluator import predict_logits
from engine.metrics import threshold_mask
from engine.precision import autocast, scoring_precision
from model import Segmenter
from model.backbones import CLIP, cpu_kernels
from model.backbones.attention import Attention
from model.backbones.eva import RotaryAttention
from model.backbones.state import Features, to_map, to_tokens
from model.bridges.bridger import Bridger, Gate
from model.bridges.intertwine import Intertwine
from model.encoder import Encoder
from model.side.gst import GlobalShortcut, global_prior
from utils.config import Config
from utils.data.tokenizer import split_words, tokenize
from utils.data.transforms import Letterbox, letterbox_image, restore_logits
from utils.images import overlay
from utils.sheets import BLACK, GREY, draw_text, grid, stack

PLAIN = "CLIP alone"
STAGES = 3  # maps of the image tower
WIDTH = 1060  # of the sheet, in pixels
GAP = 12
WORDS_IN_A_ROW = 6
TITLE, TEXT, CAPTION = 19, 13, 12  # heights of letters, in pixels
HEAT = 0.85  # share of the colours; the rest is the grey picture under them
MOST_LINES = 6  # of the sentence or a note
TINY = 1e-12  # instead of 0, to divide by
TITLES = {
    "bridger": "Words read by the bridger",
    "intertwine": "Words read by the image tower, through intertwining",
    "decoder": "Words read by the decoder",
    "prior": "Global prior of BarLeRIa",
    "sentence": "The end of the sentence",
}
# reader -> what is shown, where the rest of the attention goes
READERS = {
    "bridger": (
        "Attention of image cells to words between the towers, mean over heads and stages",
        "padding, as in the released code",
    ),
    "intertwine": (
        "Self-attention of patches to the words among them, mean over heads and blocks",
        "tokens that are no word of the sentence",
    ),
    "decoder": ("Attention of image cells to words, mean over heads and layers", ""),
}
Readers = dict[str, tuple[Sequence[nn.Module], slice]]  # modules, and which of their keys are words


@dataclass(frozen=True)
class ModelView:
    """What a model computes for ``text`` in ``image`` (H, W, 3); maps cover the letterboxed square.

    Attributes:
        model: the backbone, what is attached to it, and the side of its square.
        maps: what is attached -> a map (C, H, W) after each of the three stages.
        words: the words of the sentence, with its start and end.
        attention: reader -> how much each cell reads of each word (words, H, W).
        prior: weight of each cell in BarLeRIa's global prior (H, W).
        logits: (H, W) at the size of the picture.
        threshold: of the probability, above which a pixel belongs to the mask.
        absent: key of ``TITLES`` -> the reason why this model has none.
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

    @property
    def mask(self) -> np.ndarray:
        """Where the probability is above the threshold: bool (H, W)."""
        return threshold_mask(self.logits, self.threshold).numpy()


@torch.no_grad()
def view_model(
    segmenter: Segmenter, config: Config, image: np.ndarray, text: str, *, device: torch.device
) -> ModelView:
    """Segment ``text`` in ``image`` (H, W, 3) RGB uint8 and keep features and attention.

    Raises:
        ValueError: if the text is empty.
    """
    if not text.strip():
        raise ValueError("--text is empty; describe one object")
    segmenter = segmenter.to(device).eval()
    encoder, precision = segmenter.encoder, scoring_precision(config, device)
    square, letterbox = letterbox_image(image, config.data.image_size)
    pixels = torch.from_numpy(square).permute(2, 0, 1)[None].to(device)  # (1, 3, S, S)
    length = len(encoder.clip.text.positions)
    ids, (num_tokens,) = tokenize(text, config.data.max_words or length, length)  # (1, L)
    ids = ids.to(device)
    words = split_words(text, ids.shape[1])
    readers, absent = find_readers(segmenter, ids.shape[1])
    with ExitStack() as hooks:
        passes = hooks.enter_context(
            recorded([segmenter.decoder], lambda _, given, __: given["features"])
        )
        weights = {
            name: hooks.enter_context(
                recorded(modules, lambda layer, given, _: attention_weights(layer, given)[0].cpu())
            )
            for name, (modules, _) in readers.items()
        }
        (logits,) = predict_logits(segmenter, pixels, [ids], precision=precision, device=device)
    features = passes[0]
    with autocast(precision, device):
        prior = read_prior(segmenter.side, features, ids)
        maps = _maps_without(segmenter, config, encoder.clip.normalize(pixels))
    attached = [*config.model.adapters, *config.model.bridges]
    maps[f"with {_names(attached)}" if attached else PLAIN] = _first(features.maps)
    if prior is None:
        absent["prior"] = "model.side is null"
    if num_tokens > ids.shape[1]:
        absent["sentence"] = f"it has {num_tokens} tokens and is cut to {ids.shape[1]}"
    name = segmenter.backbone["name"] or segmenter.backbone["weights"]
    side = [] if config.model.side is None else [config.model.side]
    parts = _names([*attached, *side]) or "nothing attached"
    size = config.data.image_size
    return ModelView(
        model=f"{name} with {parts}, at {size} x {size} pixels",
        image=image,
        text=text,
        letterbox=letterbox,
        maps=maps,
        words=tuple(word for word, _ in words),
        attention={
            name: _by_word(weights[name], keys, words, features.maps[1].shape[2:])
            for name, (_, keys) in readers.items()
        },
        prior=prior,
        logits=restore_logits(logits[0], letterbox).cpu(),
        threshold=config.eval.threshold,
        absent=absent,
    )


@contextmanager
def recorded(
    modules: Iterable[nn.Module], read: Callable[[Any, Mapping[str, Any], Any], Any]
) -> Iterator[list[Any]]:
    """Collect ``read(module, arguments, output)`` of every pass through one of ``modules``."""
    values: list[Any] = []

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        values.append(read(module, arguments, output))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        yield values
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
    mask = arguments.get("attention_mask")
    bias = None if mask is None else cpu_kernels.attention_bias(mask, q)[:, None, None]
    return cpu_kernels.attention_weights(q * q.shape[3] ** -0.5, k, bias).float().mean(dim=1)


def find_readers(segmenter: Segmenter, num_words: int) -> tuple[Readers, dict[str, str]]:
    """Find the attention by which image cells read the ``num_words`` tokens.

    Returns:
        The readers by name, and for each absent one the reason.
    """
    readers: Readers = {}
    absent = {
        "decoder": "model.decoder.layers is 0",
        "bridger": "model.bridges has no bridger",
        "intertwine": "model.bridges has no intertwine",
    }
    for bridge in segmenter.encoder.bridges:
        if isinstance(bridge, Bridger):
            stages: list[Any] = [
                bridge.stage(i).image_interactor for i in range(len(bridge.stages))
            ]
            layers = [s.attention if isinstance(s, Gate) else s.cross_attention for s in stages]
            readers["bridger"] = layers, slice(None)
        elif isinstance(bridge, Intertwine) and bridge.to_image is None:
            absent["intertwine"] = "its directions are text, the image tower reads no words"
        elif isinstance(bridge, Intertwine):
            blocks: Any = segmenter.encoder.clip.visual.blocks
            first = slice(1, 1 + num_words)  # after the class token
            words = slice(-num_words, None) if bridge.refresh == "block" else first
            readers["intertwine"] = [block.attention.branch for block in blocks], words
    if segmenter.decoder.transformer is not None:
        decoder: Any = segmenter.decoder.transformer.layers
        readers["decoder"] = [layer.cross_attention for layer in decoder], slice(None)
    return readers, {name: why for name, why in absent.items() if name not in readers}


def read_prior(side: nn.Module | None, features: Features, ids: Tensor) -> Tensor | None:
    """Compute ``clamp(cos(x, f), 0, 1)`` of each cell ``x`` in ``global_prior``: (H, W)."""
    if not isinstance(side, GlobalShortcut):
        return None
    words, joint = (
        side.narrow(x[:1]) for x in (features.word_features, to_tokens(features.joint_map))
    )
    prior = global_prior(words, joint, ids != 0)[:, words.shape[1] :]  # (1, HW, C)
    cells = joint.float()
    factor = (prior * cells).sum(dim=2) / cells.square().sum(dim=2).clamp(min=TINY)
    return factor[0].unflatten(0, features.joint_map.shape[2:]).cpu()


def _maps_without(
    segmenter: Segmenter, config: Config, image: Tensor
) -> dict[str, tuple[Tensor, ...]]:
    """Compute the maps without the adapters and the bridges, and without the bridges alone."""
    clip, attached = segmenter.encoder.clip, config.model
    encoders: dict[str, Encoder] = {}
    if attached.adapters or attached.bridges:
        # Adapters add state and rename none: the own weights of CLIP are found by their names.
        plain = CLIP(clip.sizes, image_size=image.shape[-1], max_tokens=len(clip.text.positions))
        state = clip.state_dict()
        plain.load_state_dict({key: state[key] for key in plain.state_dict()})
        plain = plain.to(image.device).to(memory_format=torch.channels_last).eval()
        encoders[PLAIN] = Encoder(plain, [])
    if attached.adapters and attached.bridges:
        encoders[f"with {_names(attached.adapters)}, without the bridges"] = Encoder(clip, [])
    return {label: _first(encoder.begin(image).maps) for label, encoder in encoders.items()}


def _first(maps: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x[0].float().cpu() for x in maps)


def _names(attached: Iterable[Mapping[str, Any]]) -> str:
    return " and ".join(options["name"] for options in attached)


def _by_word(
    weights: Sequence[Tensor], keys: slice, words: list[tuple[str, int]], grid: torch.Size
) -> Tensor:
    """Average ``weights`` (N, M) of all modules and sum them over each word's tokens.

    Image cells are the last of the N queries: -> ``(words, H, W)``.
    """
    mean = torch.stack(list(weights)).mean(dim=0)[-math.prod(grid) :, keys]  # (HW, L)
    maps = to_map(mean[None], grid)[0]  # (L, H, W)
    counts = [count for _, count in words]
    return torch.stack([tokens.sum(dim=0) for tokens in maps[: sum(counts)].split(counts)])


def draw_sheet(view: ModelView) -> np.ndarray:
    """Draw uint8 (H, W, 3) RGB: the mask, feature maps, attention to words, the prior."""
    probability = view.logits.sigmoid().numpy()
    limits = f"{probability.min():.2f} to {probability.max():.2f}"
    share = f"{100 * view.mask.mean():.1f} % of the picture"
    panels = [
        (_fit(view.image, STAGES), "the picture"),
        (_heat(_fit(probability, STAGES), 0, 1), f"probability, dark 0, bright 1: {limits}"),
        (
            _fit(overlay(view.image, view.mask), STAGES),
            f"mask, probability above {view.threshold:g}: {share}",
        ),
    ]
    parts = [_text(f"“{view.text.strip()}”", TITLE), _text(view.model, TEXT, GREY)]
    parts += [_section("What it finds", "", panels, STAGES), _draw_maps(view)]
    parts += [_draw_attention(view, reader) for reader in READERS if reader in view.attention]
    if view.prior is not None:
        cells = _lay(view, view.prior, STAGES)
        caption = f"dark 0, bright 1: {cells.min():.2f} to {cells.max():.2f}"
        note = (
            "Cosine of each cell with the mean of the words, both as the side network reads them, "
            "clamped to 0 and 1 (BarLeRIa, eq. 4): the share of the cell that passes."
        )
        parts.append(
            _section(TITLES["prior"], note, [(_colour(view, cells, 0, 1), caption)], STAGES)
        )
    if view.absent:
        listed = "; ".join(f"{TITLES[key]}: {reason}" for key, reason in view.absent.items())
        parts.append(_text(f"Absent: {listed}.", TEXT, GREY))
    return np.pad(stack(parts), ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


def _draw_maps(view: ModelView) -> np.ndarray:
    """Draw a row for each way of running the tower, and the change that the last one made."""
    rows = {
        label: [_lay(view, stage.abs().mean(dim=0), STAGES) for stage in maps]
        for label, maps in view.maps.items()
    }
    # a few cells with extreme values do not darken the others
    scales = [np.percentile(np.stack(stage), [1, 99]) for stage in zip(*rows.values(), strict=True)]
    panels = []
    for label, row in rows.items():
        for stage, (cells, scale) in enumerate(zip(row, scales, strict=True)):
            height, width = view.maps[label][stage].shape[1:]
            caption = (
                f"stage {stage + 1}, {label}\n{height} x {width} cells, mean {cells.mean():.2f}"
            )
            panels.append((_colour(view, cells, *scale), caption))
    ranges = ", ".join(
        f"stage {stage} {low:.2f} to {high:.2f}" for stage, (low, high) in enumerate(scales, 1)
    )
    note = (
        "Mean over channels of the absolute value: how strongly a place responds. All maps of a "
        "stage share one scale, so that brighter is stronger in each of them; from dark to bright: "
        f"{ranges}. The red line is the outline of the mask. "
    )
    if len(rows) == 1:
        note += "Nothing is attached to the towers, so that there is nothing to compare with."
    else:
        note += (
            "The last row compares the two rows above it: |b - a| / |a|, where a and b are the "
            "channels of a cell in the first and in the second; dark 0, bright its maximum."
        )
        for stage, (a, b) in enumerate(zip(*list(view.maps.values())[-2:], strict=True), 1):
            change = (b - a).norm(dim=0) / a.norm(dim=0).clamp(min=TINY)
            cells = _lay(view, change, STAGES)
            limits = f"{100 * cells.min():.0f} to {100 * cells.max():.0f} %"
            caption = f"stage {stage}, change between the two rows above\n{limits}"
            panels.append((_colour(view, cells, 0, cells.max()), caption))
    return _section("Feature maps of the image tower", note, panels, STAGES)


def _draw_attention(view: ModelView, reader: str) -> np.ndarray:
    note, elsewhere = READERS[reader]
    maps = [_lay(view, values, WORDS_IN_A_ROW) for values in view.attention[reader]]
    panels = []
    for word, cells in zip(view.words, maps, strict=True):
        mean, least, most = 100 * cells.mean(), 100 * cells.min(), 100 * cells.max()
        colours = _colour(view, cells, 0, cells.max())
        panels.append((colours, f"{word}\n{mean:.1f} %, {least:.1f} to {most:.1f}"))
    note = f"{note}. Below each word its mean share and the range; dark is 0, bright its maximum."
    rest = 1 - sum(cells.mean() for cells in maps)
    if elsewhere and rest > 0.005:
        note += f" The rest, {100 * rest:.0f} %, goes to {elsewhere}."
    return _section(TITLES[reader], note, panels, WORDS_IN_A_ROW)


def _section(
    title: str, note: str, panels: Iterable[tuple[np.ndarray, str]], columns: int
) -> np.ndarray:
    """Draw a title, a note, and the panels with their captions in rows."""
    width = _column(columns)
    cells = [stack([picture, draw_text(text, width, size=CAPTION)]) for picture, text in panels]
    strips = [_text("", TEXT), _text(title, TITLE), *([_text(note, TEXT, GREY)] if note else [])]
    return stack([*strips, grid(cells, columns, gap=GAP)])


def _text(text: str, size: int, colour: str = BLACK) -> np.ndarray:
    strip = draw_text(text, WIDTH, size=size, colour=colour, max_lines=MOST_LINES)
    return np.pad(strip, ((0, GAP // 2), (0, 0), (0, 0)), constant_values=255)


def _column(columns: int) -> int:
    return (WIDTH + GAP) // columns - GAP


def _fit(image: np.ndarray, columns: int) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) so that its longer side is as wide as one of ``columns``."""
    height, width = image.shape[:2]
    height, width = Letterbox.fit(height, width, _column(columns)).inner
    shrinks = width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def _lay(view: ModelView, values: Tensor, columns: int) -> np.ndarray:
    """Cut a map of the letterboxed square to the picture, at its size on the sheet: float32."""
    side = view.letterbox.size
    square = cv2.resize(values.numpy(), (side, side), interpolation=cv2.INTER_NEAREST)
    size = _fit(view.image, columns).shape[1::-1]
    return cv2.resize(square[view.letterbox.window], size, interpolation=cv2.INTER_NEAREST)


def _heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colour ``low`` and less dark, ``high`` and more bright: uint8 (H, W, 3)."""
    return colormaps["viridis"]((values - low) / max(high - low, TINY), bytes=True)[:, :, :3]


def _colour(view: ModelView, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colour ``values`` over the grey picture and outline the mask: uint8 (H, W, 3)."""
    size = values.shape[::-1]
    image = cv2.resize(view.image, size, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    colours = cv2.addWeighted(_heat(values, low, high), HEAT, grey, 1 - HEAT, 0)
    mask = cv2.resize(view.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return overlay(colours, mask.astype(bool), brightness=1.0)
