"""What the towers share: the state between two blocks, the two slots of a residual sum.

Shapes: B batch, C width, P prefix tokens, N tokens, M memory tokens, L words, H x W grid.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention

STEPS = 12  # both towers run in this many steps, one text block each
STAGE_ENDS = (3, 7, 11)  # the steps after which a stage ends: a third of either tower
Activation = Callable[[Tensor], Tensor]


class Hidden(NamedTuple):
    """What one tower holds between two blocks."""

    x: Tensor  # the input itself: image map (B, C, H, W), words (B, L, C)
    prefix: Tensor | None  # tokens in front of it, e.g. the class token: (B, P, C); None: no tokens
    keep: Tensor | None = None  # which of the last K tokens are no padding: (B, K); None: all
    memory: Tensor | None = None  # tokens that blocks read and leave as they are: (B, M, C)
    context: Tensor | None = None  # of the text, between its start token and its words: (B, M, C)


class Features(NamedTuple):
    """What the decoder reads."""

    maps: tuple[Tensor, ...]  # image map (B, C_i, H_i, W_i) after each stage, as the tower left it
    joint: Tensor  # the last map in CLIP's joint space: (B, E, H, W)
    words: Tensor  # (B, L, C)
    sentence: Tensor  # (B, E)
    trail: tuple[Tensor, ...] = ()  # detached image maps (B, C, H, W) where a side network taps


class Residual(nn.Module):
    """``join(x, y) = shortcut(x) + after(y)``: a sum of two paths, each with a slot for an adapter.

    Both slots hold the identity until :func:`fill` puts an adapter there.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.shortcut: nn.Module = nn.Identity()
        self.after: nn.Module = nn.Identity()

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return self.shortcut(x) + self.after(y)


def fill(residual: Residual, slot: str, module: nn.Module) -> None:
    """Put an adapter into the ``shortcut`` or ``after`` slot of a residual sum.

    Raises:
        ValueError: if another adapter is there already.
    """
    taken = getattr(residual, slot)
    if not isinstance(taken, nn.Identity):
        raise ValueError(
            f"{adapter_of(module)} and {adapter_of(taken)} both want the {slot!r} slot of "
            f"the same {type(residual).__name__}; drop one of the two adapters"
        )
    setattr(residual, slot, module)


def exchange(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer that adapts itself in the place of the plain one whose parameters it holds.

    It is of a subclass of the plain one's class, so that frozen tensors keep their names.

    Raises:
        ValueError: if another adapter is there already.
    """
    taken = getattr(parent, name)
    if type(taken) not in (nn.Linear, nn.Conv2d, nn.LayerNorm):
        raise ValueError(
            f"{adapter_of(layer)} and {adapter_of(taken)} both want the place of {name!r} in "
            f"the same {type(parent).__name__}; drop one of the two adapters"
        )
    setattr(parent, name, layer)


def adapter_of(layer: nn.Module) -> str:
    """The name of the adapter that a layer is part of: that of its file."""
    return type(layer).__module__.rpartition(".")[2]


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``: OpenAI's GELU, as a SiLU, which keeps one tensor for its gradient."""
    return F.silu(1.702 * x) / 1.702


class MLP(nn.Module):
    """``fc2(activation(fc1(x)))``; the activation of OpenAI's CLIP is :func:`quick_gelu`."""

    def __init__(self, width: int, hidden: int, activation: Activation = quick_gelu):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class PreNorm(Residual):
    """``shortcut(x) + after(branch(norm(x)))``: one half of a transformer block."""

    def __init__(self, width: int, branch: nn.Module, *, epsilon: float = 1e-5):
        super().__init__(width)
        self.norm, self.branch = nn.LayerNorm(width, eps=epsilon), branch

    def forward(self, x: Tensor, memory: Tensor | None = None, **options: Tensor | None) -> Tensor:
        """``memory`` (B, M, C) is what the branch reads beside ``x``, under the same norm.

        Other options go to the branch as they are, such as ``keep`` to an attention.
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
        self, x: Tensor, keep: Tensor | None = None, memory: Tensor | None = None
    ) -> Tensor:
        """``memory`` (B, M, C): tokens that are attended to and not changed.

        ``keep`` (B, K) bool: which of the last K of all tokens may be attended to; by default all.
        """
        return self.mlp(self.attention(x, memory, keep=keep))


def blocks_of_step(blocks: nn.ModuleList, step: int) -> nn.ModuleList:
    """The share of a tower's blocks that runs in ``step`` of :data:`STEPS`."""
    count = len(blocks) // STEPS
    return blocks[step * count : (step + 1) * count]


def to_map(tokens: Tensor, grid: torch.Size | tuple[int, int]) -> Tensor:
    """``(B, H W, C) -> (B, C, H, W)``."""
    return tokens.mT.unflatten(2, grid)


def to_tokens(x: Tensor) -> Tensor:
    """``(B, C, H, W) -> (B, H W, C)``."""
    return x.flatten(2).mT


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Positions ``(1 + G G, C)`` of a class token and a square grid -> ``(1 + grid grid, C)``.

    Bicubic, ``align_corners=False``, no antialias, as every CLIP-RIS code; equal sizes are left as
    they are, bit by bit.
    """
    native = math.isqrt(positions.shape[0] - 1)
    if native == grid:
        return positions
    square = positions[1:].T.unflatten(1, (native, native))[None]  # (1, C, G, G)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], square[0].flatten(1).T])


def zoom(in_channels: int, out_channels: int, ratio: float) -> nn.Module:
    """The convolution without bias that makes a grid ``ratio`` times as fine.

    ``ratio`` 1/2: 2 x 2 with stride 2; 1: 1 x 1; 2: the transposed 2 x 2 with stride 2 (ETRIS,
    eq. 4).
    """
    if ratio > 1:
        size = round(ratio)
        return nn.ConvTranspose2d(in_channels, out_channels, size, size, bias=False)
    size = round(1 / ratio)
    return nn.Conv2d(in_channels, out_channels, size, size, bias=False)


def sine(length: int, dim: int) -> Tensor:
    """Sine positions ``(length, dim)``, sine and cosine interleaved (Vaswani et al., 2017)."""
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def sine_grid(grid: int, dim: int) -> Tensor:
    """Sine positions of a square grid ``(grid grid, dim)``: half the width for x, half for y."""
    line = sine(grid, dim // 2)
    columns, rows = line.expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)
