"""Released checkpoints compute what they computed, and nothing else is taken for one."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint import load_segmenter, read_checkpoint
from model import Segmenter, build_segmenter
from model.backbones import BACKBONES, to_openai
from model.backbones import weights as load
from tools import convert_checkpoint
from tools.golden import read_keys
from tools.released import load_released, read_released
from utils.config import load_config

ROOT = Path(__file__).parents[2]

# models on the meta device: only names and sizes are compared
pytestmark = pytest.mark.filterwarnings("ignore:.*which is a no-op")
TINY = """
data: {image_size: 64, max_words: 9}
model:
  backbone: {name: tiny, tuning: full}
  decoder: {neck: fpn, dim: 64, layers: 3, heads: 4, feedforward: 128}
"""
# our prefix in the decoder, and the released one
NAMES = {
    "connect.": "backbone.visual.attnpool.connect.",
    "neck.project.": "neck.txt_proj.",
    "neck.levels.0.": "neck.f3_v_proj.",
    "neck.levels.1.": "neck.f2_v_proj.",
    "neck.levels.2.": "neck.f1_v_proj.",
    "neck.gate_norm.": "neck.norm_layer.",
    "neck.join_middle.": "neck.f2_cat.",
    "neck.join_fine.": "neck.f3_cat.",
    "neck.smooth.0.": "neck.f4_proj3.",
    "neck.smooth.1.": "neck.f4_proj4.",
    "neck.smooth.2.": "neck.f4_proj5.",
    "neck.fuse.": "neck.aggr.",
    "neck.locate.": "neck.coordconv.0.conv1.",
    "neck.refine.": "neck.coordconv.1.",
    "transformer.": "decoder.",
    "projector.fine.": "proj.vis.1.",
    "projector.finer.": "proj.vis.3.",
    "projector.mix.": "proj.vis.4.",
    "projector.kernel.": "proj.txt.",
}
IN_A_LAYER = {
    "self_attention": "self_attn",
    "cross_attention": "multihead_attn",
    "self_norm": "self_attn_norm",
    "cross_norm": "cross_attn_norm",
    "feedforward": "ffn",
}


def build(name: str) -> Segmenter:
    """Build a model of the configuration that a released checkpoint needs, without memory."""
    config = load_config(ROOT / f"config/{name}{'_released' * name.startswith('etris')}.yaml")
    with torch.device("meta"):
        return build_segmenter(config.model, image_size=416, max_tokens=17, load_weights=False)


def empty_state(name: str) -> dict[str, Tensor]:
    """Make a released checkpoint of zeros that take no memory."""
    keys = read_keys(ROOT / f"tests/golden/keys/{name}.tsv")
    return {key: torch.zeros((), dtype=dtype).expand(shape) for key, (shape, dtype) in keys.items()}


@pytest.fixture
def tiny(clip_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The configuration of CRIS on a tiny ResNet."""
    sizes = load.sizes_of_state(load.read_weights(clip_file("resnet")))
    monkeypatch.setitem(BACKBONES, "tiny", sizes)
    path = tmp_path / "cris.yaml"
    path.write_text(TINY)
    return path


def segmenter_of(path: Path, seed: int) -> Segmenter:
    torch.manual_seed(seed)
    config = load_config(path)
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=9, load_weights=False)
    for norm in segmenter.modules():  # statistics as after training
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, std=0.1)
    return segmenter.eval()


def as_released(segmenter: Segmenter) -> dict[str, Tensor]:
    """The weights of ``segmenter`` under the released names."""
    released = {f"backbone.{k}": v for k, v in to_openai(segmenter.encoder.clip).items()}
    released["backbone.logit_scale"] = torch.ones(())
    projections: dict[str, list[Tensor]] = {}
    for key, value in segmenter.decoder.state_dict().items():
        ours = next(prefix for prefix in NAMES if key.startswith(prefix))
        name = NAMES[ours] + key.removeprefix(ours)
        for mine, theirs in IN_A_LAYER.items():
            name = name.replace(f".{mine}.", f".{theirs}.")
        if match := re.fullmatch(r"(.+)\.[qkv]_proj\.(\w+)", name):
            projections.setdefault(f"{match[1]}.in_proj_{match[2]}", []).append(value)
        else:
            released[name] = value
    return released | {name: torch.cat(parts) for name, parts in projections.items()}


def neck_of_cris(released: dict[str, Tensor], maps: tuple[Tensor, ...], sentence: Tensor) -> Tensor:
    """CRIS, section 3.1, from weights under the released names, at 1/8, 1/16 and 1/32."""

    def norm(name: str, x: Tensor) -> Tensor:
        statistics = [released[f"neck.{name}.running_{key}"] for key in ("mean", "var")]
        scale = [released[f"neck.{name}.{key}"] for key in ("weight", "bias")]
        return F.relu(F.batch_norm(x, *statistics, *scale))

    def convolution(name: str, *xs: Tensor) -> Tensor:
        weight = released[f"neck.{name}.0.weight"]
        x = F.conv2d(torch.cat(xs, dim=1), weight, padding=weight.shape[-1] // 2)
        return norm(f"{name}.1", x)

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    v3, v4, v5 = maps
    words = norm("txt_proj.1", sentence @ released["neck.txt_proj.0.weight"].T)
    f5 = norm("norm_layer.0", convolution("f1_v_proj", v5) * words[..., None, None])
    f4 = convolution("f2_cat", convolution("f2_v_proj", v4), up(f5))
    f3 = convolution("f3_cat", F.avg_pool2d(convolution("f3_v_proj", v3), 2), f4)
    levels = (
        convolution("f4_proj3", f3),
        convolution("f4_proj4", f4),
        up(convolution("f4_proj5", f5)),
    )
    x = convolution("aggr", *levels)
    line = torch.linspace(-1, 1, x.shape[-1])
    places = torch.stack([line.expand(len(line), -1), line[:, None].expand(-1, len(line))])
    x = convolution("coordconv.0.conv1", x, places.expand(len(x), -1, -1, -1))
    return convolution("coordconv.1", x)


@pytest.mark.parametrize(
    "name", ["etris_rn50", "etris_rn101", "etris_vitb16", "cris_rn50", "cris_rn101"]
)
def test_every_key_of_a_released_checkpoint_is_used(name: str) -> None:
    load_released(build(name), empty_state(name), "stand-in")


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("etris_rn50", "bridger.zoom_in.1.weight", "missing"),
        ("etris_rn50", "bridger.zoom_in.7.weight", "unexpected"),
        ("cris_rn50", "neck.f4_proj3.0.weight", "missing"),
        ("cris_rn50", "neck.f6_cat.0.weight", "not those of .* CRIS"),
    ],
)
def test_keys_that_differ_are_named(name: str, key: str, message: str) -> None:
    state = empty_state(name)
    if state.pop(key, None) is None:
        state[key] = torch.zeros(1)
    with pytest.raises(ValueError, match=rf"stand-in: .*{message}"):
        load_released(build(name), state, "stand-in")


@pytest.mark.parametrize(
    ("config", "checkpoint", "message"),
    [
        ("cris_rn50", "etris_rn50", r"CRIS checkpoint .*config/cris_\*\.yaml"),
        ("etris_rn50", "cris_rn50", r"ETRIS checkpoint .*config/cris_\*\.yaml"),
        ("etris_rn101", "etris_rn50", r"visual\.layer3"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    config: str, checkpoint: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_released(build(config), empty_state(checkpoint), "stand-in")


def test_the_tiny_checkpoint_has_the_released_keys(tiny: Path) -> None:
    def head(keys: object) -> set[str]:
        return {key for key in keys if not key.startswith("backbone.") or ".connect." in key}

    assert head(as_released(segmenter_of(tiny, 0))) == head(empty_state("cris_rn50"))


def test_the_neck_is_that_of_the_paper(tiny: Path) -> None:
    segmenter = segmenter_of(tiny, 0)
    released = as_released(segmenter)
    maps = tuple(torch.randn(2, width, side, side) for width, side in ((32, 8), (64, 4), (32, 2)))
    sentence = torch.randn(2, 32)
    other = segmenter_of(tiny, 1)
    load_released(other, released, "released")
    with torch.no_grad():
        x = other.decoder.neck(maps, sentence)
    torch.testing.assert_close(x, neck_of_cris(released, maps, sentence), rtol=1e-4, atol=1e-5)


def test_goes_round_through_the_tool(tiny: Path, tmp_path: Path, batch: tuple) -> None:
    image, ids, _ = batch
    segmenter = segmenter_of(tiny, 0)
    released = {f"module.{key}": value for key, value in as_released(segmenter).items()}
    source, output = tmp_path / "best_model.pth", tmp_path / "cris.safetensors"
    torch.save({"state_dict": released}, source)
    argv = ["--from", str(source), "--config", str(tiny), "--output", str(output)]
    assert convert_checkpoint.main(argv) == 0
    loaded = load_segmenter(read_checkpoint(output)).eval()
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in segmenter.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(image, ids), segmenter(image, ids))


def test_reads_what_the_released_training_saves(tmp_path: Path) -> None:
    path = tmp_path / "best_model.pth"
    content = {
        "epoch": 50,
        "cur_iou": np.float64(0.7),
        "prec": {"Pr@50": np.float32(0.8)},
        "state_dict": {"module.neck.txt_proj.bias": torch.ones(2)},
        "scheduler": {"milestones": Counter({35: 1})},
    }
    torch.save(content, path)
    assert torch.equal(read_released(path)["neck.txt_proj.bias"], torch.ones(2))


def test_code_in_a_released_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {}, "prec": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth: cannot be read"):
        read_released(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()
