"""The modified ResNet of CLIP (Radford et al., 2021, section 2.4).

Three convolutions in the stem, average pooling before every strided convolution, and attention in
place of the last average pooling.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .attention import Attention
from .blocks import resize_positions
from .slots import Residual
from .state import STAGE_ENDS, TowerState, to_map, to_tokens

EXPANSION = 4
Norm = Callable[[int], nn.Module]


class Bottleneck(Residual):
    """``relu(shortcut(downsample(x)) + after(conv3(pool(conv2(conv1(x))))))``."""

    def __init__(self, in_width: int, width: int, stride: int, norm: Norm):
        super().__init__(EXPANSION * width)
        self.conv1, self.bn1 = nn.Conv2d(in_width, width, 1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, self.width, 1, bias=False), norm(self.width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_width != self.width:
            projection = nn.Conv2d(in_width, self.width, 1, bias=False)
            self.downsample = nn.Sequential(self.pool, projection, norm(self.width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.pool(y)))
        return torch.relu(self.join(self.downsample(x), y))


class ModifiedResNet(nn.Module):
    """An image tower of four layers; layers 2, 3 and 4 each run at the end of a stage.

    Args:
        width: channels after the stem.
        depths: blocks of the four layers.
        heads: of the attention pool.
        grid: cells per side of the pool's table of positions. Every forward pass resizes it to the
            last map, as in the released code of ETRIS, so that the table that trains is CLIP's own.
        norm: makes a normalization layer from a number of channels.

    Attributes: as of :class:`model.backbones.vit.VisionTransformer`.
    """

    def __init__(
        self,
        *,
        width: int,
        depths: Sequence[int],
        heads: int,
        grid: int,
        embed_dim: int,
        norm: Norm,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.widths = tuple(EXPANSION * width * scale for scale in (2, 4, 8))
        self.strides = (8, 16, 32)
        self.last_width = self.widths[-1]
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, 2, padding=1, bias=False), norm(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), norm(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), norm(width)
        self.pool_stem = nn.AvgPool2d(2)
        self.layer1 = make_layer(width, width, depths[0], 1, norm)
        self.layer2 = make_layer(EXPANSION * width, 2 * width, depths[1], 2, norm)
        self.layer3 = make_layer(self.widths[0], 4 * width, depths[2], 2, norm)
        self.layer4 = make_layer(self.widths[1], 8 * width, depths[3], 2, norm)
        self.positions = nn.Parameter(0.02 * torch.randn(1 + grid**2, self.last_width))
        self.attnpool = Attention(self.last_width, heads, out_width=embed_dim)

    def embed(self, image: Tensor) -> TowerState:
        """Normalized image ``(B, 3, S, S)`` -> the map after the first layer, at stride 4."""
        x = torch.relu(self.bn1(self.conv1(image)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return TowerState(self.layer1(self.pool_stem(x)), None)

    def run(self, step: int, state: TowerState) -> TowerState:
        """Run the layer that ends with this step, if there is one."""
        if step not in STAGE_ENDS:
            return state
        layer = (self.layer2, self.layer3, self.layer4)[STAGE_ENDS.index(step)]
        return state._replace(x=layer(state.x))

    def head(self, state: TowerState) -> Tensor:
        """Pool with every cell as a query, as in CRIS: ``(B, embed_dim, H, W)``."""
        grid = state.x.shape[2:]
        positions = resize_positions(self.positions, grid[0])
        tokens = to_tokens(state.x) + positions[1:]  # (B, HW, C)
        return to_map(self.attnpool(tokens), grid)

    def pool(self, state: TowerState) -> Tensor:
        """Pool with the mean as the query: CLIP's own image embedding ``(B, embed_dim)``."""
        tokens = to_tokens(state.x)
        positions = resize_positions(self.positions, state.x.shape[2])
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + positions
        return self.attnpool(tokens[:, :1], tokens)[:, 0]


def make_layer(in_width: int, width: int, depth: int, stride: int, norm: Norm) -> nn.Sequential:
    blocks = [Bottleneck(in_width, width, stride, norm)]
    blocks += [Bottleneck(EXPANSION * width, width, 1, norm) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
