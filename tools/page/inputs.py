"""Read pictures for the page: uploads, which are checked before decoding, and examples."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from engine.prediction_io import find_pictures, read_image
from utils.demo.drawing import render
from utils.demo.language import draw_expression
from utils.demo.scenes import make_scene

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 25_000_000
LIMITS = f"{MAX_BYTES / 2**20:.0f} MB and {MAX_PIXELS / 1e6:.0f} million pixels"
MAX_EXAMPLES = 8
# no format that Pillow would hand to another program
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
SEEDS = (17, 23, 29, 38)
HEIGHT, WIDTH = 132, 176  # of the pictures that the demo's models were trained on


class Example(NamedTuple):
    """A picture (H, W, 3) and sentences about it, or none."""

    image: np.ndarray
    texts: list[str]


def read_checked(path: Path) -> np.ndarray:
    """Read a picture as RGB, uint8 (H, W, 3), after its header says that it fits in memory.

    Raises:
        ValueError: a file that is missing, too large, damaged or no picture.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such picture")
    limit = f"a picture may have {LIMITS}"
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size / 2**20:.1f} MB are too much; {limit}")
    try:
        with Image.open(path, formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: far too many pixels; {limit}") from None
    except (OSError, SyntaxError, ValueError):  # what Pillow's readers raise on damaged headers
        raise ValueError(
            f"{path}: no picture that can be read; give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path}: {width} x {height} pixels are too many; {limit}")
    return read_image(path)


def take_upload(path: Path, uploads: Path) -> np.ndarray:
    """Read an upload as :func:`read_checked` does, and delete it with its folder in any case.

    Raises:
        ValueError: as ``read_checked``, but it names the file without its folder; or the file is
            not below ``uploads``: a client may send any path. Then it is neither read nor deleted.
    """
    if not path.resolve().is_relative_to(uploads.resolve()):
        raise ValueError(f"{path.name}: is no upload; choose the picture again")
    try:
        return read_checked(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # its name is a hash of the picture


def draw_examples() -> list[Example]:
    """Draw a few scenes of coloured shapes, always the same, with two sentences each."""
    examples = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, height=HEIGHT, width=WIDTH, num_objects=4)
        texts = [draw_expression(rng, scene, index) for index in range(len(scene.objects))]
        examples.append(Example(render(scene), [text for text in texts if text is not None][:2]))
    return examples


def read_examples(words: Sequence[str]) -> list[Example]:
    """Read the pictures that ``words`` name: files, folders and globs.

    Raises:
        ValueError: a picture that is missing, too large or damaged, or too many of them.
    """
    inputs = find_pictures(words, [])
    if inputs.problems:
        raise ValueError(f"--examples: {inputs.problems[0]}")
    if len(inputs.texts) > MAX_EXAMPLES:
        raise ValueError(f"--examples: {len(inputs.texts)} pictures; name {MAX_EXAMPLES} at most")
    return [Example(read_checked(path), []) for path in inputs.texts]
