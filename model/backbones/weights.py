"""From a file of CLIP weights to a :class:`CLIP`: reading, sizes, names, positions."""

import hashlib
import math
import pickle
import re
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import resize_positions
from .clip import CLIP, Sizes
from .eva_names import from_eva, is_eva
from .files import BACKBONES, file_name
from .names import State, from_openai

# Where a ViT's state tells its sizes: patches, positions, blocks and, in these, the wide Linear.
VIT_KEYS = {
    False: (
        "visual.conv1.weight",
        "visual.positional_embedding",
        "visual.transformer.resblocks",
        "mlp.c_fc",
    ),
    True: ("visual.patch_embed.weight", "visual.positions", "visual.blocks", "mlp.branch.fc1"),
}


def sizes_of_state(state: State) -> Sizes:
    """Sizes of a CLIP by its weights as :func:`read_weights` gives them."""
    blocks = "transformer.resblocks"
    common: dict[str, Any] = {
        "embed_dim": state["text_projection"].shape[1],
        "text_width": state["text_projection"].shape[0],
        "text_depth": count(state, rf"{blocks}\.(\d+)\."),
        "text_mlp_width": state[f"{blocks}.0.mlp.c_fc.weight"].shape[0],
        "context": state["positional_embedding"].shape[0],
        "vocab": state["token_embedding.weight"].shape[0],
    }
    for eva, (patches, positions, image_blocks, mlp) in VIT_KEYS.items():
        if patches in state and positions in state:
            return Sizes(
                image_width=state[patches].shape[0],
                depths=(count(state, rf"{image_blocks}\.(\d+)\."),),
                patch=state[patches].shape[-1],
                grid=math.isqrt(state[positions].shape[0] - 1),
                mlp_width=state[f"{image_blocks}.0.{mlp}.weight"].shape[0],
                eva=eva,
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
    """Put weights as read into ``clip``, positions made to fit its grid and sentences.

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


IMAGE_POSITIONS = {  # of a ViT, a ResNet, an EVA-02
    "visual.positional_embedding",
    "visual.attnpool.positional_embedding",
    "visual.positions",
}


def read_weights(path: str | Path) -> State:
    """Read a CLIP: a TorchScript archive, a state dict or a safetensors file.

    What comes is in OpenAI's layout, but for an EVA-02's image tower, which has our names.

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
    if is_eva(state):
        try:
            state = from_eva(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if "text_projection" not in state or not IMAGE_POSITIONS & state.keys():
        raise ValueError(
            f"{path}: not a CLIP in OpenAI's layout or EVA-02's (no text_projection or visual.*)"
        )
    return state


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
    for key in ("state_dict", "model", "module"):
        content = content[key] if isinstance(content.get(key), dict) else content
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a CLIP; holds more than tensors")
    return content


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; each version of it is read once."""
    path = Path(path).resolve()
    state = path.stat()
    return _sha256_of_version(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256_of_version(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
