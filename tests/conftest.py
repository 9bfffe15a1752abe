"""Tiny CLIPs of both kinds, as models and as files in OpenAI's layout."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import Segmenter, build_segmenter
from model.clip import CLIP, Sizes, to_openai
from utils.config import Config

IMAGE_SIZE = 64
MAX_WORDS = 9
END = 49407

TINY_VIT = Sizes(
    embed_dim=32,
    image_width=64,
    depths=(12,),
    patch=16,
    grid=4,
    mlp_width=64,
    text_width=64,
    text_depth=12,
    text_mlp_width=64,
)
TINY_RESNET = replace(TINY_VIT, image_width=4, depths=(1, 1, 2, 1), patch=0, grid=2, mlp_width=0)
TINY = {"vit": TINY_VIT, "resnet": TINY_RESNET}


@pytest.fixture(scope="session", params=["vit", "resnet"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of image tower, one after the other."""
    return request.param


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``clip_file("vit")``: a file of a tiny random CLIP in OpenAI's layout."""
    folder = tmp_path_factory.mktemp("pretrain")

    def make(kind: str) -> Path:
        path = folder / f"tiny-{kind}.pt"
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                clip = CLIP(TINY[kind], image_size=IMAGE_SIZE, max_words=77)
            torch.save({key: value.half() for key, value in to_openai(clip).items()}, path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_config(clip_file: Callable[[str], Path]) -> Callable[..., Config]:
    """``tiny_config("vit", {...})``: a configuration on a tiny CLIP; the second fills ``model``."""

    def make(kind: str, model: dict | None = None, **sections: dict) -> Config:
        decoder = {"dim": 32, "layers": 1, "heads": 4, "feedforward": 32}
        values = {
            "backbone": {"name": None, "weights": str(clip_file(kind))},
            "bridges": [{"name": "bridger", "dim": 16, "heads": 4}],
            "decoder": decoder,
            **(model or {}),
        }
        data = {"image_size": IMAGE_SIZE, "max_words": MAX_WORDS, "workers": 0}
        data |= sections.pop("data", {})
        return Config.from_dict({"data": data, "model": values, **sections})

    return make


@pytest.fixture
def tiny_segmenter(tiny_config: Callable[..., Config]) -> Callable[..., Segmenter]:
    """``tiny_segmenter("vit", {...})``: the model of ``tiny_config`` with the same arguments."""

    def make(kind: str, model: dict | None = None) -> Segmenter:
        torch.manual_seed(0)
        config = tiny_config(kind, model).model
        return build_segmenter(config, image_size=IMAGE_SIZE, max_words=MAX_WORDS)

    return make


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images, sentences of different lengths, and masks."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
    ids = torch.zeros(2, MAX_WORDS, dtype=torch.int64)
    ids[0, :4] = torch.tensor([49406, 320, 736, END])
    ids[1, :7] = torch.tensor([49406, 320, 736, 12, 90, 1042, END])
    mask = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    mask[0, 8:32, 8:32], mask[1, 30:60, 20:50] = 1, 1
    return image.to(torch.uint8), ids, mask
