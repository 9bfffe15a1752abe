"""From the names of EVA-02's files to those of OpenAI's layout (text) and ours (image tower).

Two layouts are published: EVA-CLIP's own (``visual.blocks.0.attn.q_bias``), and open_clip's on
timm's tower (``visual.trunk.blocks.0.attn.q_proj.bias``).
"""

import re

from .names import State

# EVA-CLIP's and timm's names on the left, ours on the right; both without ``visual.``.
WHOLE = {
    "cls_token": "class_token",
    "pos_embed": "positions",
    "patch_embed.proj.weight": "patch_embed.weight",
    "patch_embed.proj.bias": "patch_embed.bias",
    "norm.weight": "norm_post.weight",
    "norm.bias": "norm_post.bias",
    "head.weight": "proj.weight",
    "head.bias": "proj.bias",
}
BLOCK = {
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
INNER_NORM = "visual.blocks.0.attention.branch.norm.weight"  # EVA-01 and larger ones have none


def is_eva(state: State) -> bool:
    """Whether a CLIP's image tower has the names of EVA."""
    return "visual.cls_token" in state or "visual.trunk.cls_token" in state


def from_eva(state: State) -> State:
    """EVA-02's weights with OpenAI's names in the text tower and ours in the image tower.

    Angles of the rotary positions, which some files hold for one grid, are left out.

    Raises:
        ValueError: if the image tower is another one of EVA.
    """
    renamed: State = {}
    for key, value in state.items():
        if key.startswith("visual.") and ".rope." not in key:
            name = key.removeprefix("visual.").removeprefix("trunk.")
            if name in ("cls_token", "pos_embed"):  # (1, N, C)
                value = value.squeeze(0) if name == "pos_embed" else value.flatten()
            renamed[f"visual.{rename(name)}"] = value
        elif not key.startswith("visual."):
            renamed[key.removeprefix("text.")] = value
    if INNER_NORM not in renamed:
        raise ValueError("an EVA CLIP without the inner norms of EVA-02 B and L, which alone fit")
    return renamed


def rename(name: str) -> str:
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name):
        number, part, kind = match.groups()
        if bias := re.fullmatch(r"([qv])_bias", kind):
            part, kind = f"{part}.{bias[1]}_proj", "bias"
        return f"blocks.{number}.{BLOCK.get(part, part)}.{kind}"
    return WHOLE.get(name, name)
