"""Pictures to begin with: scenes as the demo data have them, or the user's own."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.prediction_io import find_pictures
from utils.demo.drawing import render
from utils.demo.language import draw_expression
from utils.demo.scenes import make_scene

from .uploads import read_limited

MOST_EXAMPLES = 8
SEEDS = (17, 23, 29, 38)
HEIGHT, WIDTH = 132, 176  # as large as the pictures that the demo's models trained on


class Example(NamedTuple):
    """A picture (H, W, 3) and sentences that suit it, or none."""

    image: np.ndarray
    texts: list[str]


def draw_examples() -> list[Example]:
    """A few scenes of coloured shapes, always the same, with a sentence for two shapes each."""
    examples = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, height=HEIGHT, width=WIDTH, num_objects=4)
        texts = [draw_expression(rng, scene, index) for index in range(len(scene.objects))]
        examples.append(Example(render(scene), [text for text in texts if text is not None][:2]))
    return examples


def read_examples(words: Sequence[str]) -> list[Example]:
    """The pictures that ``words`` name: files, folders and globs, without sentences.

    Raises:
        ValueError: a picture that is missing, too large or damaged, or too many of them.
    """
    inputs = find_pictures(words, [])
    if inputs.problems:
        raise ValueError(f"--examples: {inputs.problems[0]}")
    if len(inputs.texts) > MOST_EXAMPLES:
        raise ValueError(f"--examples: {len(inputs.texts)} pictures; name {MOST_EXAMPLES} at most")
    return [Example(read_limited(path), []) for path in inputs.texts]
