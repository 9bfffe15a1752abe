"""Read checkpoints of the released code of ETRIS and CRIS, and translate their names to ours."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.backbones import from_openai, load_weights
from model.decoder import PyramidNeck
from model.segmenter import Segmenter, shorten

State = dict[str, Tensor]

# Released name, without its `.weight` or `.bias`, and our name; {} is a number.
SHARED = {
    "backbone.visual.attnpool.connect.{}": "decoder.connect.{}",
    "neck.aggr.{}": "decoder.neck.fuse.{}",
    "neck.coordconv.0.conv1.{}": "decoder.neck.locate.{}",
    "neck.coordconv.1.{}": "decoder.neck.refine.{}",
    "decoder.layers.{}.self_attn": "decoder.transformer.layers.{}.self_attention",
    "decoder.layers.{}.multihead_attn": "decoder.transformer.layers.{}.cross_attention",
    "decoder.layers.{}.self_attn_norm": "decoder.transformer.layers.{}.self_norm",
    "decoder.layers.{}.cross_attn_norm": "decoder.transformer.layers.{}.cross_norm",
    "decoder.layers.{}.ffn.{}": "decoder.transformer.layers.{}.feedforward.{}",
    "decoder.layers.{}.norm{}": "decoder.transformer.layers.{}.norm{}",
    "decoder.norm": "decoder.transformer.norm",
    "proj.vis.1.{}": "decoder.projector.fine.{}",
    "proj.vis.3.{}": "decoder.projector.finer.{}",
    "proj.vis.4": "decoder.projector.mix",
    "proj.txt": "decoder.projector.kernel",
}
CRIS = SHARED | {
    "neck.txt_proj.{}": "decoder.neck.project.{}",
    "neck.norm_layer.{}": "decoder.neck.gate_norm.{}",
    "neck.f1_v_proj.{}": "decoder.neck.levels.2.{}",
    "neck.f2_v_proj.{}": "decoder.neck.levels.1.{}",
    "neck.f3_v_proj.{}": "decoder.neck.levels.0.{}",
    "neck.f2_cat.{}": "decoder.neck.join_middle.{}",
    "neck.f3_cat.{}": "decoder.neck.join_fine.{}",
    "neck.f4_proj3.{}": "decoder.neck.smooth.0.{}",
    "neck.f4_proj4.{}": "decoder.neck.smooth.1.{}",
    "neck.f4_proj5.{}": "decoder.neck.smooth.2.{}",
}
ETRIS = SHARED | {
    "bridger.zoom_in.{}": "encoder.bridges.0.stages.{}.zoom_in",
    "bridger.zoom_in.{}.{}": "encoder.bridges.0.stages.{}.zoom_in.{}",
    "bridger.zoom_out.{}": "encoder.bridges.0.stages.{}.zoom_out",
    "bridger.zoom_out.{}.{}": "encoder.bridges.0.stages.{}.zoom_out.{}",
    "bridger.linear1.{}": "encoder.bridges.0.stages.{}.text_in",
    "bridger.linear2.{}": "encoder.bridges.0.stages.{}.text_out",
    "bridger.ln_v.{}": "encoder.bridges.0.stages.{}.image_norm",
    "bridger.ln_t.{}": "encoder.bridges.0.stages.{}.text_norm",
    "neck.txt_proj": "decoder.neck.project",
    "neck.f3_proj.{}": "decoder.neck.levels.0.{}",
    "neck.f4_proj.{}": "decoder.neck.levels.1.{}",
    "neck.f5_proj.{}": "decoder.neck.levels.2.{}",
}
for theirs, ours in (("v", "image"), ("t", "text")):
    interactor = f"encoder.bridges.0.stages.{{}}.{ours}_interactor"
    ETRIS |= {
        f"bridger.fusion_{theirs}.{{}}.self_attn": f"{interactor}.self_attention",
        f"bridger.fusion_{theirs}.{{}}.linear1": f"{interactor}.feedforward.0",
        f"bridger.fusion_{theirs}.{{}}.linear2": f"{interactor}.feedforward.3",
        f"bridger.fusion_{theirs}.{{}}.norm{{}}": f"{interactor}.norm{{}}",
    }
PATTERNS = {
    method: [
        (re.compile(re.escape(theirs).replace(r"\{\}", r"(\d+)")), ours)
        for theirs, ours in names.items()
    ]
    for method, names in (("ETRIS", ETRIS), ("CRIS", CRIS))
}
# Released as transposed convolutions; ours with stride 1 are plain ones, whose axes are swapped.
TRANSPOSED = re.compile(r"bridger\.zoom_in\.2|bridger\.zoom_out\.[01]|neck\.f5_proj\.0")
NECK_ATTENTION = re.compile(r"neck\.fusion([345])\.multihead_attn\.(.+)")
BRIDGER_ATTENTION = re.compile(r"bridger\.fusion_([vt])\.(\d+)\.multihead_attn\.(.+)")
WAY_OUT = "CRIS needs --config config/cris_*.yaml, ETRIS config/etris_*_released.yaml"


def read_released(path: str | Path) -> State:
    """Read the tensors of a released checkpoint, without ``module.``; run no code of the file.

    Raises:
        ValueError: if the file is missing or has no ``state_dict`` of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a checkpoint that the released code saved")
    # what the released training saves beside tensors: scores as NumPy scalars, milestones
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    harmless: list[Any] = [np.float64(0).__reduce__()[0], np.dtype, *kinds, Counter]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: has no 'state_dict' of tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_released(segmenter: Segmenter, released: State, source: str) -> None:
    """Load a released checkpoint, backbone included, into a model that was built for it.

    A model with CRIS's neck takes a checkpoint of CRIS, any other model one of ETRIS. Query and key
    weights of ETRIS's neck are dropped: with one sentence token they have no effect.

    Raises:
        ValueError: naming keys that are unknown, missing or of another shape.
    """
    method, wanted = method_of(segmenter), segmenter.state_dict()
    backbone: State = {}
    state: State = {}
    unknown: list[str] = []
    for key, value in released.items():
        value = value.float() if value.is_floating_point() else value
        if is_of_clip(key):
            backbone[key.removeprefix("backbone.")] = value
        elif found := translate_entry(method, key, value, wanted):
            state |= found
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(
            f"{source}: {len(unknown)} keys are not those of a released {method} checkpoint "
            f"({shorten(unknown)}); {WAY_OUT}"
        )
    if not backbone:
        raise ValueError(f"{source}: has no backbone.* keys; not a checkpoint of released {method}")
    load_weights(segmenter.encoder.clip, backbone, source)
    clip = {f"encoder.clip.{k}": v for k, v in segmenter.encoder.clip.state_dict().items()}
    try:
        segmenter.load_whole_state(clip | state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def names_of(segmenter: Segmenter, released: State) -> dict[str, list[str]]:
    """Map each released name to our names of its content, to an empty list if it is dropped."""
    method, wanted = method_of(segmenter), segmenter.state_dict()
    names = {}
    for key, value in released.items():
        if is_of_clip(key):
            own = from_openai({key.removeprefix("backbone."): value})
            names[key] = [f"encoder.clip.{name}" for name in own]
        else:
            names[key] = [*translate_entry(method, key, value, wanted)]
    return names


def method_of(segmenter: Segmenter) -> str:
    return "CRIS" if isinstance(segmenter.decoder.neck, PyramidNeck) else "ETRIS"


def is_of_clip(key: str) -> bool:
    return key.startswith("backbone.") and ".connect." not in key


def translate_entry(method: str, key: str, value: Tensor, wanted: State) -> State:
    """Return a released entry under our names, in parts if it is several of ours; else nothing."""
    if match := NECK_ATTENTION.fullmatch(key):
        # only the value and output projections: the queries and keys have no effect
        gate, part = f"decoder.neck.gates.{int(match[1]) - 3}", match[2]
        if part.startswith("in_proj_"):
            return {f"{gate}.0.{part.removeprefix('in_proj_')}": value.chunk(3)[2].clone()}
        return {f"{gate}.1.{part.removeprefix('out_proj.')}": value}
    if match := BRIDGER_ATTENTION.fullmatch(key):
        tower = "image" if match[1] == "v" else "text"
        interactor = f"encoder.bridges.0.stages.{match[2]}.{tower}_interactor"
        is_gate = f"{interactor}.attention.q_proj.weight" in wanted
        name = f"{interactor}.{'attention' if is_gate else 'cross_attention'}"
        return split_attention(name, match[3], value)
    base, _, last = key.rpartition(".")
    whole = base.removesuffix(".out_proj")
    if (ours := translate_name(method, whole)) and ours.endswith("attention"):
        return split_attention(ours, key.removeprefix(f"{whole}."), value)
    if (ours := translate_name(method, base)) is None:
        return {}
    if TRANSPOSED.match(key) and value.ndim == 4 and value.shape[-1] == 1:
        value = value.transpose(0, 1).contiguous()
    return {f"{ours}.{last}": value}


def translate_name(method: str, name: str) -> str | None:
    for pattern, ours in PATTERNS[method]:
        if match := pattern.fullmatch(name):
            return ours.format(*match.groups())
    return None


def split_attention(name: str, part: str, value: Tensor) -> State:
    """Split the in-projection of a ``nn.MultiheadAttention`` into our three linear layers."""
    if not part.startswith("in_proj_"):
        return {f"{name}.{part}": value}
    kind = part.removeprefix("in_proj_")
    chunks = zip("qkv", value.chunk(3), strict=True)
    return {f"{name}.{letter}_proj.{kind}": chunk.clone() for letter, chunk in chunks}
