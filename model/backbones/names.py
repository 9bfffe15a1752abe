"""The names of OpenAI's layout and ours, and weights from one to the other."""

import re

import torch
from torch import Tensor

from .clip import CLIP
from .resnet import ModifiedResNet

State = dict[str, Tensor]

# Names of OpenAI's layout on the left, ours on the right; both without the tower's own prefix.
BLOCK = [
    ("ln_1", "attention.norm"),
    ("attn.out_proj", "attention.branch.out_proj"),
    ("ln_2", "mlp.norm"),
    ("mlp.c_fc", "mlp.branch.fc1"),
    ("mlp.c_proj", "mlp.branch.fc2"),
]
WHOLE = {
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
TRANSPOSED = {"visual.proj", "text_projection"}  # stored as (in, out), a Linear has (out, in)
DROPPED = {"logit_scale", "input_resolution", "context_length", "vocab_size"}


def from_openai(state: State) -> State:
    """Weights in OpenAI's layout, renamed to ours and in float32; our names stay."""
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
        elif key in WHOLE:
            ours[WHOLE[key]] = value
        elif match := re.fullmatch(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+)", key):
            block = f"{match[1] or 'text.'}blocks.{match[2]}"
            ours |= {f"{block}.{name}": part for name, part in rename_in_block(match[3], value)}
        elif match := re.fullmatch(r"(visual\.layer.+\.downsample)\.([01])\.(.+)", key):
            ours[f"{match[1]}.{int(match[2]) + 1}.{match[3]}"] = value  # 0 is the pooling here
        else:
            ours[key] = value
    return ours


def rename_in_block(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        branch = "attention.branch"
        parts = value.chunk(3)
        return [(f"{branch}.{p}_proj.{kind}", v.clone()) for p, v in zip("qkv", parts, strict=True)]
    for theirs, ours in BLOCK:
        if name.startswith(f"{theirs}."):
            return [(ours + name.removeprefix(theirs), value)]
    return [(name, value)]


def to_openai(clip: CLIP) -> State:
    """The weights of ``clip`` in OpenAI's layout; the inverse of :func:`from_openai`."""
    assert not clip.sizes.eva, "OpenAI's layout has no names for EVA-02's image tower"
    whole = {ours: theirs for theirs, ours in WHOLE.items()}
    if isinstance(clip.visual, ModifiedResNet):
        whole["visual.positions"] = "visual.attnpool.positional_embedding"
    else:
        whole["visual.positions"] = "visual.positional_embedding"
        whole["visual.patch_embed.weight"] = "visual.conv1.weight"
    state: State = {}
    ours = clip.state_dict()
    for key, value in ours.items():
        if key in whole:
            theirs = whole[key]
            state[theirs] = value.T.contiguous() if theirs in TRANSPOSED else value
        elif match := re.fullmatch(r"(visual|text)\.blocks\.(\d+)\.(.+)", key):
            tower = "visual." if match[1] == "visual" else ""
            block, name = f"{tower}transformer.resblocks.{match[2]}", match[3]
            if match_qkv := re.fullmatch(r"attention\.branch\.([qkv])_proj\.(\w+)", name):
                if match_qkv[1] == "q":
                    names = [key.replace("q_proj", f"{p}_proj") for p in "qkv"]
                    state[f"{block}.attn.in_proj_{match_qkv[2]}"] = torch.cat(
                        [ours[n] for n in names]
                    )
                continue
            theirs, mine = next(pair for pair in BLOCK if name.startswith(f"{pair[1]}."))
            state[f"{block}.{theirs}{name.removeprefix(mine)}"] = value
        elif match := re.fullmatch(r"(visual\.layer.+\.downsample)\.([12])\.(.+)", key):
            state[f"{match[1]}.{int(match[2]) - 1}.{match[3]}"] = value
        else:
            state[key] = value
    return state
