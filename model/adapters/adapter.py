"""Adapter: bottlenecks between frozen layers (Houlsby et al., ICML 2019, section 2.1)."""

from torch import Tensor, nn

from model.backbones.blocks import exchange, fill
from model.backbones.clip import CLIP

from .common import (
    TunedNorm,
    bottleneck,
    bottlenecks_of,
    choose_towers,
    narrow,
    pointwise,
)

HALVES = {"both": ("attention", "mlp"), "attention": ("attention",), "mlp": ("mlp",)}


def add_adapter(
    clip: CLIP,
    *,
    reduction: int = 4,
    halves: str = "both",
    first_block: int = 0,
    norms: bool = True,
    towers: str = "both",
) -> None:
    """``y = x + A(f(x))`` with ``A(z) = z + up(GELU(down(z)))`` in place of ``y = x + f(x)``.

    In transformers ``f`` is half a block, as in figure 2 of the paper, which trains the norms too.
    In a ResNet ``A`` stands inside every bottleneck, between its 3 x 3 convolution and the one that
    widens again; norms there stay frozen.

    ETRIS (table 2) publishes 2.39 M on RN101, with reduction 4 and adapters in both towers.  Before
    all residual sums they would be 22.20 M.  Inside all 33 bottlenecks and behind the MLPs of the
    last nine text blocks, with the norms of those, they are 2,390,576 (``halves: mlp, first_block:
    3``).  A few other choices of places give 2.39 M as well, so that the count does not prove it.

    Args:
        reduction: the middle of ``A`` is so many times narrower than ``z``.
        halves: of a transformer's block that get one: ``both``, ``attention`` or ``mlp``.
        first_block: of a transformer that gets one, from 0.
        norms: also train the norms of those halves.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range or another adapter has one of the places already.
    """
    if halves not in HALVES:
        raise ValueError(f"adapter: halves {halves!r} must be one of {', '.join(HALVES)}")
    for tower in choose_towers(clip, towers, "adapter"):
        for block in bottlenecks_of(tower):
            hidden = narrow(block.conv3.in_channels, reduction, "adapter")
            exchange(block, "conv3", AdaptedConv(block.conv3, hidden))
        blocks = getattr(tower, "blocks", [])
        if len(blocks) and not 0 <= first_block < len(blocks):
            raise ValueError(
                f"adapter: first_block {first_block} must be from 0 to {len(blocks) - 1}"
            )
        for half in (getattr(block, h) for block in blocks[first_block:] for h in HALVES[halves]):
            fill(half, "after", Adapter(half.width, narrow(half.width, reduction, "adapter")))
            if norms:
                exchange(half, "norm", TunedNorm(half.norm))


class Adapter(nn.Module):
    """``x + up(GELU(down(x)))``, nearly the identity at the start."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.change = bottleneck(width, hidden, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


class AdaptedConv(nn.Conv2d):
    """``conv(x + up(GELU(down(x))))`` with a frozen 1 x 1 convolution."""

    def __init__(self, plain: nn.Conv2d, hidden: int):
        # meta: the weight is that of the plain convolution
        super().__init__(plain.in_channels, plain.out_channels, 1, bias=False, device="meta")
        self.weight = plain.weight
        self.change = bottleneck(plain.in_channels, hidden, pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.change(x))
