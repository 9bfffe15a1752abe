"""The demo data: generated scenes, their images, and expressions that single out one object."""

from utils.demo.drawing import full_mask, render, visible_masks
from utils.demo.language import (
    STYLES,
    Expression,
    caption,
    describes,
    draw_expression,
    expressions,
    fits,
    matches,
    parse,
    parse_caption,
    phrases,
)
from utils.demo.scenes import COLOURS, KINDS, SIZES, Object, Scene, make_scene

__all__ = [
    "COLOURS",
    "KINDS",
    "SIZES",
    "STYLES",
    "Expression",
    "Object",
    "Scene",
    "caption",
    "describes",
    "draw_expression",
    "expressions",
    "fits",
    "full_mask",
    "make_scene",
    "matches",
    "parse",
    "parse_caption",
    "phrases",
    "render",
    "visible_masks",
]
