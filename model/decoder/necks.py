"""Necks: from three maps of an image tower and the sentence to the one map that is decoded.

Their sizes are those of the released code of ETRIS and CRIS.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.backbones.attention import initialize_projection
from model.backbones.blocks import zoom
from model.backbones.clip import CLIP


def make_neck(
    name: str, clip: CLIP, *, grid: int, dim: int, project_sentence: bool = False
) -> nn.Module:
    """Make the neck called ``aligned`` (ETRIS), ``fpn`` (CRIS) or ``plain``.

    Each takes three maps and the sentence ``(B, E)`` and returns a map ``(B, dim, H, W)``.

    Raises:
        ValueError: if no neck has that name.
    """
    if name == "aligned":
        return AlignedNeck(clip, grid=grid, dim=dim, project_sentence=project_sentence)
    if name == "fpn":
        return PyramidNeck(clip, grid=grid, dim=dim)
    if name == "plain":
        return PlainNeck(clip, dim=dim)
    raise ValueError(f"model.decoder: no neck {name!r}; known: aligned, fpn, plain")


class FusingNeck(nn.Module):
    """The end of the necks of ETRIS (eq. 6-7) and CRIS: maps of one grid and coordinates, fused."""

    coordinates: Tensor  # (1, 2, grid, grid)

    def _add_fusion(self, num_levels: int, *, grid: int, dim: int) -> None:
        """Add the layers; call it last, since seeds and stored states have this order."""
        self.fuse = norm_relu(nn.Conv2d(num_levels * dim, dim, 1, bias=False), dim)
        self.locate = norm_relu(nn.Conv2d(dim + 2, dim, 3, padding=1, bias=False), dim)
        self.refine = norm_relu(nn.Conv2d(dim, dim, 3, padding=1, bias=False), dim)
        self.register_buffer("coordinates", coordinates(grid), persistent=False)

    def _fuse(self, levels: Sequence[Tensor]) -> Tensor:
        """Compute ``refine(locate([fuse(levels), x, y]))``; all maps are ``(B, dim, H, W)``."""
        x = self.fuse(torch.cat([*levels], dim=1))
        place = self.coordinates.to(x.dtype).expand(len(x), -1, -1, -1)
        return self.refine(self.locate(torch.cat([x, place], dim=1)))


class AlignedNeck(FusingNeck):
    """Hierarchical alignment (ETRIS, eq. 6-7): maps on one grid, gated by the sentence, fused.

    In the published module every cell attends to one token, the sentence. A softmax over one key is
    1, so its query and key weights never act, and the gate ``x * out(value(sentence))`` remains.
    """

    def __init__(self, clip: CLIP, *, grid: int, dim: int, project_sentence: bool):
        super().__init__()
        visual = clip.visual
        widths = (*visual.widths[:-1], visual.embed_dim)
        ratios = [stride / visual.strides[1] for stride in visual.strides]
        self.project: nn.Module = nn.Identity()
        if project_sentence or visual.embed_dim != dim:
            self.project = nn.Linear(visual.embed_dim, dim)
        self.levels = nn.ModuleList(
            norm_relu(zoom(width, dim, ratio), dim)
            for width, ratio in zip(widths, ratios, strict=True)
        )
        self.gates = nn.ModuleList(make_gate(dim) for _ in widths)
        self._add_fusion(len(widths), grid=grid, dim=dim)

    def forward(self, maps: tuple[Tensor, ...], sentence: Tensor) -> Tensor:
        sentence = self.project(sentence)
        return self._fuse(
            [
                level(x) * gate(sentence)[:, :, None, None]
                for level, gate, x in zip(self.levels, self.gates, maps, strict=True)
            ]
        )


def make_gate(dim: int) -> nn.Sequential:
    """Make ``out(value(x))`` of an attention, initialized as there."""
    value, out = nn.Linear(dim, dim), nn.Linear(dim, dim)
    initialize_projection(value.weight)
    nn.init.zeros_(value.bias)
    nn.init.zeros_(out.bias)
    return nn.Sequential(value, out)


class PyramidNeck(FusingNeck):
    """The neck of CRIS (Wang et al., CVPR 2022, section 3.1): a pyramid from the last map down.

    ``top = relu(norm(conv(x_3) * project(sentence)))``, ``middle = conv([conv(x_2), top])``,
    ``fine = conv([conv(x_1), middle])``, and the three are fused; each conv has a norm and ReLU.
    The norm after the product and the 3 x 3 convolutions before the fusion come from the released
    code; the paper's equations do not have them.
    """

    def __init__(self, clip: CLIP, *, grid: int, dim: int):
        super().__init__()
        visual = clip.visual
        embed_dim, (fine_width, middle_width, _) = visual.embed_dim, visual.widths
        fine_dim, top_dim = dim // 2, 2 * dim
        self.project = nn.Sequential(
            nn.Linear(embed_dim, top_dim, bias=False), nn.BatchNorm1d(top_dim), nn.ReLU()
        )
        self.levels = nn.ModuleList(
            [
                norm_relu(nn.Conv2d(fine_width, fine_dim, 3, padding=1, bias=False), fine_dim),
                norm_relu(nn.Conv2d(middle_width, dim, 3, padding=1, bias=False), dim),
                norm_relu(nn.Conv2d(embed_dim, top_dim, 1, bias=False), top_dim),
            ]
        )
        self.gate_norm = nn.Sequential(nn.BatchNorm2d(top_dim), nn.ReLU())
        self.join_middle = norm_relu(nn.Conv2d(dim + top_dim, dim, 1, bias=False), dim)
        self.join_fine = norm_relu(nn.Conv2d(fine_dim + dim, dim, 1, bias=False), dim)
        self.smooth = nn.ModuleList(
            norm_relu(nn.Conv2d(width, dim, 3, padding=1, bias=False), dim)
            for width in (dim, dim, top_dim)
        )
        self.shrink = rescale(visual.strides[0] / visual.strides[1])
        self.enlarge = rescale(visual.strides[2] / visual.strides[1])
        self._add_fusion(3, grid=grid, dim=dim)

    def forward(self, maps: tuple[Tensor, ...], sentence: Tensor) -> Tensor:
        fine, middle, top = (level(x) for level, x in zip(self.levels, maps, strict=True))
        top = self.gate_norm(top * self.project(sentence)[:, :, None, None])  # (B, 2 dim, h, w)
        middle = self.join_middle(torch.cat([middle, self.enlarge(top)], dim=1))  # (B, dim, H, W)
        fine = self.join_fine(torch.cat([self.shrink(fine), middle], dim=1))  # (B, dim, H, W)
        fine, middle, top = (
            smooth(x) for smooth, x in zip(self.smooth, (fine, middle, top), strict=True)
        )
        return self._fuse([fine, middle, self.enlarge(top)])


class PlainNeck(nn.Module):
    """No hierarchical alignment (ETRIS, table 6): ``relu(norm(zoom(x)))`` of the last map alone.

    The paper does not say what replaces the alignment. Here it is the least that the transformer
    can read: no earlier map, no sentence, no coordinates.
    """

    def __init__(self, clip: CLIP, *, dim: int):
        super().__init__()
        visual = clip.visual
        ratio = visual.strides[-1] / visual.strides[1]
        self.level = norm_relu(zoom(visual.embed_dim, dim, ratio), dim)

    def forward(self, maps: tuple[Tensor, ...], sentence: Tensor) -> Tensor:
        return self.level(maps[-1])


def norm_relu(convolution: nn.Module, channels: int) -> nn.Sequential:
    """Make a convolution followed by batch norm and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def rescale(ratio: float) -> nn.Module:
    """Make the layer without weights that makes a grid ``ratio`` times as fine.

    Above 1: bilinear interpolation; below: the mean; 1: the identity.
    """
    if ratio > 1:
        return nn.Upsample(scale_factor=ratio, mode="bilinear", align_corners=False)
    return nn.AvgPool2d(round(1 / ratio)) if ratio < 1 else nn.Identity()


def coordinates(grid: int) -> Tensor:
    """Make x and y of every cell, from -1 to 1: ``(1, 2, grid, grid)``."""
    line = torch.linspace(-1, 1, grid)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y])[None]
