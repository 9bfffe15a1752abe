"""The vision transformer of EVA-02 (Fang et al., 2023) in EVA-CLIP (Sun et al., 2023).

It adds rotary positions to the learned ones, has SwiGLU as its MLP, and a norm inside every
attention and MLP.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, split_heads
from .blocks import PreNorm
from .vit import VisionTransformer

EPSILON = 1e-6  # of every LayerNorm here
ROTARY_GRID = 16  # cells per side in pre-training: 224 pixels in patches of 14


class RotaryAttention(nn.Module):
    """``out_proj(norm(softmax(rotate(Q) rotate(K)^T / sqrt(D)) V))``; keys have no bias."""

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
        cosine: Tensor,  # (N, D / 2), D = C / heads
        sine: Tensor,
        attention_mask: Tensor | None = None,  # (B, K) bool: as in attend()
        memory: Tensor | None = None,  # (B, M, C): tokens without a position, read beside x
    ) -> Tensor:
        """Attend: ``(B, N, C)``."""
        q, k = self.queries_and_keys(x, memory, cosine=cosine, sine=sine)
        v = split_heads(self.v_proj(x), self.heads)
        if memory is not None:
            v = torch.cat([v, split_heads(self.v_proj(memory), self.heads)], dim=2)
        return self.out_proj(self.norm(attend(q, k, v, attention_mask)))

    def queries_and_keys(
        self, x: Tensor, memory: Tensor | None = None, *, cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Project to ``Q`` and ``K`` and rotate both: ``(B, heads, N or N + M, D)``."""
        q, k = (split_heads(project(x), self.heads) for project in (self.q_proj, self.k_proj))
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
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
    """A pre-norm transformer block with the usual slots, ``(B, N, C) -> (B, N, C)``."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.attention = PreNorm(width, RotaryAttention(width, heads), epsilon=EPSILON)
        self.mlp = PreNorm(width, SwiGLU(width, mlp_width), epsilon=EPSILON)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        *,
        cosine: Tensor,
        sine: Tensor,
    ) -> Tensor:
        options = {"cosine": cosine, "sine": sine, "attention_mask": attention_mask}
        return self.mlp(self.attention(x, memory, **options))


class RotaryTransformer(VisionTransformer):
    """A :class:`VisionTransformer` with rotary positions in every block.

    Only patches are rotated, by their place in the grid. The class token and tokens that a bridge
    inserts are not.
    """

    cosine: Tensor  # (grid^2, D / 2)
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
        """Return cosine and sine of every token's angles; a prefix token has the angle 0."""
        in_front = (0, 0, num_prefix, 0)
        return {
            "cosine": F.pad(self.cosine, in_front, value=1.0),
            "sine": F.pad(self.sine, in_front),
        }


def angles(grid: int, width: int) -> Tensor:
    """Make the angles by which pairs of channels of each cell are rotated: ``(grid^2, width / 2)``.

    ``place 10000^(-i / (width / 4))`` for i = 0, 1, ...: half of the pairs by the cell's row, half
    by its column. Places go from 0 to :data:`ROTARY_GRID`, whatever the grid.
    """
    place = torch.arange(grid) / grid * ROTARY_GRID
    count = width // 4
    line = place[:, None] * 10_000.0 ** -(torch.arange(count) / count)  # (grid, width / 4)
    rows, columns = line[:, None].expand(-1, grid, -1), line.expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate each pair of channels of ``(B, heads, N, D)`` (RoFormer, Su et al., 2021)."""
    even, odd = x[..., ::2], x[..., 1::2]
    rotated = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=4)
    return rotated.flatten(3).to(x.dtype)
