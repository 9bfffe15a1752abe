"""Adapter: bottlenecks between frozen layers (Houlsby et al., ICML 2019, section 2.1)."""

from torch import Tensor, nn

from model.backbones.clip import CLIP
from model.backbones.slots import fill, replace_layer

from .common import TunedNorm, bottleneck, bottleneck_width, choose_towers, pointwise, resnet_blocks

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
    """Replace ``y = x + f(x)`` by ``y = x + A(f(x))`` with ``A(z) = z + up(GELU(down(z)))``.

    In transformers ``f`` is half a block, as in figure 2 of the paper, and its norm trains too. In
    a ResNet ``A`` lies inside every bottleneck, before its last convolution; norms stay frozen.

    ``halves="mlp", first_block=3`` on RN101 gives the size that ETRIS publishes (table 2), which
    does not say the places.

    Args:
        reduction: how many times narrower the middle of ``A`` is than ``z``.
        halves: which halves of a transformer's block: ``both``, ``attention`` or ``mlp``.
        first_block: number of the first transformer block that gets one, from 0.
        norms: also train the norms of those halves.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range or another adapter is there already.
    """
    if halves not in HALVES:
        raise ValueError(f"adapter: halves {halves!r} must be one of {', '.join(HALVES)}")
    for tower in choose_towers(clip, towers, "adapter"):
        for block in resnet_blocks(tower):
            hidden = bottleneck_width(block.conv3.in_channels, reduction, "adapter")
            replace_layer(block, "conv3", AdaptedConv(block.conv3, hidden))
        blocks = getattr(tower, "blocks", [])
        if len(blocks) and not 0 <= first_block < len(blocks):
            raise ValueError(
                f"adapter: first_block {first_block} must be from 0 to {len(blocks) - 1}"
            )
        for half in (getattr(block, h) for block in blocks[first_block:] for h in HALVES[halves]):
            hidden = bottleneck_width(half.width, reduction, "adapter")
            fill(half, "after", Adapter(half.width, hidden))
            if norms:
                replace_layer(half, "norm", TunedNorm(half.norm))


class Adapter(nn.Module):
    """``x + up(GELU(down(x)))``; training starts near the identity."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.change = bottleneck(width, hidden, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


class AdaptedConv(nn.Conv2d):
    """``conv(x + up(GELU(down(x))))`` with a frozen 1 x 1 convolution."""

    def __init__(self, plain: nn.Conv2d, hidden: int):
        # meta: the weight comes from the plain convolution
        super().__init__(plain.in_channels, plain.out_channels, 1, bias=False, device="meta")
        self.weight = plain.weight
        self.change = bottleneck(plain.in_channels, hidden, pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.change(x))
