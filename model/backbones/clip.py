"""The two towers of a CLIP and the sizes that make one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import STEPS, quick_gelu
from .eva import RotaryTransformer
from .norm import FrozenNorm
from .resnet import ModifiedResNet, Norm
from .text import TextTransformer
from .vit import VisionTransformer

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in 0..1, over CLIP's training images
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64  # checkpoints don't hold the number of heads; OpenAI's and EVA's use this width


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What fixes the shape of every weight of a CLIP.

    ``depths`` has one number for a ViT and four for a ResNet; ``patch`` is 0 for a ResNet.
    ``grid`` and ``context`` are what the weights were trained with; a model may be built for
    others.  ``eva`` stands for EVA-02's image tower, and GELU in the text tower.
    """

    embed_dim: int
    image_width: int
    depths: tuple[int, ...]
    patch: int
    grid: int
    mlp_width: int
    text_width: int
    text_depth: int
    text_mlp_width: int
    context: int = 77
    vocab: int = 49408
    eva: bool = False

    @property
    def is_vit(self) -> bool:
        return self.patch > 0

    @property
    def stride(self) -> int:
        """Pixels per cell of the coarsest map; an image side must be a multiple of it."""
        return self.patch if self.is_vit else 32

    @property
    def native_size(self) -> int:
        """Side in pixels of the images that the weights were trained with."""
        return self.grid * self.stride


class CLIP(nn.Module):
    """Two towers that run in step, each with ``embed``, ``run`` and ``head``.

    Args:
        image_size: side of the input in pixels, a multiple of ``sizes.stride``.
        max_words: positions of the text tower, start and end tokens included.
        norm: normalisation of a ResNet; by default frozen.

    Raises:
        ValueError: if the sizes cannot be run so.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        image_size: int,
        max_words: int,
        norm: Norm = FrozenNorm,
    ):
        super().__init__()
        check(sizes, image_size, max_words)
        self.sizes, self.image_size = sizes, image_size
        self.visual = make_image_tower(sizes, image_size // sizes.stride, norm)
        self.text = TextTransformer(
            width=sizes.text_width,
            depth=sizes.text_depth,
            heads=sizes.text_width // HEAD_WIDTH,
            mlp_width=sizes.text_mlp_width,
            vocab=sizes.vocab,
            context=max_words,
            embed_dim=sizes.embed_dim,
            activation=F.gelu if sizes.eva else quick_gelu,
        )
        self.frozen: frozenset[str] = frozenset()
        self.tuned: frozenset[str] = frozenset()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        """RGB ``(B, 3, H, W)`` in 0..255, any dtype -> CLIP's input, ``(x / 255 - mean) / std``."""
        return (image.float() / 255 - self.mean) / self.std

    def freeze(self, *, train_positions: bool = False) -> None:
        """Call before anything is attached: what is here now is frozen, what comes later trains.

        ``train_positions`` leaves the positional embeddings of both towers out, as the released
        ETRIS code does.  The statistics of a ``nn.BatchNorm2d`` move in training and so count as
        not frozen; those of the default ``FrozenNorm`` never move.
        """
        self.requires_grad_(False)
        moving = set()
        if train_positions:
            for tower in ("visual", "text"):
                getattr(self, tower).positions.requires_grad_(True)
                moving.add(f"{tower}.positions")
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                moving |= {f"{name}.{key}" for key, _ in module.named_buffers()}
        self.frozen = frozenset(self.state_dict()) - moving

    def tune(self) -> None:
        """Call in place of :meth:`freeze`: what is here now trains too, at a rate of its own.

        All of it acts on a mask, so that every tensor gets a gradient.  Of CLIP's own weights only
        the temperature of its loss does not, and that is never loaded.
        """
        self.tuned = frozenset(name for name, _ in self.named_parameters())

    def embed_image(self, image: Tensor) -> Tensor:
        """CLIP's own embedding of normalised images ``(B, 3, S, S) -> (B, embed_dim)``."""
        hidden = self.visual.embed(image)
        for step in range(STEPS):
            hidden = self.visual.run(step, hidden)
        return self.visual.pool(hidden)

    def embed_text(self, ids: Tensor) -> Tensor:
        """CLIP's own embedding of sentences ``(B, L) -> (B, embed_dim)``."""
        hidden = self.text.embed(ids)
        for step in range(STEPS):
            hidden = self.text.run(step, hidden)
        return self.text.head(hidden, ids)[1]


def make_image_tower(sizes: Sizes, grid: int, norm: Norm) -> VisionTransformer | ModifiedResNet:
    """The tower of the kind that ``sizes`` names; a ViT's positions are for ``grid`` x ``grid``."""
    if not sizes.is_vit:
        return ModifiedResNet(
            width=sizes.image_width,
            depths=sizes.depths,
            heads=sizes.image_width * 32 // HEAD_WIDTH,
            grid=sizes.grid,
            embed_dim=sizes.embed_dim,
            norm=norm,
        )
    tower = RotaryTransformer if sizes.eva else VisionTransformer
    return tower(
        width=sizes.image_width,
        depth=sizes.depths[0],
        heads=sizes.image_width // HEAD_WIDTH,
        mlp_width=sizes.mlp_width,
        patch=sizes.patch,
        grid=grid,
        embed_dim=sizes.embed_dim,
    )


def check(sizes: Sizes, image_size: int, max_words: int) -> None:
    if image_size <= 0 or image_size % sizes.stride:
        what = f"patch size {sizes.patch}" if sizes.is_vit else "stride 32 of the ResNet"
        near = max(1, round(image_size / sizes.stride)) * sizes.stride
        raise ValueError(
            f"image_size {image_size} is no multiple of the {what}; use {near}, for example"
        )
    if not 2 < max_words <= sizes.context:
        raise ValueError(
            f"max_words {max_words} does not fit the text tower; choose 3 to {sizes.context} "
            "(start and end tokens included)"
        )
    for depth in (sizes.text_depth, *(sizes.depths if sizes.is_vit else ())):
        if depth % STEPS:
            raise ValueError(
                f"a transformer of {depth} blocks cannot run in {STEPS} steps; "
                f"its depth must be a multiple of {STEPS}"
            )
