"""Fast forms of attention, dropout and a frozen norm on CPUs, each after its plain form.

On a GPU the plain forms run, except of the norm. ``tests/model/backbones/test_cpu_kernels.py``
compares the two. Shapes: B batch, D width of a head, N queries, M keys, K of them masked.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT_SEQUENCE = 256  # tokens


def attend_by_sdpa(
    query: Tensor,  # (B, heads, N, D)
    key: Tensor,  # (B, heads, M, D)
    value: Tensor,  # (B, heads, M, D)
    attention_mask: Tensor | None = None,  # (B, K) bool, for the last K keys
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Compute attention ``(B, heads, N, D)`` the plain way, with PyTorch's kernel."""
    if attention_mask is not None:
        num_always = key.shape[2] - attention_mask.shape[1]
        attention_mask = F.pad(attention_mask, (num_always, 0), value=True)[:, None, None, :]
    return F.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, is_causal=causal
    )


def products_are_faster(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Say whether :func:`attend_by_products` is the faster one: on a CPU, in three cases.

    PyTorch's CPU kernel does not use the matrix units for bf16 (half the speed of products), has a
    slow backward pass for short sequences, and has no fast form with dropout.
    """
    if query.device.type != "cpu":
        return False
    is_short = max(query.shape[2], key.shape[2]) <= SHORT_SEQUENCE
    return query.dtype == torch.bfloat16 or dropout > 0 or (is_short and torch.is_grad_enabled())


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Compute the same as :func:`attend_by_sdpa` with two matrix products and a softmax."""
    bias = kept = None
    if causal:
        earlier = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        bias = attention_bias(earlier, query)
    elif attention_mask is not None:
        bias = attention_bias(attention_mask, query)[:, None, None]
    if dropout:
        kept = dropout_mask((*query.shape[:3], key.shape[2]), dropout)
    query = query * query.shape[3] ** -0.5
    return _Products.apply(query, key, value, bias, kept, 1 / (1 - dropout))


def attention_bias(attention_mask: Tensor, like: Tensor) -> Tensor:
    """Make what is added to scores: 0 where the mask is True, else minus infinity."""
    return like.new_zeros(attention_mask.shape).masked_fill(~attention_mask, -math.inf)


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``softmax(Q K^T + bias)``, ``(B, heads, N, M)``; ``bias`` is of the last keys."""
    scores = query @ key.mT
    if bias is not None:
        scores[..., -bias.shape[-1] :].add_(bias)
    return scores.softmax(dim=3)


class _Products(torch.autograd.Function):
    """``scale (softmax(Q K^T + bias) * kept) V``.

    The attention weights, one matrix a head, are far larger than all other tensors of a block. So
    they are not stored for the backward pass but computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,  # of the last keys
        kept: Tensor | None,  # (B, heads, N, M) uint8: dropout's mask
        scale: float,
    ) -> Tensor:
        packed = None if kept is None else pack_bits(kept)
        ctx.save_for_backward(query, key, value, bias, packed)
        ctx.scale = scale
        weights = attention_weights(query, key, bias)
        if kept is None:
            return weights @ value
        return weights.mul_(kept) @ (value * scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, packed = ctx.saved_tensors
        weights = attention_weights(query, key, bias)
        if packed is None:
            of_value = weights.mT @ gradient
            of_weights = gradient @ value.mT
        else:
            kept, gradient = unpack_bits(packed, weights.shape), gradient * ctx.scale
            of_value = (weights * kept).mT @ gradient
            of_weights = (gradient @ value.mT).mul_(kept)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, 3, weights.dtype)
        return of_scores @ key, of_scores.mT @ query, of_value, None, None, None


def pack_bits(bits: Tensor) -> Tensor:
    """Pack eight entries of a uint8 tensor of 0 and 1 into each byte of a flat tensor."""
    rows = F.pad(bits.flatten(), (0, -bits.numel() % 8)).unflatten(0, (8, -1))
    packed = rows[0].clone()
    for place in range(1, 8):
        packed.add_(rows[place], alpha=2**place)
    return packed


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the tensor of 0 and 1 that :func:`pack_bits` has packed."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)[:, None]
    return (packed >> places).bitwise_and_(1).flatten()[: math.prod(shape)].view(*shape)


class Dropout(nn.Dropout):
    """``nn.Dropout`` that calls :func:`dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, probability: float) -> Tensor:
    """Set each entry to 0 with ``probability``, and divide the others by ``1 - probability``.

    On a CPU ``F.dropout`` draws one random number at a time; :func:`dropout_mask` is ten times as
    fast.
    """
    if x.device.type != "cpu" or not probability:
        return F.dropout(x, probability)
    return x * dropout_mask(x.shape, probability) * (1 / (1 - probability))


def dropout_mask(shape: Sequence[int], probability: float) -> Tensor:
    """Draw a uint8 mask: 0 with ``probability``, rounded to a multiple of 2^-16, else 1.

    64 random bits give four entries. A mask of bools would take ten times as long to multiply.
    """
    size = math.prod(shape)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-size // 4),))
    draws = bits.view(torch.int16)[:size].view(*shape)
    return draws.ge_(round(probability * 2**16) - 2**15).to(torch.uint8)


class FrozenNorm(nn.Module):
    """``F.batch_norm`` whose statistics and weights never change, in the type of the input.

    All four tensors ``(C,)`` are buffers with their names in ``nn.BatchNorm2d``, whose states it
    loads. Unlike ``F.batch_norm`` it stores nothing of its input for the backward pass.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a map ``(B, C, H, W)``."""
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        return _Normalize.apply(x, *statistics, self.epsilon)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **options: Any
    ) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *others, **options)


class _Normalize(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias``, with a gradient for ``x`` only."""

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, eps=epsilon)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, variance, weight, _, epsilon = inputs
        ctx.save_for_backward(weight * (variance + epsilon).rsqrt())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype)[:, None, None], None, None, None, None, None
