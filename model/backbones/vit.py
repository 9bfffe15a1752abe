"""The vision transformer of CLIP (Radford et al., 2021; Dosovitskiy et al., 2021)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .blocks import Block, blocks_of_step
from .state import STAGE_ENDS, TowerState, to_map, to_tokens


class VisionTransformer(nn.Module):
    """An image tower of pre-norm blocks over a class token and patches.

    Args:
        patch: side of a patch in pixels.
        grid: patches per side of the image.
        embed_dim: width of CLIP's joint space.
        make_block: makes a block from width, number of heads and MLP width.
        bias: whether the first and the last projection have one.

    Attributes:
        widths, strides: channels and pixels per cell of the map after each of the three stages.
        last_width: channels of a last map that the decoder must project to the joint space; None
            in a ViT, whose ``head`` does it.
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

    def embed(self, image: Tensor) -> TowerState:
        """Normalized image ``(B, 3, S, S)`` -> the state before the first block."""
        x = self.patch_embed(image)  # (B, C, H, W)
        class_token = self.class_token.to(x.dtype).expand(len(x), 1, -1)
        tokens = torch.cat([class_token, to_tokens(x)], dim=1)  # (B, 1 + HW, C)
        tokens = self.norm_pre(tokens + self.positions)
        return TowerState(to_map(tokens[:, 1:], x.shape[2:]), tokens[:, :1])

    def run(self, step: int, state: TowerState) -> TowerState:
        """Run one step over ``[prefix, patches]``; the patches may also read ``state.memory``."""
        prefix = state.prefix
        assert prefix is not None
        size = prefix.shape[1]
        options = self.block_options(size)
        tokens = torch.cat([prefix, to_tokens(state.x)], dim=1)  # (B, P + HW, C)
        for block in blocks_of_step(self.blocks, step):
            tokens = block(tokens, state.attention_mask, state.memory, **options)
        prefix, patches = tokens.split([size, tokens.shape[1] - size], dim=1)
        return state._replace(x=to_map(patches, state.x.shape[2:]), prefix=prefix)

    def block_options(self, num_prefix: int) -> dict[str, Tensor]:
        """Return more arguments of every block, for ``num_prefix`` tokens before the patches."""
        return {}

    def head(self, state: TowerState) -> Tensor:
        """Project every patch to the joint space: ``(B, embed_dim, H, W)``."""
        return to_map(self.proj(self.norm_post(to_tokens(state.x))), state.x.shape[2:])

    def pool(self, state: TowerState) -> Tensor:
        """Project the class token: CLIP's own image embedding ``(B, embed_dim)``."""
        assert state.prefix is not None
        return self.proj(self.norm_post(state.prefix[:, 0]))
