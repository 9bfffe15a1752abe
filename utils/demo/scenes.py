"""Make demo scenes: a few coloured shapes that differ in kind, colour, size and place."""

import itertools
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
BIG = 0.55  # chance that an object is big
MAX_BIG = {1: 1, 2: 2, 3: 2, 4: 2, 5: 1}  # by number of objects; more of them leave no room
MAX_TURN = 10  # degrees to either side
OVERLAP = 0.3  # chance that an object may touch and cover its neighbours
TRIES = 40


def _ring(radii: list[float], *, start: float) -> np.ndarray:
    """Compute points at equal angles around the origin, at these radii, the first at ``start``."""
    angles = start + 2 * math.pi * np.arange(len(radii)) / len(radii)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None]
    return points.astype(np.float32)


_UP = -math.pi / 2
_ARM, _HALF = 1.12, 0.4
_CROSS = [
    (-_HALF, -_ARM), (_HALF, -_ARM), (_HALF, -_HALF), (_ARM, -_HALF), (_ARM, _HALF), (_HALF, _HALF),
]  # fmt: skip
_CROSS += [(-x, -y) for x, y in _CROSS]
_UPPER = np.array([(-1.0, -1.15), (1.0, -1.15), (0.0, -0.08)], np.float32)
# Polygons of each kind around the origin, y down, of about the area of the unit disc.
OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_ring([1.0] * 32, start=_UP),),
    "square": (_ring([1.27] * 4, start=math.pi / 4),),
    "triangle": (_ring([1.35] * 3, start=_UP) + np.array([0.0, 0.25], np.float32),),
    "star": (_ring([1.3, 0.6] * 5, start=_UP),),
    "cross": (np.array(_CROSS, np.float32),),
    "hourglass": (_UPPER, -_UPPER),
}
KINDS = tuple(OUTLINES)
# from the middle to the farthest corner, in units of the radius
REACH = {
    kind: max(float(np.linalg.norm(part, axis=1).max()) for part in parts)
    for kind, parts in OUTLINES.items()
}


def _half_width(parts: tuple[np.ndarray, ...]) -> float:
    """Measure how far a kind reaches along x or y at any turn, in units of the radius."""
    points = np.concatenate(parts)
    angles = np.radians(np.linspace(-MAX_TURN, MAX_TURN, 5))[:, None]
    x = points[:, 0] * np.cos(angles) - points[:, 1] * np.sin(angles)
    y = points[:, 0] * np.sin(angles) + points[:, 1] * np.cos(angles)
    return float(max(np.abs(x).max(), np.abs(y).max()))


HALF_WIDTHS = {kind: _half_width(parts) for kind, parts in OUTLINES.items()}


class Object(NamedTuple):
    """One shape.

    Attributes:
        center: (x, y) of the middle of its bounding box in pixels, x to the right, y down.
        rgb: the colour it is painted with, the named colour with a little jitter.
        parts: polygons of shape (P, 2), (x, y) in pixels; several for kinds of several parts.
    """

    kind: str
    colour: str
    size: str
    center: tuple[float, float]
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
    """Draw a scene of two to five objects, no two of the same kind, colour and size.

    ``num_objects`` fixes the count (1 to 5). Others may cover up to about a third of an object.
    """
    # in blocks, as single draws are slow
    draws = (draw for _ in itertools.count() for draw in rng.random(128).tolist())
    count = _pick_count(next(draws)) if num_objects is None else num_objects
    objects = None
    while objects is None:
        objects = _place_objects(draws, count, height, width)
    corners, noise = _background(rng)
    return Scene(height, width, objects, corners, noise)


def _pick_count(draw: float) -> int:
    for count, share in NUM_OBJECTS.items():
        draw -= share
        if draw < 0:
            return count
    return min(NUM_OBJECTS)


def _background(rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Draw corner colours near grey, far from every object's colour, and the image's grain."""
    grey, mode = rng.uniform(100, 160), rng.random()
    tint = rng.uniform(-10, 10, size=3)
    slope = 0.0 if mode < 0.3 else 20.0  # plain or gradient
    corners = grey + tint + slope * rng.uniform(-1, 1, size=(2, 2, 1))
    strength, cell, seed = rng.integers(0, [8, 4, 2**31]).tolist()
    return corners.astype(np.uint8), (strength, (1, 1, 2, 5)[cell], seed)


class _Disc(NamedTuple):
    """The space of an object while others are placed."""

    x: float
    y: float
    radius: float
    reach: float  # no corner is farther from the middle
    colour: str
    entered: float = 0.0  # sum of the depths to which others reach into it


def _place_objects(
    draws: Iterator[float], count: int, height: int, width: int
) -> tuple[Object, ...] | None:
    """Place objects at random; None if one finds no free place in a few tries."""
    short = min(height, width)
    placed: list[tuple[float, Object]] = []
    discs: list[_Disc] = []
    # the big ones first, while there is room
    for name in sorted(_pick_names(draws, count), key=lambda name: name[2]):
        kind, colour, size = name
        low, high = SIZES[size]
        radius = short * (low + (high - low) * next(draws)) / 2
        margin = HALF_WIDTHS[kind] * radius + 1
        deepest = 0.5 if next(draws) < OVERLAP else -0.1
        for _ in range(TRIES):
            x = margin + next(draws) * (width - 2 * margin)
            y = margin + next(draws) * (height - 2 * margin)
            grown = _add_disc(discs, _Disc(x, y, radius, REACH[kind] * radius, colour), deepest)
            if grown is not None:
                break
        else:
            return None
        discs = grown
        angle = math.radians(MAX_TURN * (2 * next(draws) - 1))
        jitter = [next(draws) for _ in range(3)]
        placed.append((next(draws), _build(name, (x, y), radius, angle, jitter)))
    return tuple(shape for _, shape in sorted(placed, key=lambda pair: pair[0]))


def _add_disc(discs: list[_Disc], new: _Disc, deepest: float) -> list[_Disc] | None:
    """Add a disc; None if it reaches too far into another, or they into it.

    ``deepest`` is a share of the smaller radius. Objects of one colour do not touch, as the edge
    between them would be invisible.
    """
    depths = []
    for disc in discs:
        distance = math.hypot(disc.x - new.x, disc.y - new.y)
        depth = disc.radius + new.radius - distance
        if depth > deepest * min(disc.radius, new.radius):
            return None
        if disc.colour == new.colour and distance < disc.reach + new.reach:
            return None
        depths.append(max(depth, 0.0))
    grown = [
        disc._replace(entered=disc.entered + depth)
        for disc, depth in zip([*discs, new], [*depths, sum(depths)], strict=True)
    ]
    return grown if all(disc.entered <= 0.6 * disc.radius for disc in grown) else None


def _pick_names(draws: Iterator[float], count: int) -> list[tuple[str, str, str]]:
    """Draw different triples of kind, colour and size that often share a kind or a colour."""
    names: list[tuple[str, str, str]] = []
    colours = tuple(COLOURS)
    while len(names) < count:
        draw = [next(draws) for _ in range(5)]
        kind, colour = KINDS[int(draw[0] * len(KINDS))], colours[int(draw[1] * len(colours))]
        if names and draw[2] < SHARED_KIND:
            kind = names[int(draw[0] * len(names))][0]
        if names and draw[3] < SHARED_COLOUR:
            colour = names[int(draw[1] * len(names))][1]
        num_big = sum(size == "big" for _, _, size in names)
        size = "big" if num_big < MAX_BIG[count] and draw[4] < BIG else "small"
        if (kind, colour, size) not in names:
            names.append((kind, colour, size))
    return names


def _build(
    name: tuple[str, str, str],
    center: tuple[float, float],
    radius: float,
    angle: float,
    jitter: list[float],
) -> Object:
    """Turn the outline of an object by ``angle``, scale it to ``radius`` and move it."""
    cosine, sine = radius * math.cos(angle), radius * math.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]], np.float32)
    middle = np.array(center, np.float32)
    kind, colour, size = name
    parts = tuple(part @ turn + middle for part in OUTLINES[kind])
    points = np.concatenate(parts)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    red, green, blue = (
        min(255, max(0, int(value + 30 * draw - 15)))
        for value, draw in zip(COLOURS[colour], jitter, strict=True)
    )
    middle_of_box = (left + right) / 2, (top + bottom) / 2
    return Object(kind, colour, size, middle_of_box, (red, green, blue), parts)
