"""LoRA: low-rank changes of frozen Linears (Hu et al., 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.attention import Attention
from model.backbones.clip import CLIP
from model.backbones.eva import RotaryAttention
from model.backbones.slots import replace_layer

from .common import choose_towers

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def add_lora(
    clip: CLIP,
    *,
    rank: int = 4,
    alpha: float | None = None,
    projections: Sequence[str] = ("q_proj", "v_proj"),
    towers: str = "both",
) -> None:
    """Replace ``W_0 x`` by ``W_0 x + alpha / rank B A x`` (eq. 3) in every attention.

    By default queries and values change, as in most of the paper's experiments (section 5.1). The
    only attention of a ResNet is its pool.

    Args:
        rank: of every change.
        alpha: numerator of the scale ``alpha / rank``; ``rank`` by default.
        projections: which Linears change: some of ``q_proj, k_proj, v_proj, out_proj``.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range or another adapter is there already.
    """
    if rank < 1:
        raise ValueError(f"lora: rank {rank} must be at least 1")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"lora: alpha {alpha} must be above 0")
    if not projections or not set(projections) <= set(PROJECTIONS):
        raise ValueError(
            f"lora: projections {list(projections)} must be some of {', '.join(PROJECTIONS)}"
        )
    scale = 1.0 if alpha is None else alpha / rank
    for tower in choose_towers(clip, towers, "lora"):
        for module in list(tower.modules()):
            if isinstance(module, Attention | RotaryAttention):
                for name in projections:
                    replace_layer(module, name, LoRA(getattr(module, name), rank=rank, scale=scale))


class LoRA(nn.Linear):
    """``W_0 x + bias + scale B A x`` with frozen ``W_0``; ``B`` starts at zero (section 4.1).

    ``A`` starts normal, so that ``A x`` has the size of ``x``. It has a gradient once ``B`` is not
    zero.
    """

    def __init__(self, plain: nn.Linear, *, rank: int, scale: float):
        # meta: the parameters come from the plain Linear
        super().__init__(
            plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta"
        )
        self.weight, self.bias, self.scale = plain.weight, plain.bias, scale
        self.down = nn.Parameter(torch.randn(rank, self.in_features) * self.in_features**-0.5)  # A
        self.up = nn.Parameter(torch.zeros(self.out_features, rank))  # B

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.down), self.up)
        return super().forward(x) + self.scale * change
