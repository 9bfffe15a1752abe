"""Generated photographs and data sets of them: JPEGs with the statistics of natural pictures."""

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = (480, 640)
NAME = "bench"
# Amplitudes fall with the frequency, as those of photographs do (Field, 1987); with this contrast
# a pixel takes about half a byte, as in COCO.
FALL = 1.2
CONTRAST = 52.0
COLOUR_CONTRAST = 0.25  # of the contrast of brightness
JPEG_QUALITY = 90
CORNERS = 27  # of an outline, the mean of RefCOCO
OBJECTS = 3  # of a picture
SENTENCES = ("the tall man on the left", "a man in blue", "left")
HELD_OUT = 8  # every so many-th picture is of the split val


def photograph(seed: int) -> np.ndarray:
    """A picture of clouds, uint8 (480, 640, 3): noise with amplitudes ``1 / frequency ** FALL``."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean
    planes = []
    for _ in range(3):
        spectrum = np.fft.rfft2(rng.standard_normal(SIZE)) / frequency**FALL
        plane = np.fft.irfft2(spectrum, s=SIZE)
        planes.append(plane / plane.std())
    colours = planes[0] + COLOUR_CONTRAST * np.stack([planes[1], 0 * planes[0], planes[2]])
    return np.clip(120 + CONTRAST * colours, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def write_samples(root: Path, num_images: int) -> None:
    """Write and pack a data set called ``bench``: three objects a picture, three sentences each."""
    from utils.prepare.custom import jsonl_source
    from utils.prepare.pack import pack_dataset

    images = root / "images"
    images.mkdir()
    lines = []
    for number in range(num_images):
        name = f"{number}.jpg"
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        cv2.imwrite(str(images / name), photograph(number), quality)
        for place in range(OBJECTS):
            line = {
                "image": name,
                "polygon": outline(np.random.default_rng((number, place))),
                "sentences": list(SENTENCES),
                "split": "val" if number % HELD_OUT == 0 else "train",
            }
            lines.append(json.dumps(line) + "\n")
    annotations = root / "annotations.jsonl"
    annotations.write_text("".join(lines), encoding="utf-8")
    pack_dataset(root, jsonl_source(annotations, images=images, name=NAME))


def outline(rng: np.random.Generator) -> list[float]:
    """A star-shaped polygon inside a picture: x, y of its corners in turn."""
    height, width = SIZE
    angles = np.sort(rng.uniform(0, 2 * np.pi, CORNERS))
    radii = rng.uniform(0.7, 1.0, CORNERS) * rng.uniform(0.1, 0.3) * height
    middle = rng.uniform(0.3, 0.7, 2) * (width, height)
    corners = middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.round(corners, 2).ravel().tolist()
