"""LoRA: low-rank changes of frozen Linears (Hu et al., 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.attention import Attention
from model.backbones.blocks import exchange
from model.backbones.clip import CLIP
from model.backbones.eva import RotaryAttention

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
    """``h = W_0 x + alpha / rank B A x`` (eq. 3) in every attention of the towers.

    By default the queries and values change, as in most of the paper's experiments (section 5.1).
    The attention of a ResNet is its pool.

    ETRIS (table 2) publishes 0.03 M on RN101.  Queries and values of both towers, the pool's
    included, are 32,768 with rank 1 and 65,536 with rank 2; other Linears can give 0.03 M as well.

    Args:
        rank: of every change.
        alpha: of the scale of the changes; ``rank`` by default, which scales them by 1.
        projections: of an attention that change: some of ``q_proj, k_proj, v_proj, out_proj``.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range or another adapter has one of the places already.
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
                    exchange(module, name, LoRA(getattr(module, name), rank=rank, scale=scale))


class LoRA(nn.Linear):
    """``W_0 x + bias + scale B A x`` with frozen ``W_0``; ``B`` is zero at the start (section 4.1).

    ``A`` is normal, so that ``A x`` is of the size of ``x``.  It gets its first gradient after
    ``B`` has moved.
    """

    def __init__(self, plain: nn.Linear, *, rank: int, scale: float):
        # meta: the parameters are those of the plain Linear
        super().__init__(
            plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta"
        )
        self.weight, self.bias, self.scale = plain.weight, plain.bias, scale
        self.down = nn.Parameter(torch.randn(rank, self.in_features) * self.in_features**-0.5)  # A
        self.up = nn.Parameter(torch.zeros(self.out_features, rank))  # B

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.down), self.up)
        return super().forward(x) + self.scale * change
