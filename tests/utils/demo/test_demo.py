"""Scenes, their pictures, and expressions that must single out one object."""

import itertools

import numpy as np
import pytest

from utils.demo.drawing import full_mask, render, visible_masks
from utils.demo.language import (
    STYLES,
    Expression,
    candidates,
    caption,
    draw_expression,
    fits,
    parse,
    phrases,
    singles_out,
)
from utils.demo.scenes import COLOURS, KINDS, Object, Scene, make_scene

CIRCLE = Expression("circle")


def draw_scenes(count: int, *, seed: int = 0, num_objects: int | None = None) -> list[Scene]:
    rng = np.random.default_rng(seed)
    shapes = [(96, 96), (90, 140), (150, 110)]
    return [
        make_scene(rng, height=h, width=w, num_objects=num_objects)
        for h, w in (shapes[i % 3] for i in range(count))
    ]


def place(*objects: tuple[str, str, str, float, float]) -> Scene:
    """A scene of 100 x 100 pixels with objects (kind, colour, size, x, y)."""
    shapes = tuple(
        Object(kind, colour, size, (x, y), COLOURS[colour], ())
        for kind, colour, size, x, y in objects
    )
    return Scene(100, 100, shapes, np.zeros((2, 2, 3), np.uint8), (0, 1, 0))


def expressions(scene: Scene, index: int, style: str) -> list[str]:
    """All expressions of a style that single out an object."""
    chosen = [e for e in candidates(scene, index, style) if singles_out(e, scene, index)]
    return [text for expression in chosen for text in phrases(expression)]


def matches(text: str, scene: Scene) -> list[int]:
    return fits(parse(text), scene)


def describes(text: str, scene: Scene) -> bool:
    """Whether the objects that a caption names are different objects of the scene."""
    names = [name for part in text.split(" and ") for name in part.split(", ")]
    found = [matches(name, scene) for name in names]
    return any(len(set(choice)) == len(choice) for choice in itertools.product(*found))


def test_same_generator_same_scene_and_picture() -> None:
    first, second = draw_scenes(5, seed=4), draw_scenes(5, seed=4)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(render(a), render(b))
        assert [shape[:5] for shape in a.objects] == [shape[:5] for shape in b.objects]
    assert any(
        a.objects[0].center != b.objects[0].center
        for a, b in zip(first, draw_scenes(5, seed=5), strict=True)
    )


def test_scenes_vary_and_their_objects_differ() -> None:
    scenes = draw_scenes(200)
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4, 5}
    shapes = [shape for scene in scenes for shape in scene.objects]
    assert {shape.kind for shape in shapes} == set(KINDS) and len(KINDS) >= 5
    assert {shape.colour for shape in shapes} == set(COLOURS) and len(COLOURS) >= 6
    for scene in scenes:
        assert len({shape[:3] for shape in scene.objects}) == len(scene.objects)


def test_sizes_leave_a_gap() -> None:
    ratios: dict[str, list[float]] = {"small": [], "big": []}
    for scene in draw_scenes(150):
        for shape in scene.objects:
            area = full_mask(scene._replace(objects=(shape,)), 0).sum()
            ratios[shape.size].append(np.sqrt(area) / min(scene.height, scene.width))
    assert max(ratios["small"]) < 0.9 * min(ratios["big"])


def test_objects_lie_in_the_image_and_stay_visible() -> None:
    shares = []
    for scene in draw_scenes(150):
        masks = visible_masks(scene)
        assert sum(mask.astype(int) for mask in masks).max() == 1
        for index, shape in enumerate(scene.objects):
            points = np.concatenate(shape.parts)
            assert points.min() >= 0
            assert (points.max(axis=0) <= (scene.width, scene.height)).all()
            shares.append(masks[index].sum() / full_mask(scene, index).sum())
    assert min(shares) > 0.5
    assert np.mean(np.array(shares) < 0.97) > 0.03, "some objects are covered"
    assert np.mean(np.array(shares) < 0.65) < 0.01


def test_picture_shows_each_object_in_its_colour() -> None:
    for scene in draw_scenes(60, seed=2):
        image = render(scene)
        assert image.shape == (scene.height, scene.width, 3) and image.dtype == np.uint8
        for shape, mask in zip(scene.objects, visible_masks(scene), strict=True):
            seen = np.median(image[mask], axis=0)
            nearest = min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())
            assert nearest == shape.colour


def test_painted_area_is_the_area_of_the_outline() -> None:
    for scene in draw_scenes(30, num_objects=1):
        black = np.zeros((2, 2, 3), np.uint8)
        shape = scene.objects[0]._replace(rgb=(255, 255, 255))
        bare = scene._replace(objects=(shape,), background=black, noise=(0, 1, 0))
        area = 0.0
        for part in shape.parts:
            x, y = part.astype(float).T
            area += abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        assert render(bare)[..., 0].sum() / 255 == pytest.approx(area, rel=0.05)
        assert full_mask(bare, 0, scale=4).sum() / 16 == pytest.approx(area, rel=0.03)


@pytest.mark.parametrize("style", STYLES)
def test_every_expression_singles_out_its_object(style: str) -> None:
    rng, found = np.random.default_rng(1), 0
    for scene in draw_scenes(12, seed=7):
        for index in range(len(scene.objects)):
            texts = expressions(scene, index, style)
            for text in texts:
                said = parse(text)
                assert fits(said, scene) == [index] and text in phrases(said), text
                assert bool(said.place) == (style == "place")
                assert bool(said.relation) == (style == "relation")
                found += 1
            drawn = draw_expression(rng, scene, index, style)
            assert drawn in texts if texts else drawn is None
    assert found > 80


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the small red star", Expression("star", "red", "small")),
        ("big object", Expression(size="big")),
        ("the star on the left", Expression("star", place="left")),
        ("left star", Expression("star", place="left")),
        ("top right blue square", Expression("square", "blue", place="top right")),
        ("the object in the middle", Expression(place="middle")),
        ("leftmost circle", Expression("circle", place="leftmost")),
        (
            "star to the left of the big blue square",
            Expression("star", relation="left of", anchor=Expression("square", "blue", "big")),
        ),
        ("star below the circle", Expression("star", relation="below", anchor=CIRCLE)),
    ],
)
def test_texts_are_read(text: str, expected: Expression) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["red banana", "the star behind the circle", "star at the left top"]
)
def test_other_language_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(text)


def test_attributes_fit_all_that_have_them() -> None:
    scene = place(("star", "red", "small", 20, 20), ("star", "blue", "big", 70, 70))
    assert matches("star", scene) == [0, 1]
    assert matches("the red star", scene) == [0]
    assert matches("big red star", scene) == []


def test_places_near_a_border_are_ambiguous() -> None:
    clear = place(("star", "red", "small", 20, 50), ("star", "blue", "big", 80, 50))
    assert matches("star on the left", clear) == [0]
    doubtful = place(("star", "red", "small", 20, 50), ("star", "blue", "big", 55, 50))
    assert matches("star on the left", doubtful) == [0, 1]
    said = expressions(doubtful, 0, "place")
    assert "star on the left" not in said and "red star on the left" in said


def test_an_extreme_needs_a_clear_lead() -> None:
    close = place(("star", "red", "small", 20, 50), ("star", "blue", "big", 30, 50))
    assert matches("leftmost star", close) == [0, 1]
    assert fits(parse("leftmost star"), close, strict=True) == []
    apart = place(("star", "red", "small", 20, 50), ("star", "blue", "big", 40, 50))
    assert matches("leftmost star", apart) == [0]
    assert matches("rightmost star", apart) == [1]


def test_relations_depend_on_direction_and_anchor() -> None:
    scene = place(
        ("square", "blue", "big", 50, 50),
        ("circle", "red", "small", 50, 85),
        ("circle", "green", "small", 10, 50),
    )
    assert matches("circle below the big blue square", scene) == [1]
    assert matches("circle to the left of the square", scene) == [2]
    assert matches("circle above the square", scene) == []
    diagonal = place(("square", "blue", "big", 40, 40), ("circle", "red", "small", 70, 70))
    assert matches("circle below the square", diagonal) == [1]
    assert fits(parse("circle below the square"), diagonal, strict=True) == []


def test_captions_are_true_of_their_own_scene_and_seldom_of_another() -> None:
    rng = np.random.default_rng(0)
    scenes = draw_scenes(60, seed=11)
    captions = [caption(rng, scene) for scene in scenes]
    assert all(describes(text, scene) for text, scene in zip(captions, scenes, strict=True))
    assert sum(describes(text, scene) for text in captions for scene in scenes) < 90
    twice = place(("star", "red", "small", 20, 20), ("circle", "red", "small", 70, 70))
    assert not describes("a red star and a star", twice)
