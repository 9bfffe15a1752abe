"""CLIP's text transformer (Radford et al., 2021)."""

import torch
from torch import Tensor, nn

from .blocks import Activation, Block, Hidden, blocks_of_step, quick_gelu


class TextTransformer(nn.Module):
    """Text tower: causal pre-norm blocks over byte-pair tokens.

    Args:
        context: number of positions, the longest sentence with its start and end tokens.
        activation: of the MLPs.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        vocab: int,
        context: int,
        embed_dim: int,
        activation: Activation = quick_gelu,
    ):
        super().__init__()
        self.width, self.embed_dim = width, embed_dim
        self.token_embed = nn.Embedding(vocab, width)
        self.positions = nn.Parameter(0.01 * torch.randn(context, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_width, causal=True, activation=activation) for _ in range(depth)
        )
        self.norm_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, embed_dim, bias=False)

    def embed(self, ids: Tensor) -> Hidden:
        """Token ids ``(B, L)``, padded with 0 -> words before the first block."""
        x = self.token_embed(ids) + self.positions[: ids.shape[1]]  # (B, L, C)
        return Hidden(x, x[:, :0], ids != 0)

    def run(self, step: int, hidden: Hidden) -> Hidden:
        """One step over ``[prefix, start, context, words]``.

        Padding stands behind the sentence, where causal attention never looks.
        """
        prefix, x, context = hidden.prefix, hidden.x, hidden.context
        assert prefix is not None
        if context is not None:
            x = torch.cat([x[:, :1], context, x[:, 1:]], dim=1)  # (B, M + L, C)
        tokens = torch.cat([prefix, x], dim=1)  # (B, P + M + L, C)
        for block in blocks_of_step(self.blocks, step):
            tokens = block(tokens)
        size = prefix.shape[1]
        prefix, x = tokens[:, :size], tokens[:, size:]
        if context is not None:
            end = 1 + context.shape[1]
            context, x = x[:, 1:end], torch.cat([x[:, :1], x[:, end:]], dim=1)
        return hidden._replace(x=x, prefix=prefix, context=context)

    def head(self, hidden: Hidden, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Words ``(B, L, C)`` and the sentence ``(B, embed_dim)`` read at the end-of-text token."""
        words = self.norm_post(hidden.x)
        end = ids.argmax(dim=1)  # the end-of-text token has the largest id
        return words, self.proj(words[torch.arange(len(ids), device=ids.device), end])
