"""Scenes of the demo data: a few coloured shapes that differ in kind, colour, size and place."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

COLOURS = {
    "red": (215, 35, 40),
    "green": (35, 150, 60),
    "blue": (40, 75, 215),
    "yellow": (240, 215, 40),
    "purple": (155, 45, 190),
    "white": (245, 245, 245),
    "black": (22, 22, 22),
}

# Diameters as a share of the shorter image side; the gap between the two ranges is wide on
# purpose, so that nobody has to guess which of two sizes is meant.
SIZES = {"small": (0.26, 0.32), "big": (0.44, 0.53)}

NUM_OBJECTS = {2: 0.3, 3: 0.4, 4: 0.22, 5: 0.08}
SHARED_KIND = 0.4  # chance that an object takes its kind from one already there
SHARED_COLOUR = 0.3
OVERLAP = 0.3  # chance that an object may touch and cover its neighbours
TRIES = 40


def _ring(radii: list[float], *, start: float) -> np.ndarray:
    """Points at equal angles around the origin, at the given radii, the first at ``start``."""
    angles = start + 2 * math.pi * np.arange(len(radii)) / len(radii)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None]
    return points.astype(np.float32)


def _outlines() -> dict[str, tuple[np.ndarray, ...]]:
    """Polygons of each kind around the origin, y down, of about the area of the unit disc."""
    up = -math.pi / 2
    arm, half = 1.12, 0.4
    cross = [(-half, -arm), (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half)]
    cross += [(-x, -y) for x, y in cross]
    upper = np.array([(-1.0, -1.15), (1.0, -1.15), (0.0, -0.08)], np.float32)
    return {
        "circle": (_ring([1.0] * 32, start=up),),
        "square": (_ring([1.27] * 4, start=math.pi / 4),),
        "triangle": (_ring([1.35] * 3, start=up) + np.array([0.0, 0.25], np.float32),),
        "star": (_ring([1.3, 0.6] * 5, start=up),),
        "cross": (np.array(cross, np.float32),),
        "hourglass": (upper, -upper),
    }


OUTLINES = _outlines()
KINDS = tuple(OUTLINES)


class Object(NamedTuple):
    """One shape.

    Attributes:
        center: (x, y) of the middle of its bounding box in pixels, x to the right, y down.
        extent: (width, height) of its bounding box in pixels.
        rgb: the colour it is painted with, the named colour with a little jitter.
        parts: polygons of shape (P, 2), (x, y) in pixels; several for kinds of several parts.
    """

    kind: str
    colour: str
    size: str
    center: tuple[float, float]
    extent: tuple[float, float]
    rgb: tuple[int, int, int]
    parts: tuple[np.ndarray, ...]


class Scene(NamedTuple):
    """Shapes on a background; a later object covers an earlier one where they overlap.

    Attributes:
        background: four corner colours (2, 2, 3), uint8, blended over the image.
        noise: (strength 0-7 of the grain, side of its cells in pixels, its seed).
    """

    height: int
    width: int
    objects: tuple[Object, ...]
    background: np.ndarray
    noise: tuple[int, int, int]


def make_scene(
    rng: np.random.Generator, *, height: int, width: int, num_objects: int | None = None
) -> Scene:
    """Draw a scene of two to five objects, no two of which agree in kind, colour and size.

    ``num_objects`` fixes the count (any from 1 to 5). An object may be covered by others, by
    less than about a third of its area.
    """
    if num_objects is not None and not 1 <= num_objects <= max(NUM_OBJECTS):
        raise ValueError(f"num_objects is {num_objects}; a scene holds 1 to {max(NUM_OBJECTS)}")
    draws = _uniforms(rng)
    count = num_objects or _pick_count(next(draws))
    while True:
        objects = _place_objects(draws, count, height, width)
        if objects is not None:
            corners, noise = _background(rng)
            return Scene(height, width, objects, corners, noise)


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Endless uniform numbers; drawn in blocks, as single draws are slow."""
    while True:
        yield from rng.random(128).tolist()


def _pick_count(draw: float) -> int:
    for count, share in NUM_OBJECTS.items():
        draw -= share
        if draw < 0:
            return count
    return min(NUM_OBJECTS)


def _background(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Greyish colours, far from every object's colour, and the grain laid over the image."""
    grey, mode = rng.uniform(100, 160), rng.random()
    tint = rng.uniform(-10, 10, size=3)
    slope = 0.0 if mode < 0.3 else 20.0  # plain or gradient
    corners = grey + tint + slope * rng.uniform(-1, 1, size=(2, 2, 1))
    strength, cell, seed = rng.integers(0, [8, 4, 2**31]).tolist()
    return corners.astype(np.uint8), (strength, (1, 1, 2, 5)[cell], seed)


class _Disc(NamedTuple):
    """The room that an object takes while others are placed."""

    x: float
    y: float
    radius: float
    entered: float  # depth to which others reach into it, summed
    colour: str


def _place_objects(
    draws: Iterator[float], count: int, height: int, width: int
) -> tuple[Object, ...] | None:
    """Add objects one by one at free places; None if no place is found in a few tries."""
    objects: list[Object] = []
    discs: list[_Disc] = []
    names: set[tuple[str, str, str]] = set()
    short = min(height, width)
    while len(objects) < count:
        name = _pick_name(draws, objects)
        if name in names:
            continue
        low, high = SIZES[name[2]]
        radius = short * (low + (high - low) * next(draws)) / 2
        reach = 1.25 * radius + 1
        deepest = 0.5 if next(draws) < OVERLAP else -0.1
        for _ in range(TRIES):
            x = reach + next(draws) * (width - 2 * reach)
            y = reach + next(draws) * (height - 2 * reach)
            placed = _add_disc(discs, _Disc(x, y, radius, 0.0, name[1]), deepest)
            if placed is not None:
                break
        else:
            return None
        discs = placed
        names.add(name)
        angle = math.radians(20 * next(draws) - 10)
        jitter = [next(draws) for _ in range(3)]
        objects.append(_build(name, (x, y), radius, angle, jitter))
    return tuple(objects)


def _add_disc(discs: list[_Disc], new: _Disc, deepest: float) -> list[_Disc] | None:
    """The discs with one more; None if it reaches too far into another, or they into it.

    ``deepest`` is a share of the smaller radius. Objects of one colour stay apart, as the edge
    between them could not be seen.
    """
    grown = []
    for disc in discs:
        depth = disc.radius + new.radius - math.hypot(disc.x - new.x, disc.y - new.y)
        allowed = -0.1 if disc.colour == new.colour else deepest
        if depth > allowed * min(disc.radius, new.radius):
            return None
        depth = max(depth, 0.0)
        if disc.entered + depth > 0.6 * disc.radius:
            return None
        new = new._replace(entered=new.entered + depth)
        grown.append(disc._replace(entered=disc.entered + depth))
    return [*grown, new] if new.entered <= 0.6 * new.radius else None


def _pick_name(draws: Iterator[float], objects: list[Object]) -> tuple[str, str, str]:
    """Kind, colour and size; kind and colour often those of an object already there."""
    draw = [next(draws) for _ in range(6)]
    kind = KINDS[int(draw[0] * len(KINDS))]
    colour = tuple(COLOURS)[int(draw[1] * len(COLOURS))]
    if objects and draw[2] < SHARED_KIND:
        kind = objects[int(draw[0] * len(objects))].kind
    if objects and draw[3] < SHARED_COLOUR:
        colour = objects[int(draw[1] * len(objects))].colour
    return kind, colour, "small" if draw[4] < 0.5 else "big"


def _build(
    name: tuple[str, str, str],
    center: tuple[float, float],
    radius: float,
    angle: float,
    jitter: list[float],
) -> Object:
    """The object with its outline turned by ``angle``, scaled to ``radius`` and moved."""
    cosine, sine = radius * math.cos(angle), radius * math.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]], np.float32)
    middle = np.array(center, np.float32)
    kind, colour, size = name
    parts = tuple(part @ turn + middle for part in OUTLINES[kind])
    points = parts[0] if len(parts) == 1 else np.concatenate(parts)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    red, green, blue = (
        min(255, max(0, int(value + 30 * draw - 15)))
        for value, draw in zip(COLOURS[colour], jitter, strict=True)
    )
    box = ((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)
    return Object(kind, colour, size, *box, (red, green, blue), parts)
