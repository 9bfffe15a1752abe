"""What ``tools.feature_maps`` saw, as one picture with captions."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from engine.threshold import found
from tools.feature_maps import Sight
from utils.data.transforms import Letterbox
from utils.lettering import BLACK, GREY, lettering, wrap
from utils.pictures import overlay

WIDTH = 1060  # of the sheet, in pixels
GAP = 12
TITLE, TEXT, CAPTION = 21, 15, 14  # heights of letters, in pixels
STAGES = 3
TINY = 1e-12  # instead of 0, to divide by
WORDS_IN_A_ROW = 6
HEAT, GHOST = 0.85, 0.15  # shares of colour and of the grey picture under it
MOST_ROWS = 6  # of the sentence
# reader -> title, what is shown, where the rest of the attention goes
READERS = {
    "bridger": (
        "Words read by the bridger",
        "attention of image cells to words between the towers, mean over heads and stages",
        "padding, as in the released code",
    ),
    "intertwine": (
        "Words read by the image tower, through intertwining",
        "self-attention of patches to the words among them, mean over heads and blocks",
        "what is no word of the sentence",
    ),
    "decoder": (
        "Words read by the decoder",
        "attention of image cells to words, mean over heads and layers",
        "",
    ),
}
PRIOR = "Global prior of BarLeRIa"
NAMES = {key: title for key, (title, *_) in READERS.items()}
NAMES |= {"prior": PRIOR, "sentence": "The end of the sentence"}


class Panel(NamedTuple):
    """A picture (H, W, 3) and what stands below it, in one line or several."""

    picture: np.ndarray
    caption: str


def draw(sight: Sight) -> np.ndarray:
    """The sheet, uint8 (H, W, 3) RGB: the mask, feature maps, attention to words, the prior."""
    parts = [_text(f"“{sight.text.strip()}”", TITLE), _text(sight.model, TEXT, GREY)]
    parts += [_found(sight), _feature_maps(sight)]
    parts += [_attention(sight, reader) for reader in READERS if reader in sight.attention]
    if sight.prior is not None:
        parts.append(_prior(sight, sight.prior))
    if sight.absent:
        listed = "; ".join(f"{NAMES[name]}: {why}" for name, why in sight.absent.items())
        parts.append(_text(f"Not here: {listed}.", TEXT, GREY))
    return np.pad(np.concatenate(parts), ((GAP, 0), (GAP, GAP), (0, 0)), constant_values=255)


def _found(sight: Sight) -> np.ndarray:
    probability, mask = sight.logits.sigmoid().numpy(), _mask(sight)
    size = _panel_size(sight.image, STAGES)
    scaled = cv2.resize(probability, size, interpolation=cv2.INTER_AREA)
    lowest, highest, share = probability.min(), probability.max(), 100 * mask.mean()
    panels = [
        Panel(_scale(sight.image, size), "the picture"),
        Panel(_heat(scaled, 0, 1), f"probability, dark 0, bright 1: {lowest:.2f} to {highest:.2f}"),
        Panel(
            _scale(overlay(sight.image, mask), size),
            f"mask, probability above {sight.threshold:g}: {share:.1f} % of the picture",
        ),
    ]
    return _section("What it finds", "", panels, STAGES)


def _feature_maps(sight: Sight) -> np.ndarray:
    """A row for each way of running the tower, and one for what the last of them changed."""
    size = _panel_size(sight.image, STAGES)
    rows = {
        label: [_lay(stage.abs().mean(dim=0), sight.letterbox, size) for stage in maps]
        for label, maps in sight.maps.items()
    }
    ranges = [_range([row[stage] for row in rows.values()]) for stage in range(STAGES)]
    panels = []
    for label, row in rows.items():
        for stage, (laid, scale) in enumerate(zip(row, ranges, strict=True)):
            height, width = sight.maps[label][stage].shape[1:]
            caption = (
                f"stage {stage + 1}, {label}\n{height} x {width} cells, mean {laid.mean():.2f}"
            )
            panels.append(Panel(_outlined(sight, _heat(laid, *scale)), caption))
    scales = ", ".join(
        f"stage {stage} {low:.2f} to {high:.2f}" for stage, (low, high) in enumerate(ranges, 1)
    )
    note = (
        "mean over channels of the absolute value: how strongly a place answers. All maps of a "
        "stage share one scale, so that brighter is stronger in any of them; from dark to bright: "
        f"{scales}. Red is the outline of the mask"
    )
    if len(rows) > 1:
        panels += _changes(sight, size)
        note += (
            ". The last row compares the two above it: |b - a| / |a|, with a and b the channels of "
            "a cell in the first and in the second of them; dark 0, bright its highest"
        )
    else:
        note += ". Nothing is attached to the towers, so that there is nothing to compare with"
    return _section("Feature maps of the image tower", note, panels, STAGES)


def _changes(sight: Sight, size: tuple[int, int]) -> list[Panel]:
    without, changed = list(sight.maps.values())[-2:]
    panels = []
    for stage, (x, y) in enumerate(zip(without, changed, strict=True), 1):
        share = (y - x).norm(dim=0) / x.norm(dim=0).clamp(min=TINY)
        laid = _lay(share, sight.letterbox, size)
        least, most = 100 * laid.min(), 100 * laid.max()
        caption = f"stage {stage}, change between the two rows above\n{least:.0f} to {most:.0f} %"
        panels.append(Panel(_outlined(sight, _heat(laid, 0, laid.max())), caption))
    return panels


def _attention(sight: Sight, reader: str) -> np.ndarray:
    title, note, elsewhere = READERS[reader]
    size = _panel_size(sight.image, WORDS_IN_A_ROW)
    panels: list[Panel] = []
    total = 0.0
    for word, values in zip(sight.words, sight.attention[reader], strict=True):
        laid = _lay(values, sight.letterbox, size)
        total += laid.mean()
        mean, least, most = 100 * laid.mean(), 100 * laid.min(), 100 * laid.max()
        colours = _over(sight, _heat(laid, 0, laid.max()))
        panels.append(Panel(colours, f"{word}\n{mean:.1f} %, {least:.1f} to {most:.1f}"))
    note += ". Below each word its mean share and the range; dark is 0, bright its highest"
    if elsewhere and total < 0.995:
        note += f". The rest, {100 * (1 - total):.0f} %, goes to {elsewhere}"
    return _section(title, note, panels, WORDS_IN_A_ROW)


def _prior(sight: Sight, prior: Tensor) -> np.ndarray:
    laid = _lay(prior, sight.letterbox, _panel_size(sight.image, STAGES))
    caption = f"dark 0, bright 1: {laid.min():.2f} to {laid.max():.2f}"
    note = (
        "cosine of each cell with the mean of the words, both as the side network reads them, "
        "clamped to 0 and 1 (BarLeRIa, eq. 4): how much of the cell is let through"
    )
    return _section(PRIOR, note, [Panel(_over(sight, _heat(laid, 0, 1)), caption)], STAGES)


def _section(title: str, note: str, panels: Sequence[Panel], columns: int) -> np.ndarray:
    """A title, what the panels show, and the panels in rows."""
    above = np.full((GAP, WIDTH, 3), 255, np.uint8)
    parts = [above, _text(title, TITLE)]
    if note:
        parts.append(_text(note[0].upper() + note[1:] + ".", TEXT, GREY))
    for start in range(0, len(panels), columns):
        parts.append(_row(panels[start : start + columns], columns))
    return np.concatenate(parts)


def _row(panels: Sequence[Panel], columns: int) -> np.ndarray:
    width = _column(columns)
    cells = []
    for picture, caption in panels:
        lines = [row for line in caption.splitlines() for row in wrap(line, width, size=CAPTION)]
        text = lettering(lines, width, size=CAPTION)
        cells.append(np.concatenate([_fill(picture, len(picture) + GAP // 3, width), text]))
    height = max(len(cell) for cell in cells) + GAP
    row = np.concatenate([_fill(cell, height, width + GAP) for cell in cells], axis=1)
    return _fill(row, height, WIDTH + GAP)[:, :WIDTH]


def _text(text: str, size: int, colour: tuple[int, int, int] = BLACK) -> np.ndarray:
    rows = wrap(text, WIDTH, size=size, most_rows=MOST_ROWS)
    strip = lettering(rows, WIDTH, size=size, colour=colour)
    return np.pad(strip, ((0, GAP // 2), (0, 0), (0, 0)), constant_values=255)


def _fill(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """White to the right of and below ``picture``."""
    missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.pad(picture, missing, constant_values=255)


def _column(columns: int) -> int:
    return (WIDTH + GAP) // columns - GAP


def _panel_size(image: np.ndarray, columns: int) -> tuple[int, int]:
    """Width and height of the picture in a panel, its longer side as wide as a column."""
    height, width = image.shape[:2]
    height, width = Letterbox.fit(height, width, _column(columns)).inner
    return width, height


def _scale(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _lay(values: Tensor, letterbox: Letterbox, size: tuple[int, int]) -> np.ndarray:
    """A map of the letterboxed square, cut to the picture, its cells as they are: float32."""
    side = letterbox.size
    square = cv2.resize(values.numpy(), (side, side), interpolation=cv2.INTER_NEAREST)
    height, width = letterbox.inner
    cut = square[letterbox.top :, letterbox.left :][:height, :width]
    return cv2.resize(cut, size, interpolation=cv2.INTER_NEAREST)


def _range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """What is dark and what is bright; a few cells that stick out don't darken the others."""
    low, high = np.percentile(np.stack(maps), [1, 99])
    return float(low), float(high)


def _heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    share = (values - low) / max(high - low, TINY)
    colours = cv2.applyColorMap((255 * share.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)


def _over(sight: Sight, colours: np.ndarray) -> np.ndarray:
    """Colours over the grey picture, so that its objects are seen through them."""
    grey = cv2.cvtColor(_scale(sight.image, colours.shape[1::-1]), cv2.COLOR_RGB2GRAY)
    ghost = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    return _outlined(sight, cv2.addWeighted(colours, HEAT, ghost, GHOST, 0))


def _outlined(sight: Sight, colours: np.ndarray) -> np.ndarray:
    size = colours.shape[1::-1]
    mask = cv2.resize(_mask(sight).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return overlay(colours, mask.astype(bool), brightness=1.0)


def _mask(sight: Sight) -> np.ndarray:
    return found(sight.logits, sight.threshold).numpy()
