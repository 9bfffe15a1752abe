"""The CLIPs that are known by name: their sizes, and the files of their weights."""

import difflib
from dataclasses import replace

from .clip import Sizes


def vit(width: int, depth: int, patch: int, grid: int, embed_dim: int, text_width: int) -> Sizes:
    return Sizes(
        embed_dim=embed_dim,
        image_width=width,
        depths=(depth,),
        patch=patch,
        grid=grid,
        mlp_width=4 * width,
        text_width=text_width,
        text_depth=12,
        text_mlp_width=4 * text_width,
    )


def resnet(
    width: int, depths: tuple[int, ...], grid: int, embed_dim: int, text_width: int
) -> Sizes:
    return Sizes(
        embed_dim=embed_dim,
        image_width=width,
        depths=depths,
        patch=0,
        grid=grid,
        mlp_width=0,
        text_width=text_width,
        text_depth=12,
        text_mlp_width=4 * text_width,
    )


BACKBONES = {
    "RN50": resnet(64, (3, 4, 6, 3), 7, 1024, 512),
    "RN101": resnet(64, (3, 4, 23, 3), 7, 512, 512),
    "ViT-B/32": vit(768, 12, 32, 7, 512, 512),
    "ViT-B/16": vit(768, 12, 16, 14, 512, 512),
    "ViT-L/14": vit(1024, 24, 14, 16, 768, 768),
    "EVA02-B/16": replace(vit(768, 12, 16, 14, 512, 512), mlp_width=2048, eva=True),
    "demo-vit": replace(vit(128, 12, 8, 10, 64, 64), mlp_width=384),  # keeps the file small
    "demo-resnet": resnet(16, (2, 2, 2, 2), 5, 64, 64),
}

FILES = {"EVA02-B/16": "EVA02_CLIP_B_psz16_s8B.pt"}  # published under another name


def sizes_of_name(name: str) -> Sizes:
    """Sizes of a CLIP by its name.

    Raises:
        ValueError: if no CLIP of that name is known.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"model.backbone.name: no backbone {name!r}{hint} Known: {', '.join(BACKBONES)}; "
            "leave the name out to read the sizes off the weights"
        )
    return BACKBONES[name]


def file_name(name: str) -> str:
    """What a backbone's weights are called in ``pretrain/``: ``ViT-B/16`` -> ``ViT-B-16.pt``."""
    return FILES.get(name, f"{name.replace('/', '-')}.pt")


def agree(name: str, sizes: Sizes, source: str) -> None:
    """Raise a ``ValueError`` unless the weights of ``source`` have the sizes ``name`` promises."""
    wanted = sizes_of_name(name)
    if sizes == wanted:
        return
    fits = [other for other, known in BACKBONES.items() if known == sizes]
    fields = [f for f in vars(wanted) if getattr(wanted, f) != getattr(sizes, f)]
    detail = ", ".join(f"{f} {getattr(sizes, f)} not {getattr(wanted, f)}" for f in fields)
    what = f"is a {fits[0]}" if fits else "is of other sizes"
    raise ValueError(
        f"{source}: model.backbone.name says {name}, but the file {what} ({detail}); "
        "correct the name or the path, or leave the name out"
    )
