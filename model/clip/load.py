"""From a file of CLIP weights to a :class:`CLIP`: reading, sizes, names, positions."""

import difflib
import hashlib
import math
import pickle
import re
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import CLIP, Sizes
from .names import State, from_openai


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
    "demo-vit": replace(vit(128, 12, 8, 10, 64, 64), mlp_width=384),  # keeps the file small
    "demo-resnet": resnet(16, (2, 2, 2, 2), 5, 64, 64),
}


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


def sizes_of_state(state: State) -> Sizes:
    """Sizes of a CLIP by its weights in OpenAI's layout."""
    blocks = "transformer.resblocks"
    common = {
        "embed_dim": state["text_projection"].shape[1],
        "text_width": state["text_projection"].shape[0],
        "text_depth": count(state, rf"{blocks}\.(\d+)\."),
        "text_mlp_width": state[f"{blocks}.0.mlp.c_fc.weight"].shape[0],
        "context": state["positional_embedding"].shape[0],
        "vocab": state["token_embedding.weight"].shape[0],
    }
    if "visual.proj" in state:
        patch_embed = state["visual.conv1.weight"]
        return Sizes(
            image_width=patch_embed.shape[0],
            depths=(count(state, rf"visual\.{blocks}\.(\d+)\."),),
            patch=patch_embed.shape[-1],
            grid=math.isqrt(state["visual.positional_embedding"].shape[0] - 1),
            mlp_width=state[f"visual.{blocks}.0.mlp.c_fc.weight"].shape[0],
            **common,
        )
    return Sizes(
        image_width=state["visual.layer1.0.conv1.weight"].shape[0],
        depths=tuple(count(state, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)),
        patch=0,
        grid=math.isqrt(state["visual.attnpool.positional_embedding"].shape[0] - 1),
        mlp_width=0,
        **common,
    )


def count(state: State, pattern: str) -> int:
    """How many different numbers the group of ``pattern`` takes at the start of a key."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def load_weights(clip: CLIP, state: State, source: str) -> None:
    """Put weights in OpenAI's layout into ``clip``, positions made to fit its grid and sentences.

    Raises:
        ValueError: if a weight is missing, left over or of another shape.
    """
    grid = math.isqrt(clip.visual.positions.shape[0] - 1)
    ours = from_openai(state)
    ours["visual.positions"] = resize_positions(ours["visual.positions"], grid)
    ours["text.positions"] = ours["text.positions"][: clip.text.positions.shape[0]].clone()
    wanted = clip.state_dict()
    for key, value in wanted.items():
        if key.endswith(".num_batches_tracked"):
            ours.setdefault(key, torch.zeros_like(value))
    ours = {k: v for k, v in ours.items() if k in wanted or not k.endswith("num_batches_tracked")}
    differ = sorted(wanted.keys() ^ ours.keys())
    differ += [key for key in wanted if key in ours and wanted[key].shape != ours[key].shape]
    if differ:
        raise ValueError(
            f"{source}: not the CLIP that was asked for; {len(differ)} weights are missing, left "
            f"over or of another shape: {', '.join(differ[:5])}{', …' if len(differ) > 5 else ''}"
        )
    clip.load_state_dict(ours)


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Positions ``(1 + G G, C)`` of a class token and a square grid -> ``(1 + grid grid, C)``.

    Bicubic, ``align_corners=False``, no antialias, as every CLIP-RIS code; equal sizes are left as
    they are, bit by bit.
    """
    native = math.isqrt(positions.shape[0] - 1)
    if native == grid:
        return positions
    square = positions[1:].T.unflatten(1, (native, native))[None]  # (1, C, G, G)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], square[0].flatten(1).T])


def read_weights(path: str | Path) -> State:
    """Read a CLIP in OpenAI's layout: a TorchScript archive, a state dict or a safetensors file.

    No code of the file is unpickled: TorchScript archives are read by ``torch.jit.load``, all
    others with ``weights_only=True``.

    Raises:
        ValueError: if the file is missing or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        known = {file_name(name): name for name in BACKBONES if not name.startswith("demo-")}
        name = known.get(path.name)
        way = f"python tools/download_weights.py {name}" if name else "see pretrain/README.md"
        raise ValueError(f"{path}: no such file of CLIP weights; to get it: {way}")
    state = read_tensors(path)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith(("encoder.", "decoder.", "backbone.", "neck.")) for key in state):
        raise ValueError(
            f"{path}: a checkpoint of a segmentation model, not the CLIP under it; give it as "
            "--checkpoint and the CLIP weights as model.backbone.weights"
        )
    vit_key, resnet_key = "visual.proj", "visual.attnpool.positional_embedding"
    if "text_projection" not in state or not (vit_key in state or resnet_key in state):
        raise ValueError(f"{path}: not a CLIP in OpenAI's layout (no text_projection or visual.*)")
    return state


def file_name(name: str) -> str:
    """What a backbone's weights are called in ``pretrain/``: ``ViT-B/16`` -> ``ViT-B-16.pt``."""
    return f"{name.replace('/', '-')}.pt"


def read_tensors(path: Path) -> State:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
    try:
        if is_torchscript(path):
            with warnings.catch_warnings():  # torch advises another format, which OpenAI lacks
                warnings.simplefilter("ignore", FutureWarning)
                return dict(torch.jit.load(path, map_location="cpu").state_dict())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: not a file of weights that can be read ({reason})") from error
    if isinstance(content, nn.Module) or not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    content = content.get("state_dict", content)
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a CLIP; holds more than tensors")
    return content


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
