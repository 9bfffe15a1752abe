"""Bridger: the two frozen towers exchange features after each stage (ETRIS, ICCV 2023, 3.2)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from model.backbones.attention import Attention
from model.backbones.clip import CLIP
from model.backbones.cpu_kernels import Dropout
from model.backbones.state import STAGE_ENDS, TowerState, to_map, to_tokens

from .zoom import ZOOMS, grids


class Carry(NamedTuple):
    """What a stage gives to the next one: the inputs of its interactors, and its own number."""

    image: Tensor  # (B, HW, dim)
    words: Tensor  # (B, L, dim)
    position: int


class Bridger(nn.Module):
    """Reduce both streams after each chosen stage, let them attend to each other, and add back.

    ``x_v += zoom_out(f_v)`` and ``x_t += linear(f_t)`` with ``f = interactor(zoom_in(x) + carry)``
    (eq. 1-5). The modules are those of the released code, which give the published sizes. That code
    differs from the paper in three points: the carry is the input of the last interactor, not its
    output (eq. 2); cross-attention reads the other stream before that stream's self-attention (eq.
    5); and the interactor of a ViT is only :class:`Gate`.

    Args:
        clip: the towers; they give the sizes.
        dim: width of the interaction.
        heads: of its attention.
        stages: which of the three stages, for example ``[0, 2]`` (table 4).
        dropout: in the interactors of a ResNet.
        zoom: what resizes the image map: ``deconv`` as published, or ``interpolate``, ``linear``,
            ``mlp`` (table 5). The last two fit only one image size.

    Raises:
        ValueError: if ``stages`` or ``zoom`` is out of range, or ``heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        dim: int = 64,
        heads: int = 8,
        stages: Sequence[int] = (0, 1, 2),
        dropout: float = 0.1,
        zoom: str = "deconv",
    ):
        super().__init__()
        if not stages or sorted(set(stages)) != list(stages) or not set(stages) <= {0, 1, 2}:
            raise ValueError(
                f"bridger: stages {list(stages)} must be some of 0, 1, 2 in ascending order"
            )
        if dim % heads:
            raise ValueError(f"bridger: dim {dim} cannot be split into {heads} heads")
        if zoom not in ZOOMS:
            raise ValueError(f"bridger: zoom {zoom!r} must be one of {', '.join(ZOOMS)}")
        self.positions = {STAGE_ENDS[stage]: position for position, stage in enumerate(stages)}
        self.image_step = STAGE_ENDS[stages[0]]
        last = stages[-1]
        self.stages = nn.ModuleList(
            Stage(clip, stage, dim=dim, heads=heads, dropout=dropout, zoom=zoom, last=stage == last)
            for stage in stages
        )

    def before_blocks(self, image: TowerState, text: TowerState) -> tuple[TowerState, TowerState]:
        """Change nothing: there is no stage yet."""
        return image, text

    def after_step(
        self, step: int, image: TowerState, text: TowerState, carry: Carry | None
    ) -> tuple[TowerState, TowerState, Carry | None]:
        """Let the streams interact, if a chosen stage ends with this step."""
        if step not in self.positions:
            return image, text, carry
        position = self.positions[step]
        stage = self.stage(position)
        image_map, words = stage.zoom_in(image.x), stage.text_in(text.x)
        grid = image_map.shape[2:]
        patches = to_tokens(image_map)  # (B, hw, dim)
        if carry is not None:
            patches, words = self.stage(carry.position).merge(patches, words, carry)
        image_change, text_change = stage(patches, words, grid)
        image = image._replace(x=image.x + image_change)
        text = text._replace(x=text.x + text_change)
        return image, text, Carry(patches, words, position)

    def stage(self, position: int) -> "Stage":
        """Return the module of one of the chosen stages."""
        stage = self.stages[position]
        assert isinstance(stage, Stage)
        return stage


class Stage(nn.Module):
    """The Bridger of one stage; all but the last also normalize the next stage's input."""

    def __init__(
        self, clip: CLIP, stage: int, *, dim: int, heads: int, dropout: float, zoom: str, last: bool
    ):
        super().__init__()
        width, is_vit = clip.visual.widths[stage], clip.sizes.is_vit
        cells, make = grids(clip), ZOOMS[zoom]
        grid, middle = cells[stage], cells[1]  # all stages interact on the grid of the middle one
        self.zoom_in = with_norm(make(width, dim, grid, middle), dim, is_vit)
        self.zoom_out = with_norm(make(dim, width, middle, grid), width, is_vit)
        self.text_in = nn.Linear(clip.text.width, dim)
        self.text_out = nn.Linear(dim, clip.text.width)
        self.image_interactor, self.text_interactor = (
            Gate(dim, heads) if is_vit else Interactor(dim, heads, dropout=dropout)
            for _ in range(2)
        )
        if not last:
            self.image_norm, self.text_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        initialize(self)
        is_last_stage = stage == len(STAGE_ENDS) - 1
        initialize_zoom(self.zoom_in, is_transposed=is_last_stage)
        initialize_zoom(self.zoom_out, is_transposed=not is_last_stage)

    def merge(self, patches: Tensor, words: Tensor, carry: Carry) -> tuple[Tensor, Tensor]:
        """Add this stage's carry to the next one's patches (B, hw, dim) and words (B, L, dim)."""
        return self.image_norm(patches + carry.image), self.text_norm(words + carry.words)

    def forward(
        self, patches: Tensor, words: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Patches (B, hw, dim), words (B, L, dim) -> changes of image map and words."""
        image = self.image_interactor(patches, words)  # (B, hw, dim)
        text = self.text_interactor(words, patches)  # (B, L, dim)
        return self.zoom_out(to_map(image, grid)), self.text_out(text)


class Gate(nn.Module):
    """The interactor of a ViT: ``x * attention(x, memory)``."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention = Attention(dim, heads)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return x * self.attention(x, memory)


class Interactor(nn.Module):
    """The interactor of a ResNet: self-attention, cross-attention, feed-forward; all post-norm."""

    def __init__(self, dim: int, heads: int, *, dropout: float, feedforward: int = 128):
        super().__init__()
        self.self_attention = Attention(dim, heads, dropout=dropout)
        self.cross_attention = Attention(dim, heads, dropout=dropout)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, feedforward), nn.ReLU(), Dropout(dropout), nn.Linear(feedforward, dim)
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attention(x)))
        x = self.norm2(x + self.dropout(self.cross_attention(x, memory)))
        return self.norm3(x + self.dropout(self.feedforward(x)))


def with_norm(zoom: nn.Module, channels: int, norm: bool) -> nn.Module:
    """Add BatchNorm and ReLU to a zoom layer, if ``norm``: in a ViT, not in a ResNet."""
    if not norm:
        return zoom
    return nn.Sequential(zoom, nn.BatchNorm2d(channels), nn.ReLU())


def initialize(module: nn.Module) -> None:
    """Initialize as released: normal (0.02) in all Linears but an attention's q, k and v."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and not name.endswith(("q_proj", "k_proj", "v_proj")):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)


def initialize_zoom(module: nn.Module, *, is_transposed: bool) -> None:
    """Initialize zoom convolutions as released: Kaiming normal over ``shape[0]`` of the weight.

    Args:
        is_transposed: whether the released code has a transposed convolution here. It also has one
            where the grids are equal, and a plain one does the same.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            if is_transposed and isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
