"""The sheet has the numbers of the pass that gives the mask, and the model is as before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engine.checkpoint import save_checkpoint
from model import Segmenter, build_clip, build_segmenter
from model.backbones import BACKBONES, sizes_of_name
from model.backbones.attention import Attention, split_heads
from model.backbones.eva import RotaryAttention
from model.backbones.state import STAGE_ENDS, STEPS, to_tokens
from model.side.gst import global_prior
from tools import features as tool
from tools.feature_maps import (
    PLAIN,
    WIDTH,
    attention_weights,
    draw_sheet,
    recorded,
    view_model,
)
from utils.config import Config
from utils.data.tokenizer import END, START, tokenize
from utils.data.transforms import letterbox_image

CPU = torch.device("cpu")
INTERTWINE = {"name": "intertwine", "dim": 8}
SNF = {"name": "snf", "length": 1}
GST = {"name": "gst", "dim": 12, "modules": 2, "queries": 3}
BARLERIA = {"adapters": [SNF], "bridges": [INTERTWINE], "side": GST}
TEXT = "small red star"
EXACT = {"data": {"max_words": 9}, "train": {"precision": "fp32"}}


@pytest.fixture
def image() -> np.ndarray:
    """Wider than high, so that the square has padding."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def make(tiny_config: Callable) -> Callable[..., tuple[Segmenter, Config]]:
    """``make("vit", {...})``: a model whose adapters and bridges act, and its configuration."""

    def build(kind: str, model: dict | None = None) -> tuple[Segmenter, Config]:
        config = tiny_config(kind, model, **EXACT)
        torch.manual_seed(0)
        segmenter = build_segmenter(config.model, image_size=config.data.image_size, max_tokens=9)
        with torch.no_grad():
            for parameter in (p for p in segmenter.parameters() if p.requires_grad):
                parameter += 0.05 * torch.randn_like(parameter)
        return segmenter.eval(), config

    return build


def pixels_of(config: Config, image: np.ndarray) -> torch.Tensor:
    square, _ = letterbox_image(image, config.data.image_size)
    return torch.from_numpy(square).permute(2, 0, 1)[None]


def frozen_maps(config: Config, image: np.ndarray) -> list[torch.Tensor]:
    """The maps of the plain CLIP of ``config``, stage by stage."""
    backbone = config.model.backbone
    clip, _ = build_clip(
        backbone.name, backbone.weights, image_size=config.data.image_size, max_tokens=9
    )
    clip = clip.to(memory_format=torch.channels_last).eval()
    maps = []
    with torch.no_grad():
        hidden = clip.visual.embed(clip.normalize(pixels_of(config, image)))
        for step in range(STEPS):
            hidden = clip.visual.run(step, hidden)
            maps += [hidden.x[0]] if step in STAGE_ENDS else []
    return maps


@pytest.mark.parametrize(("kind", "model"), [("vit", None), ("resnet", None), ("joint", BARLERIA)])
def test_maps_without_are_those_of_the_frozen_clip(
    make: Callable, image: np.ndarray, kind: str, model: dict | None
) -> None:
    segmenter, config = make(kind, model)
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    view = view_model(segmenter, config, image, TEXT, device=CPU)
    attached = ["with snf, without the bridges", "with snf and intertwine"]
    plain, *others = view.maps.values()
    assert list(view.maps) == [PLAIN, *(attached if model else ["with bridger"])]
    assert all(map(torch.equal, plain, frozen_maps(config, image)))
    assert not any(map(torch.equal, plain * len(others), sum(others, ())))
    after = segmenter.state_dict()
    assert after.keys() == before.keys()
    assert all(value.equal(before[key]) for key, value in after.items())
    assert not any(module._forward_hooks for module in segmenter.modules())


def test_barleria_reads_words_and_weighs_cells_by_its_prior(
    make: Callable, image: np.ndarray
) -> None:
    segmenter, config = make("joint", BARLERIA)
    view = view_model(segmenter, config, image, TEXT, device=CPU)
    assert view.words == (START, *TEXT.split(), END)
    assert set(view.absent) == {"bridger"}
    decoder, tower = view.attention["decoder"], view.attention["intertwine"]
    assert decoder.shape == tower.shape == (5, 4, 4)
    assert torch.allclose(decoder.sum(dim=0), torch.ones(4, 4))
    total = tower.sum(dim=0)
    assert (total > 0).all() and (total < 1).all()
    ids, _ = tokenize(TEXT, 9)
    with torch.no_grad():
        features = segmenter.encoder(
            segmenter.encoder.clip.normalize(pixels_of(config, image)), ids
        )
        words = segmenter.side.narrow(features.word_features)
        cells = segmenter.side.narrow(to_tokens(features.joint_map))
        expected = global_prior(words, cells, ids != 0)[:, 9:]
    assert view.prior.shape == (4, 4) and view.prior.min() >= 0 and view.prior.max() <= 1 + 1e-6
    assert torch.allclose(view.prior.flatten()[None, :, None] * cells, expected, atol=1e-5)


@pytest.mark.parametrize("refresh", ["block", "once"])
def test_words_are_found_among_the_keys_of_the_tower(
    make: Callable, image: np.ndarray, refresh: str
) -> None:
    """Padding gets no attention, at either place of the words among the tokens."""
    segmenter, config = make("vit", {"bridges": [INTERTWINE | {"refresh": refresh}]})
    blocks = [block.attention.branch for block in segmenter.encoder.clip.visual.blocks]
    keeps = []
    with recorded(blocks, lambda _, given, __: keeps.append(given["attention_mask"][0])):
        view = view_model(segmenter, config, image, TEXT, device=CPU)
    words = slice(-9, None) if refresh == "block" else slice(1, 10)
    assert len(keeps) == STEPS
    assert all(keep[words].sum() == 5 and (~keep).sum() == 4 for keep in keeps)
    # about one token in 26 each, for any random weights
    assert 0.05 < view.attention["intertwine"].sum(dim=0).mean() < 0.6


@pytest.mark.parametrize("kind", ["plain", "rotary"])
def test_weights_are_those_of_the_module(kind: str) -> None:
    torch.manual_seed(0)
    x, memory = torch.randn(2, 6, 8), torch.randn(2, 3, 8)
    keep = torch.tensor([[True] * 9, [True] * 7 + [False] * 2])
    attention: Attention | RotaryAttention = Attention(8, 1)
    arguments = {"attention_mask": keep, "memory": memory}
    if kind == "rotary":
        attention, angle = RotaryAttention(8, 1), torch.randn(6, 4)
        arguments |= {"cosine": angle.cos(), "sine": angle.sin()}
    with torch.no_grad(), recorded([attention], lambda *call: attention_weights(*call[:2])) as seen:
        output = attention(x, **arguments)
        values = torch.cat([attention.v_proj(x), attention.v_proj(memory)], dim=1)
        mixed = seen[0] @ split_heads(values, 1)[:, 0]
        mixed = attention.norm(mixed) if isinstance(attention, RotaryAttention) else mixed
        assert torch.allclose(attention.out_proj(mixed), output, atol=1e-6)


def test_no_hook_is_left_by_a_pass_that_fails() -> None:
    linear = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError), recorded([linear], lambda *_: None):
        linear(torch.zeros(1, 3))
    assert not linear._forward_hooks


def test_bridges_on_eva(monkeypatch: pytest.MonkeyPatch, image: np.ndarray) -> None:
    sizes = replace(
        sizes_of_name("demo-vit"), patch=16, grid=4, mlp_width=64, text_mlp_width=64, eva=True
    )
    monkeypatch.setitem(BACKBONES, "tiny-eva", sizes)
    model = {
        "backbone": {"name": "tiny-eva"},
        "bridges": [{"name": "bridger", "dim": 16, "heads": 4}, INTERTWINE],
        "decoder": {"dim": 32, "layers": 0, "heads": 4},
    }
    config = Config.from_dict({"data": {"image_size": 64, "max_words": 9}, "model": model})
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=9, load_weights=False)
    view = view_model(segmenter, config, image, TEXT, device=CPU)
    assert set(view.attention) == {"bridger", "intertwine"}
    assert set(view.absent) == {"decoder", "prior"}
    assert draw_sheet(view).shape[1] > WIDTH


def test_nothing_attached_is_one_row(make: Callable, image: np.ndarray) -> None:
    segmenter, config = make("resnet", {"bridges": []})
    view = view_model(segmenter, config, image, "the man " * 60, device=CPU)
    assert list(view.maps) == [PLAIN] and "nothing attached" in view.model
    assert view.words == (START, *["the", "man"] * 3, "the", END)
    assert set(view.absent) == {"bridger", "intertwine", "prior", "sentence"}
    assert "122" in view.absent["sentence"] and draw_sheet(view).shape[1] > WIDTH


def test_the_tool_writes_one_picture(
    make: Callable, image: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    segmenter, config = make("vit")
    checkpoint, photo = tmp_path / "best.safetensors", tmp_path / "photo.png"
    save_checkpoint(checkpoint, segmenter, config)
    cv2.imwrite(str(photo), image)
    output = tmp_path / "new" / "features.png"
    argv = ["--checkpoint", str(checkpoint), "--image", str(photo), "--output", str(output)]
    assert tool.main([*argv, "--text", "左边的 cat"]) == 0
    assert str(output) in capsys.readouterr().out
    drawn = cv2.imread(str(output))
    assert drawn.shape[1] > WIDTH
    assert [path.name for path in output.parent.iterdir()] == [output.name]

    missing, taken = str(tmp_path / "none.png"), str(photo / "features.png")
    wrong = {
        "--text is empty": [*argv, "--text", "  "],
        "no such picture": [*argv, "--text", TEXT, "--image", missing],
        "a folder, not a picture": [*argv, "--text", TEXT, "--image", str(tmp_path)],
        "no such checkpoint": [*argv, "--text", TEXT, "--checkpoint", missing],
        "should end in .png": [*argv, "--text", TEXT, "--output", "features.jpg"],
        "cannot be written": [*argv, "--text", TEXT, "--output", taken],
    }
    for message, arguments in wrong.items():
        assert tool.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
