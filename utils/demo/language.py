"""Write and read expressions about demo scenes, and find the objects that they fit.

Every place and relation has a strict and a loose reading. An expression is used for an object
only if the object fits strictly and no other fits even loosely, so that a human agrees with it.
Distances are shares of the image's height and width (places) or of its shorter side
(relations), measured between the middles of bounding boxes.
"""

import itertools
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from utils.demo.scenes import COLOURS, KINDS, SIZES, Object, Scene

STYLES = ("attribute", "place", "relation")

SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}  # axis, sign
EXTREMES = {"leftmost": "left", "rightmost": "right", "topmost": "top", "bottommost": "bottom"}
CORNERS = tuple(f"{row} {column}" for row in ("top", "bottom") for column in ("left", "right"))
PLACES = (*SIDES, *CORNERS, "middle", *EXTREMES)
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}

VOCABULARY = {"kind": KINDS, "colour": COLOURS, "size": SIZES}
_RELATION = re.compile(r"(.*?)\b(?:to (?=\w+ of))?((?:left|right) of|above|below)\b(.*)")
_PLACE = re.compile(r"(.*?)\b(?:on|at|in)\b(.*)")

EXTREME_MARGIN = 0.12  # an extreme object leads by that much; closer ones fit loosely too


class Expression(NamedTuple):
    """The meaning of a text: attributes (may be empty), a place, or a relation to an anchor."""

    kind: str = ""
    colour: str = ""
    size: str = ""
    place: str = ""
    relation: str = ""
    anchor: "Expression | None" = None


def fits(expression: Expression, scene: Scene, *, strict: bool = False) -> list[int]:
    """Find the indices of the objects that an expression fits, in its loose or strict reading."""
    kind, colour, size, place, relation, anchor = expression
    found = [
        index
        for index, shape in enumerate(scene.objects)
        if (not kind or shape.kind == kind)
        and (not colour or shape.colour == colour)
        and (not size or shape.size == size)
    ]
    if place in EXTREMES:
        return _extreme(found, scene, place, strict)
    if place:
        return [i for i in found if _is_at(scene, scene.objects[i], place, strict)]
    if relation and anchor is not None:
        others = fits(anchor, scene, strict=strict)
        if strict and len(others) != 1:
            return []
        return [i for i in found if any(_is_related(scene, i, relation, j, strict) for j in others)]
    return found


def _is_at(scene: Scene, shape: Object, place: str, strict: bool) -> bool:
    """Test a place: a side is its 42 % of the image (loosely 58 %), the middle its 20 % (48 %)."""
    where = (shape.center[0] / scene.width - 0.5, shape.center[1] / scene.height - 0.5)
    if place == "middle":
        return max(abs(where[0]), abs(where[1])) < (0.1 if strict else 0.24)
    least = 0.08 if strict else -0.08
    return all(SIDES[word][1] * where[SIDES[word][0]] > least for word in place.split())


def _extreme(found: list[int], scene: Scene, place: str, strict: bool) -> list[int]:
    """Find the object farthest to one side, if its lead is clear; loosely, all close to it."""
    if len(found) < 2:
        return found
    axis, sign = SIDES[EXTREMES[place]]
    length = (scene.width, scene.height)[axis]
    places = [sign * scene.objects[index].center[axis] / length for index in found]
    first = max(places)
    close = [i for i, at in zip(found, places, strict=True) if at > first - EXTREME_MARGIN]
    return [] if strict and len(close) > 1 else close


def _is_related(scene: Scene, index: int, relation: str, anchor: int, strict: bool) -> bool:
    """Test if an object is farther along the relation's axis than across it."""
    if index == anchor:
        return False
    (x, y), (a, b) = scene.objects[index].center, scene.objects[anchor].center
    axis, sign = RELATIONS[relation]
    along, across = (x - a, y - b) if axis == 0 else (y - b, x - a)
    along, short = along * sign, min(scene.height, scene.width)
    if strict:
        return along > 0.2 * short and abs(across) < 0.6 * along
    return along > 0.05 * short and abs(across) < 1.8 * along


def _cores(shape: Object) -> list[Expression]:
    """List every choice of at least one of the object's attributes."""
    choices = itertools.product(("", shape.kind), ("", shape.colour), ("", shape.size))
    return [Expression(*choice) for choice in choices if any(choice)]


def candidates(scene: Scene, index: int, style: str) -> list[Expression]:
    """List expressions of one of ``STYLES`` about an object, whether they fit it or not."""
    cores = _cores(scene.objects[index])
    if style == "attribute":
        return cores
    # three attributes single out any object: a place or a relation would only be decoration
    bare = [Expression(), *(core for core in cores if not all(core[:3]))]
    if style == "place":
        return [core._replace(place=place) for core in bare for place in PLACES]
    anchors = [
        anchor
        for other, shape in enumerate(scene.objects)
        if other != index
        for anchor in _cores(shape)
        if anchor.kind and fits(anchor, scene) == [other]
    ]
    return [
        core._replace(relation=relation, anchor=anchor)
        for core, relation, anchor in itertools.product(bare, RELATIONS, anchors)
    ]


def singles_out(expression: Expression, scene: Scene, index: int) -> bool:
    """Return whether an expression fits only this object, and somebody would say it."""
    if fits(expression, scene) != [index] or fits(expression, scene, strict=True) != [index]:
        return False
    # "the leftmost circle" where there is one circle is true, and nobody says it
    core = Expression(*expression[:3])
    return expression.place not in EXTREMES or len(fits(core, scene)) > 1


def _core_words(expression: Expression) -> str:
    words = (expression.size, expression.colour, expression.kind or "object")
    return " ".join(word for word in words if word)


def phrases(expression: Expression) -> list[str]:
    """Word an expression in every way, the shortest first."""
    core, place, relation = _core_words(expression), expression.place, expression.relation
    if relation and expression.anchor is not None:
        anchor = f"the {_core_words(expression.anchor)}"
        texts = [f"{core} {relation} {anchor}"]
        if relation.endswith(" of"):
            texts.append(f"{core} to the {relation} {anchor}")
    elif place in EXTREMES:
        texts = [f"{place} {core}"]
    elif place:
        word = {"left": "on", "right": "on", "middle": "in"}.get(place, "at")
        texts = [f"{place} {core}", f"{core} {word} the {place}"]
    else:
        texts = [core]
    return texts + [f"the {text}" for text in texts]


def draw_expression(
    rng: np.random.Generator, scene: Scene, index: int, style: str = "attribute"
) -> str | None:
    """Draw an expression of one of ``STYLES`` that singles out an object; None without one."""
    expressions = candidates(scene, index, style)
    for position in rng.permutation(len(expressions)).tolist():
        if singles_out(expressions[position], scene, index):
            texts = phrases(expressions[position])
            return texts[int(rng.random() * len(texts))]
    return None


@lru_cache(maxsize=1 << 16)
def parse(text: str) -> Expression:
    """Read an expression; ValueError names a word that the demo's language does not have."""
    words = [word for word in text.lower().split() if word not in ("the", "a", "an")]
    if found := _RELATION.fullmatch(" ".join(words)):
        head, relation, rest = found.groups()
        return _read_core(head, text)._replace(relation=relation, anchor=_read_core(rest, text))
    if found := _PLACE.fullmatch(" ".join(words)):
        head, place = found.groups()
        return _read_core(head, text)._replace(place=_read_place(place, text))
    lead = list(itertools.takewhile(lambda word: word in SIDES or word in PLACES, words))
    core = _read_core(" ".join(words[len(lead) :]), text)
    return core._replace(place=_read_place(" ".join(lead), text)) if lead else core


def _read_core(words: str, text: str) -> Expression:
    said: dict[str, str] = {}
    for word in words.split():
        known = (name for name, words in VOCABULARY.items() if word in words and name not in said)
        if name := next(known, None):
            said[name] = word
        elif word != "object":
            raise ValueError(f"expression {text!r}: word {word!r} is not understood there")
    return Expression(said.get("kind", ""), said.get("colour", ""), said.get("size", ""))


def _read_place(place: str, text: str) -> str:
    if place.strip() not in PLACES:
        known = ", ".join(PLACES)
        raise ValueError(f"expression {text!r}: no place {place.strip()!r}; known are {known}")
    return place.strip()


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """Name every object in random order, each by two or three of its attributes."""
    names = []
    for position in rng.permutation(len(scene.objects)).tolist():
        shape, draw = scene.objects[position], rng.random()
        size = "" if draw < 0.3 else shape.size
        colour = "" if draw > 0.8 else shape.colour
        names.append(f"a {_core_words(Expression(shape.kind, colour, size))}")
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
