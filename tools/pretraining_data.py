"""Batches of generated scenes with captions and expressions, for the demo's own small CLIPs."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.demo.drawing import render, visible_masks
from utils.demo.language import STYLES, Expression, caption, draw_expression, fits, parse
from utils.demo.scenes import Scene, make_scene

SCENES = {"train": 7_001, "held out": 7_002}  # random streams of their own, apart from the demo's
PADDING = (122, 117, 104)  # CLIP's mean colour
STYLE_SHARES = (0.5, 0.25, 0.25)  # attribute, place, relation


class PretrainingBatches(Dataset):
    """Batch ``index`` of an endless stream, the same for the same seed on every machine.

    An item holds, for B scenes and T expressions (one for each object):
        image: uint8 (B, 3, S, S), RGB, the scene padded to a square;
        captions, expressions: lists of B and T texts;
        owner: int64 (T,), the scene that an expression is about;
        target: bool (T, S, S), what is seen of the object that it singles out;
        style: int64 (T,), its place in ``STYLES``; attributes alone in the first
            ``attribute_batches``;
        unrelated: bool (B, T), False where an expression happens to be true of another's scene.
    """

    def __init__(
        self,
        *,
        stream: str,
        seed: int,
        batch_size: int,
        image_size: int,
        length: int,
        attribute_batches: int = 0,
    ):
        self.stream, self.seed, self.length = SCENES[stream], seed, length
        self.attribute_batches = attribute_batches
        self.batch_size, self.image_size = batch_size, image_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor | list[str]]:
        rng = np.random.default_rng([self.stream, self.seed, index])
        scenes = [self.draw_scene(rng) for _ in range(self.batch_size)]
        styles = (1, 0, 0) if index < self.attribute_batches else STYLE_SHARES
        texts, owner, target, style = [], [], [], []
        for number, scene in enumerate(scenes):
            masks = visible_masks(scene)
            for position in range(len(scene.objects)):
                text, kind = draw_text(rng, scene, position, styles)
                texts.append(text)
                owner.append(number)
                target.append(self.pad(masks[position].astype(np.uint8), 0).astype(bool))
                style.append(kind)
        images = np.stack([self.pad(render(scene), PADDING) for scene in scenes])
        return {
            "image": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            "captions": [caption(rng, scene) for scene in scenes],
            "expressions": texts,
            "owner": torch.tensor(owner),
            "target": torch.from_numpy(np.stack(target)),
            "style": torch.tensor(style),
            "unrelated": torch.from_numpy(unrelated(scenes, texts, owner)),
        }

    def draw_scene(self, rng: np.random.Generator) -> Scene:
        """A scene whose longer side is the image size; one in eight has a single object."""
        short = int(self.image_size * rng.uniform(0.62, 1.0))
        height, width = (short, self.image_size) if rng.random() < 0.5 else (self.image_size, short)
        num_objects = 1 if rng.random() < 0.125 else None
        return make_scene(rng, height=height, width=width, num_objects=num_objects)

    def pad(self, image: np.ndarray, value: int | tuple[int, int, int]) -> np.ndarray:
        """The image in the middle of a square of ``image_size``."""
        size = self.image_size
        square = np.full((size, size, *image.shape[2:]), value, np.uint8)
        top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
        square[top : top + image.shape[0], left : left + image.shape[1]] = image
        return square


def draw_text(
    rng: np.random.Generator, scene: Scene, position: int, shares: tuple[float, ...]
) -> tuple[str, int]:
    """An expression that singles out one object, and its style; attributes where no other fits."""
    style = int(rng.choice(len(STYLES), p=shares))
    text = draw_expression(rng, scene, position, STYLES[style])
    if text is None:
        style, text = 0, draw_expression(rng, scene, position, STYLES[0])
    assert text is not None, "three attributes single out every object"
    return text, style


def unrelated(scenes: list[Scene], texts: list[str], owner: list[int]) -> np.ndarray:
    """Whether an expression is false of a scene: bool (B, T); its own scene counts as related."""
    said = [parse(text) for text in texts]
    result = np.empty((len(scenes), len(texts)), bool)
    for row, scene in enumerate(scenes):
        shown = {(shape.kind, shape.colour, shape.size) for shape in scene.objects}
        for column, expression in enumerate(said):
            related = owner[column] == row or (
                any(mentions(name, expression) for name in shown) and bool(fits(expression, scene))
            )
            result[row, column] = not related
    return result


def mentions(name: tuple[str, str, str], expression: Expression) -> bool:
    """Whether an object of that kind, colour and size can be the one that is spoken of."""
    return all(not said or said == shown for said, shown in zip(expression[:3], name, strict=True))
