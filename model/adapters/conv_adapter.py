"""Conv-Adapter: bottlenecks beside the frozen layers of the image tower.

In a ResNet the adapter stands beside a 3 x 3 convolution, as in the code of VL-Adapter (Sung et
al., CVPR 2022), which ETRIS cites for it; Chen et al. (Conv-Adapter, CVPR workshops 2024) call the
place "convolution parallel".
"""

from torch import Tensor, nn

from model.backbones.blocks import exchange, fill
from model.backbones.clip import CLIP

from .adapter import Adapter
from .common import bottleneck, bottlenecks_of, narrow, pointwise


def add_conv_adapter(clip: CLIP, *, reduction: int = 4) -> None:
    """``y = f(x) + up(GELU(down(x)))`` with 1 x 1 convolutions ``down`` and ``up``.

    In a ResNet ``f`` is the 3 x 3 convolution of every bottleneck.  In a ViT, where a 1 x 1
    convolution of the grid is a Linear of its tokens, ``f`` is the MLP of every block, and the
    adapter changes its shortcut: ``y = x + up(GELU(down(x))) + mlp(norm(x))``.

    ETRIS (table 2) publishes 1.20 M on RN101, with reduction 4.  Beside all 33 convolutions, with
    biases and without norms, it is 1,195,952.  On the shortcuts of the bottlenecks, four times as
    wide, it would be 19.01 M, and with a depthwise ``down`` as of Chen et al. beside the same
    convolutions 0.67 M.  Other choices give 1.20 M as well, so that the count does not prove it.

    Args:
        reduction: ``down(x)`` is so many times narrower than ``x``.

    Raises:
        ValueError: if ``reduction`` is out of range or another adapter has a place already.
    """
    for block in bottlenecks_of(clip.visual):
        hidden = narrow(block.conv2.in_channels, reduction, "conv_adapter")
        exchange(block, "conv2", ConvBesideConv(block.conv2, hidden))
    for half in (block.mlp for block in getattr(clip.visual, "blocks", [])):
        hidden = narrow(half.width, reduction, "conv_adapter")
        fill(half, "shortcut", ConvAdapter(half.width, hidden))


class ConvAdapter(Adapter):
    """``x + up(GELU(down(x)))`` of the tokens on a shortcut."""


class ConvBesideConv(nn.Conv2d):
    """``conv(x) + up(GELU(down(x)))`` with a frozen 3 x 3 convolution."""

    def __init__(self, plain: nn.Conv2d, hidden: int):
        # meta: the weight is that of the plain convolution
        super().__init__(
            plain.in_channels, plain.out_channels, 3, padding=1, bias=False, device="meta"
        )
        self.weight = plain.weight
        self.change = bottleneck(plain.in_channels, hidden, pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.change(x)
