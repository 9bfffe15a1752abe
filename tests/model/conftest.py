"""Models on tiny random CLIPs, of each kind of image tower that there is."""

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model import Segmenter, build_segmenter
from model.backbones import BACKBONES, sizes_of_name
from utils.config import Config

IMAGE_SIZE, MAX_WORDS = 64, 9
TINY_VIT = replace(sizes_of_name("demo-vit"), patch=16, grid=4, mlp_width=64, text_mlp_width=64)
TINIES = {
    "tiny-vit": TINY_VIT,
    "tiny-eva": replace(TINY_VIT, eva=True),
    "tiny-resnet": replace(
        TINY_VIT, image_width=4, depths=(1, 1, 2, 1), patch=0, grid=2, mlp_width=0
    ),
}


@pytest.fixture
def make_config(tiny_config: Callable) -> Callable[[str, dict], Config]:
    """``make_config("tiny-eva", {...})``: a configuration on the tiny CLIP of that name."""
    return lambda name, options: tiny_config(
        "vit", {"backbone": {"name": name, "weights": None}} | options
    )


@pytest.fixture
def make_model(
    monkeypatch: pytest.MonkeyPatch, make_config: Callable
) -> Callable[[str, dict], Segmenter]:
    """``make_model("tiny-eva", {...})``: the model of these options, on the same random CLIP."""

    def make(name: str, options: dict) -> Segmenter:
        monkeypatch.setitem(BACKBONES, name, TINIES[name])
        torch.manual_seed(0)
        return build_segmenter(
            make_config(name, options).model,
            image_size=IMAGE_SIZE,
            max_tokens=MAX_WORDS,
            load_weights=False,
        )

    return make


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make towers of four blocks that run in four steps, which compile in a third of the time."""
    for name, module in list(sys.modules.items()):
        for constant, value in (("STEPS", 4), ("STAGE_ENDS", (1, 2, 3))):
            if name.startswith("model.") and hasattr(module, constant):
                monkeypatch.setattr(module, constant, value)
    for name, sizes in TINIES.items():
        depths = (4,) if sizes.is_vit else sizes.depths
        monkeypatch.setitem(TINIES, name, replace(sizes, depths=depths, text_depth=4))


@pytest.fixture(params=["tiny-vit", "tiny-eva"])
def make_vit(request: pytest.FixtureRequest, make_model: Callable) -> Callable[[dict], Segmenter]:
    """``make_vit({...})``: the same where the image tower has a class token, one of each kind."""
    return lambda options: make_model(request.param, options)
