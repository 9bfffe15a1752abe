"""Read a file of CLIP weights, rename its tensors to ours, and load them into a CLIP.

OpenAI's layout is read for all CLIPs. EVA-02 has two layouts of its own: EVA-CLIP's
(``visual.blocks.0.attn.q_bias``) and open_clip's on timm's tower
(``visual.trunk.blocks.0.attn.q_proj.bias``).
"""

import hashlib
import math
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import resize_positions
from .clip import BACKBONES, CLIP, Sizes, file_name
from .resnet import ModifiedResNet
from .torchscript import is_torchscript, read_torchscript

State = dict[str, Tensor]
PROJECT = Path(__file__).resolve().parents[2]

# OpenAI's names on the left, ours on the right.
OPENAI_BLOCK = {
    "ln_1": "attention.norm",
    "attn.out_proj": "attention.branch.out_proj",
    "ln_2": "mlp.norm",
    "mlp.c_fc": "mlp.branch.fc1",
    "mlp.c_proj": "mlp.branch.fc2",
}
OPENAI_WHOLE = {
    "visual.class_embedding": "visual.class_token",
    "visual.positional_embedding": "visual.positions",
    "visual.proj": "visual.proj.weight",
    "visual.ln_pre.weight": "visual.norm_pre.weight",
    "visual.ln_pre.bias": "visual.norm_pre.bias",
    "visual.ln_post.weight": "visual.norm_post.weight",
    "visual.ln_post.bias": "visual.norm_post.bias",
    "visual.attnpool.positional_embedding": "visual.positions",
    "visual.attnpool.c_proj.weight": "visual.attnpool.out_proj.weight",
    "visual.attnpool.c_proj.bias": "visual.attnpool.out_proj.bias",
    "positional_embedding": "text.positions",
    "text_projection": "text.proj.weight",
    "token_embedding.weight": "text.token_embed.weight",
    "ln_final.weight": "text.norm_post.weight",
    "ln_final.bias": "text.norm_post.bias",
}
TRANSPOSED = {"visual.proj", "text_projection"}  # stored as (in, out); a Linear has (out, in)
DROPPED = {"logit_scale", "input_resolution", "context_length", "vocab_size"}

# EVA-CLIP's and timm's names on the left, ours on the right; all without ``visual.``.
EVA_WHOLE = {
    "cls_token": "class_token",
    "pos_embed": "positions",
    "patch_embed.proj.weight": "patch_embed.weight",
    "patch_embed.proj.bias": "patch_embed.bias",
    "norm.weight": "norm_post.weight",
    "norm.bias": "norm_post.bias",
    "head.weight": "proj.weight",
    "head.bias": "proj.bias",
}
EVA_BLOCK = {
    "norm1": "attention.norm",
    "attn.q_proj": "attention.branch.q_proj",
    "attn.k_proj": "attention.branch.k_proj",
    "attn.v_proj": "attention.branch.v_proj",
    "attn.inner_attn_ln": "attention.branch.norm",
    "attn.norm": "attention.branch.norm",
    "attn.proj": "attention.branch.out_proj",
    "norm2": "mlp.norm",
    "mlp.w1": "mlp.branch.gate",
    "mlp.fc1_g": "mlp.branch.gate",
    "mlp.w2": "mlp.branch.fc1",
    "mlp.fc1_x": "mlp.branch.fc1",
    "mlp.ffn_ln": "mlp.branch.norm",
    "mlp.norm": "mlp.branch.norm",
    "mlp.w3": "mlp.branch.fc2",
    "mlp.fc2": "mlp.branch.fc2",
}
EVA_INNER_NORM = "visual.blocks.0.attention.branch.norm.weight"  # only EVA-02 B and L have it

# The keys that show a ViT's sizes: patches, positions, blocks, and the wide Linear of a block.
OPENAI_SIZE_KEYS = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.transformer.resblocks",
    "mlp.c_fc",
)
EVA_SIZE_KEYS = ("visual.patch_embed.weight", "visual.positions", "visual.blocks", "mlp.branch.fc1")
IMAGE_POSITIONS = {  # in a ViT, a ResNet, an EVA-02
    "visual.positional_embedding",
    "visual.attnpool.positional_embedding",
    "visual.positions",
}


def find_weights(path: str | Path) -> Path:
    """Return ``path``, or this project's file if the working folder has no file of that name."""
    path, ours = Path(path), PROJECT / path  # an absolute path stays as it is
    return ours if ours.is_file() and not path.is_file() else path


def read_weights(path: str | Path) -> State:
    """Read the weights of a CLIP from a TorchScript archive, a state dict or a safetensors file.

    No code in the file runs: a restricted unpickler reads TorchScript archives, and ``torch.load``
    all others with ``weights_only=True``.

    Returns:
        Tensors with OpenAI's names, but an EVA-02's image tower has our names.

    Raises:
        ValueError: if the file is missing or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        known = {file_name(name): name for name in BACKBONES if not name.startswith("demo-")}
        name = known.get(path.name)
        way = f"python tools/download_weights.py {name}" if name else "see pretrain/README.md"
        raise ValueError(f"{path}: no such file of CLIP weights; to get it: {way}")
    state = {key.removeprefix("module."): value for key, value in read_tensors(path).items()}
    if any(key.startswith(("encoder.", "decoder.", "backbone.", "neck.")) for key in state):
        raise ValueError(
            f"{path}: a checkpoint of a segmentation model, not the CLIP in it; give it as "
            "--checkpoint and the CLIP weights as model.backbone.weights"
        )
    if "visual.cls_token" in state or "visual.trunk.cls_token" in state:
        state = from_eva(state)
        if EVA_INNER_NORM not in state:
            raise ValueError(
                f"{path}: an EVA CLIP without the inner norms of EVA-02 B and L; no other EVA fits"
            )
    if "text_projection" not in state or not IMAGE_POSITIONS & state.keys():
        raise ValueError(
            f"{path}: not a CLIP in OpenAI's layout or EVA-02's (no text_projection or visual.*)"
        )
    return state


def read_tensors(path: Path) -> State:
    """Read all tensors of a file by their names.

    Raises:
        ValueError: if the file cannot be read or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
    try:
        if is_torchscript(path):
            return read_torchscript(path)
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


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; each version of it is read once."""
    path = Path(path).resolve()
    state = path.stat()
    return _sha256_of_version(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256_of_version(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sizes_of_state(state: State) -> Sizes:
    """Read the sizes of a CLIP from its weights, named as :func:`read_weights` returns them."""
    blocks = "transformer.resblocks"
    common: dict[str, Any] = {
        "embed_dim": state["text_projection"].shape[1],
        "text_width": state["text_projection"].shape[0],
        "text_depth": count(state, rf"{blocks}\.(\d+)\."),
        "text_mlp_width": state[f"{blocks}.0.mlp.c_fc.weight"].shape[0],
        "context": state["positional_embedding"].shape[0],
        "vocab": state["token_embedding.weight"].shape[0],
    }
    for keys in (OPENAI_SIZE_KEYS, EVA_SIZE_KEYS):
        patches, positions, image_blocks, mlp = keys
        if patches in state and positions in state:
            return Sizes(
                image_width=state[patches].shape[0],
                depths=(count(state, rf"{image_blocks}\.(\d+)\."),),
                patch=state[patches].shape[-1],
                grid=math.isqrt(state[positions].shape[0] - 1),
                mlp_width=state[f"{image_blocks}.0.{mlp}.weight"].shape[0],
                eva=keys is EVA_SIZE_KEYS,
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
    """Count the different numbers that the group of ``pattern`` matches at the start of keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def load_weights(clip: CLIP, state: State, source: str) -> None:
    """Load weights into ``clip``, with positions resized to its grid and cut to its sentences.

    Args:
        state: named as :func:`read_weights` returns it.
        source: the file, for messages.

    Raises:
        ValueError: if weights are missing, unexpected or of another shape.
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
            f"{source}: not the CLIP that was asked for; {len(differ)} weights are missing, "
            f"unexpected or of another shape: {', '.join(differ[:5])}"
            f"{', …' if len(differ) > 5 else ''}"
        )
    clip.load_state_dict(ours)


def from_openai(state: State) -> State:
    """Rename OpenAI's tensors to ours and convert them to float32; our own names stay."""
    ours: State = {}
    is_vit = "visual.proj" in state
    for key, value in state.items():
        if key in DROPPED:
            continue
        value = value.detach().float() if value.is_floating_point() else value
        if key in TRANSPOSED:
            value = value.T.contiguous()
        if is_vit and key == "visual.conv1.weight":
            ours["visual.patch_embed.weight"] = value
        elif key in OPENAI_WHOLE:
            ours[OPENAI_WHOLE[key]] = value
        elif match := re.fullmatch(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+)", key):
            block, name = f"{match[1] or 'text.'}blocks.{match[2]}", match[3]
            if in_proj := re.fullmatch(r"attn\.in_proj_(\w+)", name):
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    ours[f"{block}.attention.branch.{letter}_proj.{in_proj[1]}"] = part.clone()
            else:
                part_name, _, kind = name.rpartition(".")
                ours[f"{block}.{OPENAI_BLOCK.get(part_name, part_name)}.{kind}"] = value
        elif match := re.fullmatch(r"(visual\.layer.+\.downsample)\.([01])\.(.+)", key):
            ours[f"{match[1]}.{int(match[2]) + 1}.{match[3]}"] = value  # here 0 is the pooling
        else:
            ours[key] = value
    return ours


def to_openai(clip: CLIP) -> State:
    """Return the weights of ``clip`` with OpenAI's names: the inverse of :func:`from_openai`."""
    assert not clip.sizes.eva, "OpenAI's layout has no names for EVA-02's image tower"
    whole = {ours: theirs for theirs, ours in OPENAI_WHOLE.items()}
    if isinstance(clip.visual, ModifiedResNet):
        whole["visual.positions"] = "visual.attnpool.positional_embedding"
    else:
        whole["visual.positions"] = "visual.positional_embedding"
        whole["visual.patch_embed.weight"] = "visual.conv1.weight"
    in_block = {ours: theirs for theirs, ours in OPENAI_BLOCK.items()}
    state: State = {}
    ours = clip.state_dict()
    for key, value in ours.items():
        if key in whole:
            theirs = whole[key]
            state[theirs] = value.T.contiguous() if theirs in TRANSPOSED else value
        elif match := re.fullmatch(r"(visual|text)\.blocks\.(\d+)\.(.+)\.(\w+)", key):
            tower = "visual." if match[1] == "visual" else ""
            block, part, kind = f"{tower}transformer.resblocks.{match[2]}", match[3], match[4]
            if part.endswith("q_proj"):
                qkv = [ours[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                state[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
            elif not part.endswith(("k_proj", "v_proj")):
                state[f"{block}.{in_block[part]}.{kind}"] = value
        elif match := re.fullmatch(r"(visual\.layer.+\.downsample)\.([12])\.(.+)", key):
            state[f"{match[1]}.{int(match[2]) - 1}.{match[3]}"] = value
        else:
            state[key] = value
    return state


def from_eva(state: State) -> State:
    """Rename EVA-02's tensors: to OpenAI's names in the text tower, to ours in the image tower.

    The angles of the rotary positions, which some files hold for one grid, are dropped.
    """
    renamed: State = {}
    for key, value in state.items():
        if not key.startswith("visual."):
            renamed[key.removeprefix("text.")] = value
        elif ".rope." not in key:
            name = key.removeprefix("visual.").removeprefix("trunk.")
            if name in ("cls_token", "pos_embed"):  # (1, N, C)
                value = value.squeeze(0) if name == "pos_embed" else value.flatten()
            if match := re.fullmatch(r"(blocks\.\d+)\.(.+)\.(\w+)", name):
                block, part, kind = match.groups()
                if bias := re.fullmatch(r"([qv])_bias", kind):
                    part, kind = f"{part}.{bias[1]}_proj", "bias"
                name = f"{block}.{EVA_BLOCK.get(part, part)}.{kind}"
            renamed[f"visual.{EVA_WHOLE.get(name, name)}"] = value
    return renamed
