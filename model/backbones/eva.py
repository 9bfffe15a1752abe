"""EVA-02's vision transformer (Fang et al., 2023) as EVA-CLIP has it (Sun et al., 2023).

Rotary positions beside the learned ones, SwiGLU, and a norm within every attention and MLP.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, split_heads
from .blocks import PreNorm
from .vit import VisionTransformer

EPSILON = 1e-6  # of every LayerNorm here
ROTARY_GRID = 16  # cells per side that every grid is laid over: 224 pixels in patches of 14


class RotaryAttention(nn.Module):
    """``out_proj(norm(softmax(turn(Q) turn(K)^T / sqrt(C / heads)) V))``; keys have no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.norm, self.out_proj = nn.LayerNorm(width, eps=EPSILON), nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,  # (B, N, C)
        *,
        cosine: Tensor,  # (N, C / heads / 2)
        sine: Tensor,
        keep: Tensor | None = None,  # (B, K) bool: as for attend()
        memory: Tensor | None = None,  # (B, M, C): tokens without a place, read beside x
    ) -> Tensor:
        q, k = self.queries_and_keys(x, memory, cosine=cosine, sine=sine)
        v = split_heads(self.v_proj(x), self.heads)
        if memory is not None:
            v = torch.cat([v, split_heads(self.v_proj(memory), self.heads)], dim=2)
        return self.out_proj(self.norm(attend(q, k, v, keep)))

    def queries_and_keys(
        self, x: Tensor, memory: Tensor | None = None, *, cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``Q`` and ``K`` of these arguments of a call, turned: ``(B, heads, N or M, D)``."""
        q, k = (split_heads(project(x), self.heads) for project in (self.q_proj, self.k_proj))
        q, k = turn(q, cosine, sine), turn(k, cosine, sine)
        if memory is not None:
            k = torch.cat([k, split_heads(self.k_proj(memory), self.heads)], dim=2)
        return q, k


class SwiGLU(nn.Module):
    """``fc2(norm(silu(gate(x)) * fc1(x)))`` (Shazeer, 2020, with EVA-02's norm)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.fc1 = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.norm, self.fc2 = nn.LayerNorm(hidden, eps=EPSILON), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.silu(self.gate(x)) * self.fc1(x)))


class RotaryBlock(nn.Module):
    """A pre-norm transformer block with the slots of any other, ``(B, N, C) -> (B, N, C)``."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.attention = PreNorm(width, RotaryAttention(width, heads), epsilon=EPSILON)
        self.mlp = PreNorm(width, SwiGLU(width, mlp_width), epsilon=EPSILON)

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        memory: Tensor | None = None,
        *,
        cosine: Tensor,
        sine: Tensor,
    ) -> Tensor:
        return self.mlp(self.attention(x, memory, cosine=cosine, sine=sine, keep=keep))


class RotaryTransformer(VisionTransformer):
    """Image tower of EVA-02 kind: that of a ViT with rotary positions in every block.

    Only the image's own patches are turned, by their place in the grid.  The class token and
    whatever a bridge inserts beside it are not, however many there are.
    """

    cosine: Tensor  # (grid grid, width / heads / 2)
    sine: Tensor

    def __init__(self, *, width: int, heads: int, grid: int, **sizes: int):
        super().__init__(
            width=width, heads=heads, grid=grid, make_block=RotaryBlock, bias=True, **sizes
        )
        self.norm_pre, self.norm_post = nn.Identity(), nn.LayerNorm(width, eps=EPSILON)
        angle = angles(grid, width // heads)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def block_options(self, num_prefix: int) -> dict[str, Tensor]:
        """By how much each token is turned."""
        in_front = (0, 0, num_prefix, 0)  # an angle of 0 turns nothing
        return {
            "cosine": F.pad(self.cosine, in_front, value=1.0),
            "sine": F.pad(self.sine, in_front),
        }


def angles(grid: int, width: int) -> Tensor:
    """By how much each pair of channels of each cell is turned: ``(grid grid, width / 2)``.

    ``place 10000^(-i / (width / 4))`` for i from 0, half of the pairs by the cell's row, half by
    its column.  Grids of every size lie over the same :data:`ROTARY_GRID` places.
    """
    place = torch.arange(grid) / grid * ROTARY_GRID
    count = width // 4
    line = place[:, None] * 10_000.0 ** -(torch.arange(count) / count)  # (grid, width / 4)
    rows, columns = line[:, None].expand(-1, grid, -1), line.expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): ``(B, heads, N, D)``, each pair of channels turned."""
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=4)
    return turned.flatten(3).to(x.dtype)
