"""EVA-02's vision transformer (Fang et al., 2023) as EVA-CLIP has it (Sun et al., 2023).

Rotary positions beside the learned ones, SwiGLU, and a norm within every attention and MLP.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import (
    STAGE_ENDS,
    Hidden,
    PreNorm,
    attend,
    blocks_of_step,
    split_heads,
    to_map,
    to_tokens,
)

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
        keep: Tensor | None = None,  # (B, N + M) bool: the tokens that may be attended to
        memory: Tensor | None = None,  # (B, M, C): tokens without a place, read beside x
    ) -> Tensor:
        q, k, v = (
            split_heads(project(x), self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = turn(q, cosine, sine), turn(k, cosine, sine)
        if memory is not None:
            k = torch.cat([k, split_heads(self.k_proj(memory), self.heads)], dim=2)
            v = torch.cat([v, split_heads(self.v_proj(memory), self.heads)], dim=2)
        return self.out_proj(self.norm(attend(q, k, v, keep)))


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
        cosine: Tensor,
        sine: Tensor,
        keep: Tensor | None,
        memory: Tensor | None = None,
    ) -> Tensor:
        return self.mlp(self.attention(x, memory, cosine=cosine, sine=sine, keep=keep))


class RotaryTransformer(nn.Module):
    """Image tower of EVA-02 kind: class token and patches through blocks with rotary positions.

    Only the image's own patches are turned, by their place in the grid.  The class token and
    whatever a bridge inserts beside it are not, however many there are.

    Args:
        patch: side of a patch in pixels.
        grid: patches per side that the positions are made for.
        embed_dim: width of CLIP's joint space.

    Attributes: as of :class:`model.clip.vit.VisionTransformer`.
    """

    last_width = None
    cosine: Tensor  # (grid grid, width / heads / 2)
    sine: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        patch: int,
        grid: int,
        embed_dim: int,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.widths, self.strides = (width,) * len(STAGE_ENDS), (patch,) * len(STAGE_ENDS)
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + grid**2, width))
        self.blocks = nn.ModuleList(RotaryBlock(width, heads, mlp_width) for _ in range(depth))
        self.norm_post, self.proj = nn.LayerNorm(width, eps=EPSILON), nn.Linear(width, embed_dim)
        angle = angles(grid, width // heads)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def embed(self, image: Tensor) -> Hidden:
        """Normalised image ``(B, 3, S, S)`` -> patches before the first block."""
        x = self.patch_embed(image)  # (B, C, H, W)
        class_token = self.class_token.to(x.dtype).expand(len(x), 1, -1)
        tokens = torch.cat([class_token, to_tokens(x)], dim=1) + self.positions  # (B, 1 + HW, C)
        return Hidden(to_map(tokens[:, 1:], x.shape[2:]), tokens[:, :1])

    def run(self, step: int, hidden: Hidden) -> Hidden:
        prefix = hidden.prefix
        assert prefix is not None
        size = prefix.shape[1]
        tokens = torch.cat([prefix, to_tokens(hidden.x)], dim=1)  # (B, P + HW, C)
        in_front = (0, 0, size, 0)  # an angle of 0 turns nothing
        cosine, sine = F.pad(self.cosine, in_front, value=1.0), F.pad(self.sine, in_front)
        for block in blocks_of_step(self.blocks, step):
            tokens = block(tokens, cosine, sine, hidden.keep, hidden.memory)
        prefix, patches = tokens.split([size, tokens.shape[1] - size], dim=1)
        return hidden._replace(x=to_map(patches, hidden.x.shape[2:]), prefix=prefix)

    def head(self, hidden: Hidden) -> Tensor:
        """Every patch in the joint space: ``(B, embed_dim, H, W)``."""
        return to_map(self.proj(self.norm_post(to_tokens(hidden.x))), hidden.x.shape[2:])

    def pool(self, hidden: Hidden) -> Tensor:
        """CLIP's own image embedding, from the class token: ``(B, embed_dim)``."""
        assert hidden.prefix is not None
        return self.proj(self.norm_post(hidden.prefix[:, 0]))


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
