"""Parts that several towers and heads share: transformer blocks, positions, zoom convolutions."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .slots import Residual
from .state import STEPS

Activation = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    """Compute OpenAI's GELU ``x sigmoid(1.702 x)``.

    It is written with SiLU, which stores one tensor for the backward pass, not two.
    """
    return F.silu(1.702 * x) / 1.702


class MLP(nn.Module):
    """``fc2(activation(fc1(x)))``; OpenAI's CLIP has :func:`quick_gelu` as its activation."""

    def __init__(self, width: int, hidden: int, activation: Activation = quick_gelu):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class PreNorm(Residual):
    """One half of a transformer block: ``shortcut(x) + after(branch(norm(x)))``."""

    def __init__(self, width: int, branch: nn.Module, *, epsilon: float = 1e-5):
        super().__init__(width)
        self.norm, self.branch = nn.LayerNorm(width, eps=epsilon), branch

    def forward(self, x: Tensor, memory: Tensor | None = None, **options: Tensor | None) -> Tensor:
        """Tokens (B, N, C) -> tokens.

        ``memory`` (B, M, C) are tokens that the branch reads beside ``x``, under the same norm.
        Other options, such as ``attention_mask``, go to the branch unchanged.
        """
        if memory is not None:
            options["memory"] = self.norm(memory)
        return self.join(x, self.branch(self.norm(x), **options))


class Block(nn.Module):
    """A pre-norm transformer block, ``(B, N, C) -> (B, N, C)``."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        causal: bool = False,
        activation: Activation = quick_gelu,
    ):
        super().__init__()
        self.attention = PreNorm(width, Attention(width, heads, causal=causal))
        self.mlp = PreNorm(width, MLP(width, mlp_width, activation))

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, memory: Tensor | None = None
    ) -> Tensor:
        """``memory`` (B, M, C) and ``attention_mask`` (B, K) as in :class:`TowerState`."""
        return self.mlp(self.attention(x, memory, attention_mask=attention_mask))


def blocks_of_step(blocks: nn.ModuleList, step: int) -> nn.ModuleList:
    """Return the blocks that run in ``step``: each of the :data:`STEPS` steps has as many."""
    count = len(blocks) // STEPS
    return blocks[step * count : (step + 1) * count]


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize positions of a class token and a square grid: ``(1 + G G, C) -> (1 + grid^2, C)``.

    Bicubic, ``align_corners=False``, without antialiasing, as in the released code of all CLIP
    methods for this task. A table that has the right size is returned as it is.
    """
    native = math.isqrt(positions.shape[0] - 1)
    if native == grid:
        return positions
    square = positions[1:].T.unflatten(1, (native, native))[None]  # (1, C, G, G)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], square[0].flatten(1).T])


def sine(length: int, dim: int) -> Tensor:
    """Make sine positions ``(length, dim)``, sine and cosine interleaved (Vaswani et al., 2017)."""
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def sine_grid(grid: int, dim: int) -> Tensor:
    """Make sine positions of a square grid ``(grid^2, dim)``: half the width for x, half for y."""
    line = sine(grid, dim // 2)
    columns, rows = line.expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)


def zoom(in_channels: int, out_channels: int, ratio: float) -> nn.Module:
    """Make the convolution without bias that makes a grid ``ratio`` times as fine (ETRIS, eq. 4).

    ``ratio`` 1/2: 2 x 2 with stride 2; 1: 1 x 1; 2: the transposed 2 x 2 with stride 2.
    """
    if ratio > 1:
        size = round(ratio)
        return nn.ConvTranspose2d(in_channels, out_channels, size, size, bias=False)
    size = round(1 / ratio)
    return nn.Conv2d(in_channels, out_channels, size, size, bias=False)
