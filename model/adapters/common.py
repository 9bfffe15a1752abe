"""What several adapters share: the choice of towers, a bottleneck, norms that train."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.clip import CLIP
from model.backbones.resnet import Bottleneck

TOWERS = {"both": ("visual", "text"), "image": ("visual",), "text": ("text",)}


def choose_towers(clip: CLIP, towers: str, method: str) -> list[nn.Module]:
    """The towers of an option ``towers``: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if it is none of these, naming the method.
    """
    if towers not in TOWERS:
        raise ValueError(f"{method}: towers {towers!r} must be one of {', '.join(TOWERS)}")
    return [getattr(clip, tower) for tower in TOWERS[towers]]


def bottlenecks_of(tower: nn.Module) -> list[Bottleneck]:
    """The blocks of a ResNet; none of any other tower."""
    return [module for module in tower.modules() if isinstance(module, Bottleneck)]


def narrow(width: int, reduction: int, method: str) -> int:
    """Width in the middle of a bottleneck: ``width / reduction``.

    Raises:
        ValueError: if nothing is left of it, naming the method.
    """
    if not 1 <= reduction <= width:
        raise ValueError(
            f"{method}: reduction {reduction} must be from 1 to {width}, the narrowest width it is "
            "to reduce"
        )
    return width // reduction


def bottleneck(width: int, hidden: int, layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """``up(GELU(down(x)))``, nearly zero at the start (Houlsby et al., 2019, section 3.6).

    Args:
        layer: makes ``down`` and ``up`` of the channels that go in and come out.
    """
    layers = nn.Sequential(layer(width, hidden), nn.GELU(), layer(hidden, width))
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.01, a=-0.02, b=0.02)
        else:
            nn.init.zeros_(parameter)
    return layers


def pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1)


class TunedNorm(nn.LayerNorm):
    """A LayerNorm that trains: ``(weight + weight_change) * normalize(x) + bias + bias_change``.

    The frozen weight and bias stay as they are; the changes start at zero.
    """

    def __init__(self, plain: nn.LayerNorm):
        # meta: the parameters are those of the plain norm
        super().__init__(list(plain.normalized_shape), eps=plain.eps, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.weight_change = nn.Parameter(torch.zeros_like(plain.weight))
        self.bias_change = nn.Parameter(torch.zeros_like(plain.bias))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight + self.weight_change, self.bias + self.bias_change
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
