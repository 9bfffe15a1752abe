"""Conv-Adapter: bottlenecks beside the frozen layers of the image tower.

In a ResNet it lies beside a 3 x 3 convolution, as in the code of VL-Adapter (Sung et al., CVPR
2022), which ETRIS cites; Chen et al. (Conv-Adapter, CVPR workshops 2024) call this "convolution
parallel".
"""

from torch import Tensor, nn

from model.backbones.clip import CLIP
from model.backbones.slots import fill, replace_layer

from .adapter import Adapter
from .common import bottleneck, bottleneck_width, pointwise, resnet_blocks


def add_conv_adapter(clip: CLIP, *, reduction: int = 4) -> None:
    """Replace ``y = f(x)`` by ``y = f(x) + up(GELU(down(x)))``, two 1 x 1 convolutions.

    In a ResNet ``f`` is the 3 x 3 convolution of every bottleneck. In a ViT, where a 1 x 1
    convolution of the grid is a Linear of the tokens, ``f`` is the MLP of every block, and the
    adapter changes its shortcut: ``y = x + up(GELU(down(x))) + mlp(norm(x))``.

    Args:
        reduction: how many times narrower ``down(x)`` is than ``x``.

    Raises:
        ValueError: if ``reduction`` is out of range or another adapter is there already.
    """
    for block in resnet_blocks(clip.visual):
        hidden = bottleneck_width(block.conv2.in_channels, reduction, "conv_adapter")
        replace_layer(block, "conv2", ConvBesideConv(block.conv2, hidden))
    for half in (block.mlp for block in getattr(clip.visual, "blocks", [])):
        hidden = bottleneck_width(half.width, reduction, "conv_adapter")
        fill(half, "shortcut", ConvAdapter(half.width, hidden))


class ConvAdapter(Adapter):
    """``x + up(GELU(down(x)))`` of the tokens on a shortcut."""


class ConvBesideConv(nn.Conv2d):
    """``conv(x) + up(GELU(down(x)))`` with a frozen 3 x 3 convolution."""

    def __init__(self, plain: nn.Conv2d, hidden: int):
        # meta: the weight comes from the plain convolution
        super().__init__(
            plain.in_channels, plain.out_channels, 3, padding=1, bias=False, device="meta"
        )
        self.weight = plain.weight
        self.change = bottleneck(plain.in_channels, hidden, pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.change(x)
