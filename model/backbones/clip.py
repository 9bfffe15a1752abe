"""The two towers of a CLIP, the sizes that make one, and the CLIPs known by name."""

import difflib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import quick_gelu
from .cpu_kernels import FrozenNorm
from .eva import RotaryTransformer
from .resnet import ModifiedResNet, Norm
from .state import STEPS
from .text import TextTransformer
from .vit import VisionTransformer

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB from 0 to 1, over CLIP's training images
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64  # in all CLIPs; files of weights do not say the number of heads


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers that fix the shape of every weight of a CLIP.

    Attributes:
        depths: one number for a ViT, four for a ResNet.
        patch: side of a patch in pixels; 0 for a ResNet.
        grid, context: cells per side and tokens that the weights were trained with. A model may be
            built for others.
        eva: the image tower is EVA-02's, and the text tower has GELU.
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
        """Pixels per cell of the coarsest map; the side of an image must be a multiple of it."""
        return self.patch if self.is_vit else 32

    @property
    def native_size(self) -> int:
        """Side in pixels of the images that the weights were trained with."""
        return self.grid * self.stride


def make_sizes(
    width: int, depths: tuple[int, ...], patch: int, grid: int, embed_dim: int, text_width: int
) -> Sizes:
    """Make the sizes of a CLIP as OpenAI's have them: 12 text blocks, MLPs four times as wide."""
    return Sizes(
        embed_dim=embed_dim,
        image_width=width,
        depths=depths,
        patch=patch,
        grid=grid,
        mlp_width=4 * width if patch else 0,
        text_width=text_width,
        text_depth=12,
        text_mlp_width=4 * text_width,
    )


BACKBONES = {
    "RN50": make_sizes(64, (3, 4, 6, 3), 0, 7, 1024, 512),
    "RN101": make_sizes(64, (3, 4, 23, 3), 0, 7, 512, 512),
    "ViT-B/32": make_sizes(768, (12,), 32, 7, 512, 512),
    "ViT-B/16": make_sizes(768, (12,), 16, 14, 512, 512),
    "ViT-L/14": make_sizes(1024, (24,), 14, 16, 768, 768),
    "EVA02-B/16": replace(make_sizes(768, (12,), 16, 14, 512, 512), mlp_width=2048, eva=True),
    "demo-vit": replace(make_sizes(128, (12,), 8, 10, 64, 64), mlp_width=384),  # a small file
    "demo-resnet": make_sizes(16, (2, 2, 2, 2), 0, 5, 64, 64),
}
FILES = {"EVA02-B/16": "EVA02_CLIP_B_psz16_s8B.pt"}  # released under another name


def file_name(name: str) -> str:
    """Return the name of a CLIP's file in ``pretrain/``: ``ViT-B/16`` -> ``ViT-B-16.pt``."""
    return FILES.get(name, f"{name.replace('/', '-')}.pt")


def sizes_of_name(name: str) -> Sizes:
    """Return the sizes of a CLIP by its name.

    Raises:
        ValueError: if no CLIP of that name is known.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"model.backbone.name: no backbone {name!r}{hint} Known: {', '.join(BACKBONES)}; "
            "or remove the name, and the sizes are read from the weights"
        )
    return BACKBONES[name]


def check_sizes_match(name: str, sizes: Sizes, source: str) -> None:
    """Check that the weights of the file ``source`` have the sizes of the CLIP called ``name``.

    Raises:
        ValueError: if they do not, naming the sizes that differ.
    """
    wanted = sizes_of_name(name)
    if sizes == wanted:
        return
    fits = [other for other, known in BACKBONES.items() if known == sizes]
    fields = [f for f in vars(wanted) if getattr(wanted, f) != getattr(sizes, f)]
    detail = ", ".join(f"{f} {getattr(sizes, f)} not {getattr(wanted, f)}" for f in fields)
    what = f"is a {fits[0]}" if fits else "has other sizes"
    raise ValueError(
        f"{source}: model.backbone.name says {name}, but the file {what} ({detail}); "
        "correct the name or the path, or remove the name"
    )


class CLIP(nn.Module):
    """An image tower ``visual`` and a text tower ``text`` that run in step.

    A tower has ``embed(input) -> state``, ``run(step, state) -> state`` and ``head(state)``.

    Args:
        image_size: side of the input in pixels, a multiple of ``sizes.stride``.
        max_tokens: positions of the text tower, start and end tokens included.
        norm: makes the normalization layers of a ResNet; frozen ones by default.

    Attributes:
        frozen: keys of the state that never change, once :meth:`freeze` was called.
        tuned: names of CLIP's own parameters that train, once :meth:`tune` was called.

    Raises:
        ValueError: if the sizes do not allow this input or 12 steps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sizes: Sizes, *, image_size: int, max_tokens: int, norm: Norm = FrozenNorm):
        super().__init__()
        check_input(sizes, image_size, max_tokens)
        self.sizes, self.image_size = sizes, image_size
        self.visual = make_image_tower(sizes, image_size // sizes.stride, norm)
        self.text = TextTransformer(
            width=sizes.text_width,
            depth=sizes.text_depth,
            heads=sizes.text_width // HEAD_WIDTH,
            mlp_width=sizes.text_mlp_width,
            vocab=sizes.vocab,
            context=max_tokens,
            embed_dim=sizes.embed_dim,
            activation=F.gelu if sizes.eva else quick_gelu,
        )
        self.frozen: frozenset[str] = frozenset()
        self.tuned: frozenset[str] = frozenset()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        """Normalize RGB ``(B, 3, H, W)`` from 0 to 255 of any type: ``(x / 255 - mean) / std``."""
        return (image.float() / 255 - self.mean) / self.std

    def freeze(self, *, train_positions: bool = False) -> None:
        """Freeze all that is here; call it before anything is attached, which then trains.

        ``train_positions`` lets the positions of both towers train, as in the released code of
        ETRIS. The statistics of a ``nn.BatchNorm2d`` change in training and so are not frozen;
        those of the default norm never change.
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
        """Let all that is here train, at a learning rate of its own; call in place of ``freeze``.

        Every tensor gets a gradient: the only weight of a CLIP that no mask depends on, the
        temperature of its loss, is never loaded.
        """
        self.tuned = frozenset(name for name, _ in self.named_parameters())

    def embed_image(self, image: Tensor) -> Tensor:
        """Compute CLIP's own embedding of normalized images ``(B, 3, S, S) -> (B, embed_dim)``."""
        state = self.visual.embed(image)
        for step in range(STEPS):
            state = self.visual.run(step, state)
        return self.visual.pool(state)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Compute CLIP's own embedding of sentences ``(B, L) -> (B, embed_dim)``."""
        state = self.text.embed(ids)
        for step in range(STEPS):
            state = self.text.run(step, state)
        return self.text.head(state, ids)[1]


def make_image_tower(sizes: Sizes, grid: int, norm: Norm) -> VisionTransformer | ModifiedResNet:
    """Make the tower that ``sizes`` describes; a ViT's positions are for ``grid`` x ``grid``."""
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


def check_input(sizes: Sizes, image_size: int, max_tokens: int) -> None:
    """Check that a CLIP of these sizes takes such input.

    Raises:
        ValueError: if it does not, with a value that does.
    """
    if image_size <= 0 or image_size % sizes.stride:
        what = f"patch size {sizes.patch}" if sizes.is_vit else "stride 32 of the ResNet"
        near = max(1, round(image_size / sizes.stride)) * sizes.stride
        raise ValueError(
            f"image_size {image_size} is no multiple of the {what}; use {near}, for example"
        )
    if not 2 < max_tokens <= sizes.context:
        raise ValueError(
            f"max_words {max_tokens} does not fit the text tower; choose 3 to {sizes.context} "
            "(start and end tokens included)"
        )
    for depth in (sizes.text_depth, *(sizes.depths if sizes.is_vit else ())):
        if depth % STEPS:
            raise ValueError(
                f"a transformer of {depth} blocks cannot run in {STEPS} steps; "
                f"its depth must be a multiple of {STEPS}"
            )
