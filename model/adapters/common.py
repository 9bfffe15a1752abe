"""Parts of several adapters: the choice of towers, a bottleneck, norms that train."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.clip import CLIP
from model.backbones.resnet import Bottleneck

TOWERS = {"both": ("visual", "text"), "image": ("visual",), "text": ("text",)}


def choose_towers(clip: CLIP, towers: str, method: str) -> list[nn.Module]:
    """Return the towers that an option names: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if it names none of these.
    """
    if towers not in TOWERS:
        raise ValueError(f"{method}: towers {towers!r} must be one of {', '.join(TOWERS)}")
    return [getattr(clip, tower) for tower in TOWERS[towers]]


def resnet_blocks(tower: nn.Module) -> list[Bottleneck]:
    """Return the blocks of a ResNet; other towers have none."""
    return [module for module in tower.modules() if isinstance(module, Bottleneck)]


def bottleneck_width(width: int, reduction: int, method: str) -> int:
    """Return the width in the middle of a bottleneck: ``width / reduction``.

    Raises:
        ValueError: if that is below 1 or above ``width``.
    """
    if not 1 <= reduction <= width:
        raise ValueError(
            f"{method}: reduction {reduction} must be from 1 to {width}, the width it reduces"
        )
    return width // reduction


def bottleneck(width: int, hidden: int, layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """Make ``up(GELU(down(x)))``, nearly zero at the start (Houlsby et al., 2019, section 3.6).

    Args:
        layer: makes ``down`` and ``up`` from the numbers of input and output channels.
    """
    layers = nn.Sequential(layer(width, hidden), nn.GELU(), layer(hidden, width))
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.01, a=-0.02, b=0.02)
        else:
            nn.init.zeros_(parameter)
    return layers


def pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Make a 1 x 1 convolution."""
    return nn.Conv2d(in_channels, out_channels, 1)


class TunedNorm(nn.LayerNorm):
    """A LayerNorm that trains: ``(weight + weight_change) * normalize(x) + bias + bias_change``.

    The weight and bias of CLIP stay frozen; the changes start at zero.
    """

    def __init__(self, plain: nn.LayerNorm):
        # meta: the parameters come from the plain norm
        super().__init__(list(plain.normalized_shape), eps=plain.eps, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.weight_change = nn.Parameter(torch.zeros_like(plain.weight))
        self.bias_change = nn.Parameter(torch.zeros_like(plain.bias))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight + self.weight_change, self.bias + self.bias_change
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
