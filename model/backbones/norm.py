"""Batch normalisation whose statistics and weights stay as they are."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenNorm(nn.Module):
    """``(x - running_mean) / sqrt(running_var + epsilon) * weight + bias``, in the type of ``x``.

    All four are buffers ``(C,)``, with the names that they have in ``nn.BatchNorm2d``, whose states
    it reads.  Nothing of ``x`` is kept for the backward pass.
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
        """``(B, C, H, W)`` -> the same."""
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        return _Normalize.apply(x, *statistics, self.epsilon)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **options: Any
    ) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *others, **options)


class _Normalize(torch.autograd.Function):
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
