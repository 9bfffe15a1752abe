"""CLIP's vision transformer (Radford et al., 2021; Dosovitskiy et al., 2021)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .blocks import STAGE_ENDS, Block, Hidden, blocks_of_step, to_map, to_tokens


class VisionTransformer(nn.Module):
    """Image tower of ViT kind: class token and patches through pre-norm blocks.

    Args:
        patch: side of a patch in pixels.
        grid: patches per side that the positions are made for.
        embed_dim: width of CLIP's joint space.
        make_block: makes a block of a width, a number of heads and an MLP's width.
        bias: of the first and of the last projection.

    Attributes:
        widths, strides: channels and pixels per cell of the map after each of the three stages.
        last_width: channels of the map that ``head`` reads where the decoder must connect it to the
            joint space itself, else None.
    """

    last_width = None

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
        make_block: Callable[[int, int, int], nn.Module] = Block,
        bias: bool = False,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.widths, self.strides = (width,) * len(STAGE_ENDS), (patch,) * len(STAGE_ENDS)
        self.patch_embed = nn.Conv2d(3, width, patch, patch, bias=bias)
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + grid**2, width))
        self.norm_pre: nn.Module = nn.LayerNorm(width)
        self.norm_post = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(make_block(width, heads, mlp_width) for _ in range(depth))
        self.proj = nn.Linear(width, embed_dim, bias=bias)

    def embed(self, image: Tensor) -> Hidden:
        """Normalised image ``(B, 3, S, S)`` -> patches before the first block."""
        x = self.patch_embed(image)  # (B, C, H, W)
        class_token = self.class_token.to(x.dtype).expand(len(x), 1, -1)
        tokens = torch.cat([class_token, to_tokens(x)], dim=1)  # (B, 1 + HW, C)
        tokens = self.norm_pre(tokens + self.positions)
        return Hidden(to_map(tokens[:, 1:], x.shape[2:]), tokens[:, :1])

    def run(self, step: int, hidden: Hidden) -> Hidden:
        prefix = hidden.prefix
        assert prefix is not None
        size = prefix.shape[1]
        options = self.block_options(size)
        tokens = torch.cat([prefix, to_tokens(hidden.x)], dim=1)  # (B, P + HW, C)
        for block in blocks_of_step(self.blocks, step):
            tokens = block(tokens, hidden.keep, hidden.memory, **options)
        prefix, patches = tokens.split([size, tokens.shape[1] - size], dim=1)
        return hidden._replace(x=to_map(patches, hidden.x.shape[2:]), prefix=prefix)

    def block_options(self, num_prefix: int) -> dict[str, Tensor]:
        """What else every block reads where so many tokens stand before the patches: nothing."""
        return {}

    def head(self, hidden: Hidden) -> Tensor:
        """Every patch in the joint space: ``(B, embed_dim, H, W)``."""
        return to_map(self.proj(self.norm_post(to_tokens(hidden.x))), hidden.x.shape[2:])

    def pool(self, hidden: Hidden) -> Tensor:
        """CLIP's own image embedding, from the class token: ``(B, embed_dim)``."""
        assert hidden.prefix is not None
        return self.proj(self.norm_post(hidden.prefix[:, 0]))
