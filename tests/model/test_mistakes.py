"""Mistakes in a configuration or a file are errors that name the place and the value."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model import build_clip
from model.backbones import read_weights, sizes_of_name

ADAPTERS = [  # kind of tower, options, what the message names
    ("resnet", {"name": "bitfit"}, "model.adapters.0: no 'bitfit'"),
    ("resnet", {"name": "adapter", "reduction": 0}, "adapter: reduction 0"),
    ("resnet", {"name": "adapter", "reduction": 5}, "from 1 to 4"),
    ("vit", {"name": "adapter", "halves": "mlps"}, "halves 'mlps'"),
    ("vit", {"name": "adapter", "first_block": 12}, "first_block 12"),
    ("vit", {"name": "adapter", "towers": "visual"}, "towers 'visual'"),
    ("vit", {"name": "adapter", "width": 4}, "'width'"),
    ("resnet", {"name": "compacter", "reduction": 0}, "compacter: reduction 0"),
    ("vit", {"name": "compacter", "divisions": 0}, "divisions 0"),
    ("vit", {"name": "compacter", "rank": 0}, "rank 0"),
    ("resnet", {"name": "compacter", "divisions": 3}, "divisions 3"),
    ("vit", {"name": "compacter", "n": 4}, "'n'"),
    ("resnet", {"name": "conv_adapter", "reduction": 5}, "conv_adapter: reduction 5"),
    ("vit", {"name": "conv_adapter", "towers": "both"}, "'towers'"),
    ("vit", {"name": "lora", "rank": 0}, "rank 0"),
    ("vit", {"name": "lora", "alpha": 0}, "alpha 0"),
    ("vit", {"name": "lora", "projections": []}, "projections []"),
    ("vit", {"name": "lora", "projections": ["fc1"]}, "projections ['fc1']"),
    ("vit", {"name": "snf", "length": 0}, "length 0"),
    ("vit", {"name": "snf", "length": "four"}, "model.adapters.0: snf cannot be built"),
    ("vit", {"name": "snf", "towers": "visual"}, "towers 'visual'"),
    ("resnet", {"name": "snf", "towers": "both"}, "'both' includes the image tower of a ResNet"),
]
BRIDGES = [
    ("vit", {"name": "bridge"}, "model.bridges.0: no 'bridge'"),
    ("vit", {"name": "bridger", "dims": 8}, "did you mean 'dim'"),
    ("vit", {"name": "bridger", "stages": [2, 1]}, "stages [2, 1]"),
    ("vit", {"name": "bridger", "stages": [3]}, "stages [3]"),
    ("vit", {"name": "bridger", "dim": 16, "heads": 5}, "dim 16 cannot be split into 5"),
    ("vit", {"name": "bridger", "dim": "wide"}, "model.bridges.0: bridger cannot be built"),
    ("vit", {"name": "bridger", "zoom": "bilinear"}, "zoom 'bilinear'"),
    ("vit", {"name": "bridger", "zoom": None}, "zoom None"),
    ("vit", {"name": "coop", "tokens": 0}, "tokens 0"),
    ("vit", {"name": "intertwine", "dim": 0}, "dim 0"),
    ("vit", {"name": "intertwine", "refresh": "step"}, "refresh 'step'"),
    ("vit", {"name": "intertwine", "directions": "words"}, "directions 'words'"),
    ("vit", {"name": "intertwine", "mask_pading": True}, "did you mean 'mask_padding'"),
    ("resnet", {"name": "intertwine"}, "intertwine: a ResNet"),
]
SIDES = [
    ("joint", {"name": "san"}, "model.side: no 'san'"),
    ("resnet", {"name": "gst"}, "those of a ResNet"),
    ("vit", {"name": "gst"}, "width 64 and the joint space 32"),
    ("joint", {"name": "gst", "modules": 5}, "modules 5"),
    ("joint", {"name": "gst", "modules": 0}, "modules 0"),
    ("joint", {"name": "gst", "dim": 24, "heads": 5}, "heads 5 must divide dim 24"),
    ("joint", {"name": "gst", "queries": 0}, "queries 0"),
    ("joint", {"name": "gst", "query": 3}, "did you mean 'queries'"),
    ("joint", {"name": "gst", "grid": 3}, "'grid'"),
    ("joint", {"name": "gst", "dim": "wide"}, "model.side: gst cannot be built"),
]
OTHERS = [
    ("vit", {"backbone": {"name": None, "weights": None}}, "model.backbone.weights is not set"),
    ("vit", {"backbone": {"name": "RN50", "weights": None}}, "download_weights.py RN50"),
]
CASES = [
    *((kind, {"adapters": [options]}, named) for kind, options, named in ADAPTERS),
    *((kind, {"bridges": [options]}, named) for kind, options, named in BRIDGES),
    *((kind, {"bridges": [], "side": options}, named) for kind, options, named in SIDES),
    *OTHERS,
]


@pytest.mark.parametrize(("kind", "options", "named"), CASES)
def test_options(tiny_segmenter: Callable, kind: str, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        tiny_segmenter(kind, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "named"),
    [
        ("RN101", "vit", {}, "embed_dim 32 not 512"),
        ("EVA02-B/16", "vit", {}, "eva False not True"),
        (None, "vit", {"image_size": 100}, "image_size 100 is no multiple of the patch size 16"),
        (None, "resnet", {"image_size": 100}, "stride 32 of the ResNet; use 96"),
        (None, "vit", {"max_tokens": 78}, "max_words 78"),
    ],
)
def test_names_and_sizes(
    clip_file: Callable, name: str | None, kind: str, sizes: dict, named: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        build_clip(name, str(clip_file(kind)), **{"image_size": 64, "max_tokens": 17} | sizes)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'ViT-B16'; did you mean 'ViT-B/16'"):
        sizes_of_name("ViT-B16")


@pytest.mark.parametrize(
    ("file", "name"), [("RN101.pt", "RN101"), ("EVA02_CLIP_B_psz16_s8B.pt", "EVA02-B/16")]
)
def test_a_missing_file_names_the_command_that_gets_it(tmp_path: Path, file: str, name: str):
    with pytest.raises(ValueError, match=f"{re.escape(file)}.*download_weights.py {name}"):
        read_weights(tmp_path / file)


@pytest.mark.parametrize(
    "content",
    [
        b"not a checkpoint",
        b"",
        b"PK\x03\x04 broken",
        [1, 2],
        {"fc.weight": torch.zeros(2, 2)},
        {"state_dict": {"module.backbone.visual.proj": torch.zeros(1)}, "epoch": 3},
        {"state_dict": {"encoder.clip.visual.proj.weight": torch.zeros(1)}, "epoch": 3},
    ],
)
def test_files_that_hold_no_clip(tmp_path: Path, content: object) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"x\.pth: "):
        read_weights(path)


def test_missing_weights_are_named(tmp_path: Path, clip_file: Callable) -> None:
    state = torch.load(clip_file("vit"), weights_only=True)
    del state["visual.transformer.resblocks.3.ln_1.weight"]
    torch.save(state, tmp_path / "holes.pt")
    with pytest.raises(ValueError, match=r"holes\.pt.*visual\.blocks\.3\.attention\.norm\.weight"):
        build_clip(None, str(tmp_path / "holes.pt"), image_size=64, max_tokens=17)
