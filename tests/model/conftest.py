"""Models on tiny random CLIPs whose image tower has a class token, of each kind there is."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model import Segmenter, build_segmenter
from model.clip import BACKBONES, sizes_of_name

IMAGE_SIZE, MAX_WORDS = 64, 9
TINY = replace(sizes_of_name("demo-vit"), patch=16, grid=4, mlp_width=64, text_mlp_width=64)
TINIES = {"tiny-vit": TINY, "tiny-eva": replace(TINY, eva=True)}


@pytest.fixture(params=list(TINIES))
def make_vit(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny_config: Callable
) -> Callable[[dict], Segmenter]:
    """``make_vit({...})``: the model of these options, each time on the same random CLIP."""
    monkeypatch.setitem(BACKBONES, request.param, TINIES[request.param])

    def make(options: dict) -> Segmenter:
        config = tiny_config(
            "vit", {"backbone": {"name": request.param, "weights": None}} | options
        )
        torch.manual_seed(0)
        return build_segmenter(
            config.model, image_size=IMAGE_SIZE, max_words=MAX_WORDS, load_weights=False
        )

    return make
