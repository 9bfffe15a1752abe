"""Zoom layers of the Bridger: change the grid and the width of a map (ETRIS, table 5).

Each is made as ``name(in_channels, out_channels, in_grid, out_grid)``, with grids in cells per
side, and takes a map ``(B, C, H, W)`` to a map.
"""

from collections.abc import Callable

from torch import Tensor, nn

from model.backbones.blocks import zoom
from model.backbones.clip import CLIP
from model.backbones.state import to_map, to_tokens

HIDDEN = 64  # hidden width of ``mlp``


def deconv(in_channels: int, out_channels: int, in_grid: int, out_grid: int) -> nn.Module:
    """Make row d and eq. 4: a strided convolution, transposed where the grid gets finer."""
    return zoom(in_channels, out_channels, out_grid / in_grid)


def interpolate(in_channels: int, out_channels: int, in_grid: int, out_grid: int) -> nn.Module:
    """Make row b: as ``deconv``, but a finer grid is interpolated after a 1 x 1 convolution.

    Bilinear; the paper does not say. The two steps commute, and this order costs less.
    """
    if out_grid <= in_grid:
        return deconv(in_channels, out_channels, in_grid, out_grid)
    finer = nn.Upsample(scale_factor=out_grid // in_grid, mode="bilinear", align_corners=False)
    return nn.Sequential(zoom(in_channels, out_channels, 1), finer)


def linear(in_channels: int, out_channels: int, in_grid: int, out_grid: int) -> nn.Module:
    """Make row a: a Linear over positions and one over channels."""
    return PositionZoom(in_channels, out_channels, nn.Linear(in_grid**2, out_grid**2), out_grid)


def mlp(in_channels: int, out_channels: int, in_grid: int, out_grid: int) -> nn.Module:
    """Make row c: as ``linear``, with a hidden layer and ReLU over positions."""
    positions = nn.Sequential(
        nn.Linear(in_grid**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, out_grid**2)
    )
    return PositionZoom(in_channels, out_channels, positions, out_grid)


Zoom = Callable[[int, int, int, int], nn.Module]
ZOOMS: dict[str, Zoom] = {
    "deconv": deconv,
    "interpolate": interpolate,
    "linear": linear,
    "mlp": mlp,
}


class PositionZoom(nn.Module):
    """Layers over positions and a Linear over channels, in the order that costs less.

    The layers over positions act where channels are few: after they get fewer or before they get
    more. All Linears have biases, as the published sizes show. The weights fit one image size.
    """

    def __init__(self, in_channels: int, out_channels: int, positions: nn.Module, out_grid: int):
        super().__init__()
        self.grid = (out_grid, out_grid)
        channels = nn.Linear(in_channels, out_channels)
        narrows = out_channels < in_channels
        self.narrow: nn.Module = channels if narrows else nn.Identity()
        self.positions = positions
        self.widen: nn.Module = nn.Identity() if narrows else channels

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.narrow(to_tokens(x))  # (B, HW, C)
        tokens = self.positions(tokens.mT).mT  # (B, hw, C)
        return to_map(self.widen(tokens), self.grid)


def grids(clip: CLIP) -> list[int]:
    """Return the cells per side of the map after each stage."""
    return [clip.image_size // stride for stride in clip.visual.strides]
