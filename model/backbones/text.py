"""The text tower of CLIP: a causal transformer over byte-pair tokens (Radford et al., 2021)."""

import torch
from torch import Tensor, nn

from .blocks import Activation, Block, blocks_of_step, quick_gelu
from .state import TowerState


class TextTransformer(nn.Module):
    """Causal pre-norm blocks over tokens.

    Args:
        context: number of positions: the longest sentence, start and end tokens included.
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

    def embed(self, ids: Tensor) -> TowerState:
        """Token ids ``(B, L)``, padded with 0 -> the state before the first block."""
        x = self.token_embed(ids) + self.positions[: ids.shape[1]]  # (B, L, C)
        return TowerState(x, x[:, :0], ids != 0)

    def run(self, step: int, state: TowerState) -> TowerState:
        """Run one step over ``[prefix, start token, context, words]``.

        No mask of padding is needed: it follows the sentence, and attention is causal.
        """
        prefix, x, context = state.prefix, state.x, state.context
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
        return state._replace(x=x, prefix=prefix, context=context)

    def head(self, state: TowerState, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return word features ``(B, L, C)`` and the sentence ``(B, embed_dim)``.

        The sentence is read at the end-of-text token, which has the largest id.
        """
        word_features = self.norm_post(state.x)
        end = ids.argmax(dim=1)
        rows = torch.arange(len(ids), device=ids.device)
        return word_features, self.proj(word_features[rows, end])
