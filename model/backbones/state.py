"""What a tower holds between two blocks, what the decoder reads, and the steps of both towers.

Two layouts only: maps ``(B, C, H, W)`` and tokens ``(B, N, C)``. Letters in shapes: B batch,
C width, P prefix tokens, N tokens, M memory tokens, L words with padding, H x W grid.
"""

from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 12  # both towers run in this many steps; the text tower has one block a step
STAGE_ENDS = (3, 7, 11)  # the steps after which a stage ends: a third of each tower


class TowerState(NamedTuple):
    """What one tower holds between two blocks."""

    x: Tensor  # the input itself: image map (B, C, H, W) or words (B, L, C)
    prefix: Tensor | None  # tokens before it, such as the class token (B, P, C); None in a ResNet
    attention_mask: Tensor | None = None  # (B, K) bool: which of the last K are read; None: all
    memory: Tensor | None = None  # tokens that blocks read and do not change: (B, M, C)
    context: Tensor | None = None  # text tokens between the start token and the words: (B, M, C)


class Features(NamedTuple):
    """What the towers give to the decoder and to a side network."""

    maps: tuple[Tensor, ...]  # the image map (B, C_i, H_i, W_i) after each of the three stages
    joint_map: Tensor  # the last map in CLIP's joint space: (B, E, H, W)
    word_features: Tensor  # (B, L, C)
    sentence: Tensor  # (B, E)
    tap_maps: tuple[Tensor, ...] = ()  # detached image maps (B, C, H, W) for the side network


def to_map(tokens: Tensor, grid: torch.Size | tuple[int, int]) -> Tensor:
    """Reshape tokens to a map: ``(B, H W, C) -> (B, C, H, W)``."""
    return tokens.mT.unflatten(2, grid)


def to_tokens(x: Tensor) -> Tensor:
    """Reshape a map to tokens: ``(B, C, H, W) -> (B, H W, C)``."""
    return x.flatten(2).mT
