"""Multi-head attention of four Linears, so that adapters reach each of them.

Shapes: B batch, C width, D = C / heads, N queries, M keys.
"""

import torch
from torch import Tensor, nn

from .cpu_kernels import attend_by_products, attend_by_sdpa, products_are_faster


class Attention(nn.Module):
    """Multi-head attention ``softmax(Q K^T / sqrt(D)) V`` (Vaswani et al., 2017).

    The weights start as in ``nn.MultiheadAttention``: queries, keys and values Xavier uniform, as
    one matrix ``(3 C, C)`` where all tokens have one width; biases zero.

    Args:
        width: of the queries and, without ``out_width``, of the output.
        memory_width: of the tokens that give keys and values; ``width`` by default.
        causal: a token attends to itself and to earlier tokens only.
        dropout: probability that an attention weight is dropped in training.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        memory_width: int | None = None,
        out_width: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"attention of width {width} cannot be split into {heads} heads")
        self.heads, self.causal, self.dropout = heads, causal, dropout
        memory_width = memory_width or width
        self.q_proj = nn.Linear(width, width)
        self.k_proj, self.v_proj = nn.Linear(memory_width, width), nn.Linear(memory_width, width)
        self.out_proj = nn.Linear(width, out_width or width)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            initialize_projection(projection.weight, is_one_of_three=memory_width == width)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,  # (B, N, C)
        key: Tensor | None = None,  # (B, M, memory_width); the query by default
        value: Tensor | None = None,  # the same; the key by default
        attention_mask: Tensor | None = None,  # (B, K) bool: as in attend()
        value_change: Tensor | None = None,  # (B, M, C): added to the projected values
        memory: Tensor | None = None,  # more tokens, read after those of key and value
    ) -> Tensor:
        """Attend, and project to ``(B, N, out_width)``."""
        value = (query if key is None else key) if value is None else value
        q, k = self.queries_and_keys(query, key, memory)
        v = self.v_proj(value)
        v = v if value_change is None else v + value_change
        if memory is not None:
            v = torch.cat([v, self.v_proj(memory)], dim=1)
        v = split_heads(v, self.heads)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, attention_mask, causal=self.causal, dropout=dropout))

    def queries_and_keys(
        self, query: Tensor, key: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Project to ``Q`` and ``K``, ``(B, heads, N or M, D)``; arguments as in ``forward``."""
        k = self.k_proj(query if key is None else key)
        if memory is not None:
            k = torch.cat([k, self.k_proj(memory)], dim=1)
        return split_heads(self.q_proj(query), self.heads), split_heads(k, self.heads)


def initialize_projection(weight: Tensor, *, is_one_of_three: bool = True) -> None:
    """Initialize Xavier uniform, if asked as one third of a matrix ``(3 C, C)``."""
    # Xavier's bound is sqrt(6 / (C + C)) for one matrix and sqrt(6 / (3 C + C)) for all three
    nn.init.xavier_uniform_(weight, gain=0.5**0.5 if is_one_of_three else 1.0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape ``(B, N, C) -> (B, heads, N, D)``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def attend(
    query: Tensor,  # (B, heads, N, D)
    key: Tensor,  # (B, heads, M, D)
    value: Tensor,  # (B, heads, M, D)
    attention_mask: Tensor | None = None,  # (B, K) bool, for the last K keys: True is attended to
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Compute ``softmax(Q K^T / sqrt(D)) V`` and join the heads: ``(B, N, heads D)``.

    Keys before the last K of ``attention_mask`` are always attended to.
    """
    kernel = attend_by_products if products_are_faster(query, key, dropout) else attend_by_sdpa
    x = kernel(query, key, value, attention_mask, causal=causal, dropout=dropout)
    return x.transpose(1, 2).flatten(2)
