"""Multi-head attention, and the two ways to compute it.

Shapes: B batch, C width, D width of a head, N queries, M keys.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention ``softmax(Q K^T / sqrt(C / heads)) V`` of four Linears around SDPA.

    Its weights start as those of ``nn.MultiheadAttention``: queries, keys and values Xavier
    uniform, as one matrix ``(3 C, C)`` where their tokens are of one width; every bias zero.

    Args:
        width: of the queries and, unless ``out_width`` says otherwise, of the output.
        memory_width: of the tokens that keys and values are made of; ``width`` by default.
        causal: a token sees itself and those before it.
        dropout: probability that an attention weight is dropped in training.
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
        key: Tensor | None = None,  # (B, M, memory_width); the query itself by default
        value: Tensor | None = None,  # like key; the key by default
        keep: Tensor | None = None,  # (B, K) bool: as for attend()
        value_change: Tensor | None = None,  # (B, M, C): added to the projected values
        memory: Tensor | None = None,  # tokens that stand behind key and value
    ) -> Tensor:
        value = (query if key is None else key) if value is None else value
        q, k = self.queries_and_keys(query, key, memory)
        v = self.v_proj(value)
        v = v if value_change is None else v + value_change
        if memory is not None:
            v = torch.cat([v, self.v_proj(memory)], dim=1)
        dropout = self.dropout if self.training else 0.0
        x = attend(q, k, split_heads(v, self.heads), keep, causal=self.causal, dropout=dropout)
        return self.out_proj(x)  # (B, N, out_width)

    def queries_and_keys(
        self, query: Tensor, key: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``Q`` and ``K`` of these arguments of a call: ``(B, heads, N or M, D)``."""
        k = self.k_proj(query if key is None else key)
        if memory is not None:
            k = torch.cat([k, self.k_proj(memory)], dim=1)
        return split_heads(self.q_proj(query), self.heads), split_heads(k, self.heads)


def initialize_projection(weight: Tensor, *, is_one_of_three: bool = True) -> None:
    """Xavier uniform, for one of three matrices ``(C, C)`` that are drawn as one ``(3 C, C)``."""
    # 6 / (3 C + C) under the root of Xavier's bound is half of 6 / (C + C)
    nn.init.xavier_uniform_(weight, gain=0.5**0.5 if is_one_of_three else 1.0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(B, N, C) -> (B, heads, N, C / heads)``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def attend(
    query: Tensor,  # (B, heads, N, D)
    key: Tensor,  # (B, heads, M, D)
    value: Tensor,  # (B, heads, M, D)
    keep: Tensor | None = None,  # (B, K) bool: of the last K keys, those that may be attended to
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(Q K^T / sqrt(D)) V``, the heads put together: ``(B, N, heads D)``.

    Keys before those of ``keep`` may be attended to.
    """
    if products_are_faster(query, key, dropout):
        x = attend_by_products(query, key, value, keep, causal=causal, dropout=dropout)
    else:
        mask = None
        if keep is not None:
            mask = F.pad(keep, (key.shape[2] - keep.shape[1], 0), value=True)[:, None, None, :]
        x = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
    return x.transpose(1, 2).flatten(2)


SHORT = 256  # tokens


def products_are_faster(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Whether two matrix products and a softmax beat SDPA: never but on a CPU.

    There its flash kernel does not use the matrix units for bf16 (half the speed of products), has
    a slow backward for short sequences, and none at all for dropout.
    """
    if query.device.type != "cpu":
        return False
    is_short = max(query.shape[2], key.shape[2]) <= SHORT
    return query.dtype == torch.bfloat16 or dropout > 0 or (is_short and torch.is_grad_enabled())


def attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, *, causal: bool, dropout: float
) -> Tensor:
    """What SDPA computes, with the scores written out: ``(B, heads, N, D)``."""
    bias = kept = None
    if causal:
        bias = hide(query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(), query)
    elif keep is not None:
        bias = hide(keep, query)[:, None, None]
    if dropout:
        kept = draw((*query.shape[:3], key.shape[2]), dropout)
    query = query * query.shape[3] ** -0.5
    return _Products.apply(query, key, value, bias, kept, 1 / (1 - dropout))


def hide(keep: Tensor, like: Tensor) -> Tensor:
    """What to add to scores: 0 where ``keep`` is true, else minus infinity."""
    return like.new_zeros(keep.shape).masked_fill(~keep, -math.inf)


class _Products(torch.autograd.Function):
    """``scale (softmax(Q K^T + bias) kept) V``.

    The weights are a matrix for each head, far more than all else of a block; for the backward pass
    they are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,  # of the last keys
        kept: Tensor | None,  # 1 for the weights that dropout leaves, else 0
        scale: float,
    ) -> Tensor:
        packed = None if kept is None else pack(kept)
        ctx.save_for_backward(query, key, value, bias, packed)
        ctx.scale = scale
        weights = weigh(query, key, bias)
        if kept is None:
            return weights @ value
        return weights.mul_(kept) @ (value * scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, packed = ctx.saved_tensors
        weights = weigh(query, key, bias)
        if packed is None:
            of_value = weights.mT @ gradient
            of_weights = gradient @ value.mT
        else:
            kept, gradient = unpack(packed, weights.shape), gradient * ctx.scale
            of_value = (weights * kept).mT @ gradient
            of_weights = (gradient @ value.mT).mul_(kept)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, 3, weights.dtype)
        return of_scores @ key, of_scores.mT @ query, of_value, None, None, None


def weigh(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """``softmax(Q K^T + bias)``: ``(B, heads, N, M)``."""
    scores = query @ key.mT
    if bias is not None:
        scores[..., -bias.shape[-1] :].add_(bias)
    return scores.softmax(dim=3)


def pack(bits: Tensor) -> Tensor:
    """Eight of ``bits``, uint8 that are 0 or 1, in a byte."""
    rows = F.pad(bits.flatten(), (0, -bits.numel() % 8)).unflatten(0, (8, -1))
    packed = rows[0].clone()
    for place in range(1, 8):
        packed.add_(rows[place], alpha=2**place)
    return packed


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The bits of :func:`pack`."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)[:, None]
    return (packed >> places).bitwise_and_(1).flatten()[: math.prod(shape)].view(*shape)


class Dropout(nn.Dropout):
    """:func:`drop` with probability ``p`` in training."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p if self.training else 0.0)


def drop(x: Tensor, probability: float) -> Tensor:
    """Dropout: each entry 0 with ``probability``, else divided by ``1 - probability``.

    On a CPU torch draws one random number at a time; :func:`draw` is ten times as fast.
    """
    if x.device.type != "cpu" or not probability:
        return F.dropout(x, probability)
    return x * draw(x.shape, probability) * (1 / (1 - probability))


def draw(shape: Sequence[int], probability: float) -> Tensor:
    """For each entry 0 with ``probability``, rounded to a multiple of 2^-16, else 1: uint8.

    64 random bits are four draws. Bools would take ten times as long to become numbers.
    """
    size = math.prod(shape)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-size // 4),))
    draws = bits.view(torch.int16)[:size].view(*shape)
    return draws.ge_(round(probability * 2**16) - 2**15).to(torch.uint8)
