"""Laws of global shortcut tuning: its sizes, what it reads, and what cannot reach it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint import load_segmenter, read_checkpoint, save_checkpoint
from model import Segmenter
from model.backbones import BACKBONES, CLIP
from model.side.gst import GlobalShortcut, Module, global_prior
from utils.config import Config

GST = {"name": "gst", "dim": 24, "queries": 5}
MODELS: dict[str, dict] = {
    "frozen": {"bridges": [], "side": GST},
    "bridger": {"side": GST},
    "BarLeRIa": {
        "adapters": [{"name": "snf"}],
        "bridges": [{"name": "intertwine", "dim": 8}],
        "side": GST,
    },
}
MAX_WORDS = 9
Make = Callable[..., Any]


@pytest.fixture
def segmenter(tiny_segmenter: Make) -> Segmenter:
    return tiny_segmenter("joint", {"side": GST}).train()


def read(segmenter: Segmenter, image: Tensor, ids: Tensor) -> Any:
    return segmenter.encoder(segmenter.encoder.clip.normalize(image), ids)


def size(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def test_sizes_of_all_parts() -> None:
    with torch.device("meta"):
        clip = CLIP(BACKBONES["ViT-B/16"], image_size=416, max_tokens=17)
        side = GlobalShortcut(clip, 26, 512)
    assert side.queries.numel() == 18_432 and side.positions.numel() == 97_344
    assert size(side.narrow) == 21_168
    assert [size(enter) for enter in side.image_in] == [110_736] * 4  # 442,944
    for module in side.stack:
        assert isinstance(module, Module) and size(module.block) == 250_704
        assert size(module.adapt) == size(module.prior_proj) == 20_736
    assert size(side.image_out) == 74_240
    assert size(side) == 1_822_832
    assert side.tap_steps == (-1, 2, 5, 8)


def test_the_trail_holds_the_maps_at_the_taps(segmenter: Segmenter, batch: Any) -> None:
    image, ids, _ = batch
    clip = segmenter.encoder.clip
    trail = read(segmenter, image, ids).tap_maps
    hidden = clip.visual.embed(clip.normalize(image))
    torch.testing.assert_close(trail[0], hidden.x)
    for step in range(3):
        hidden = clip.visual.run(step, hidden)
    torch.testing.assert_close(trail[1], hidden.x)  # the first Bridger acts later
    assert len(trail) == 4


def test_equation_4_clamps_and_leaves_padding_out() -> None:
    e1, e2 = torch.eye(2)
    words = torch.stack([2 * e1, 4 * e1, -9 * e2])[None]
    image = torch.stack([3 * e1, -e1, e2, e1 + e2, e1 - 2 * e2])[None]
    prior = global_prior(words, image, torch.tensor([[True, True, False]]))[0]
    wanted = [2 * e1, 4 * e1, 0 * e2, 3 * e1, 0 * e1, 0 * e2]
    wanted += [(e1 + e2) / 2**0.5, (e1 - 2 * e2) / 5**0.5]
    torch.testing.assert_close(prior, torch.stack(wanted))


def test_equation_6() -> None:
    """``softmax(Q K^T / sqrt(C)) (V + p W)`` in each head, then the sum and the MLP of a block."""
    torch.manual_seed(0)
    module, tokens, prior = Module(8, 2), torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    keep = torch.tensor([[True, True, True, True, False, True]])
    half = module.block.attention
    attention, x = half.branch, half.norm(tokens)
    value = attention.v_proj(x) + module.prior_proj(module.adapt(prior))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        q, k = attention.q_proj(x)[..., part], attention.k_proj(x)[..., part]
        scores = (q @ k.mT / 4**0.5).masked_fill(~keep[:, None], -torch.inf)
        heads.append(scores.softmax(dim=2) @ value[..., part])
    wanted = module.block.mlp(tokens + attention.out_proj(torch.cat(heads, dim=2)))
    torch.testing.assert_close(module(tokens, prior, keep), wanted)


def test_queries_get_no_prior_and_words_and_image_do(segmenter: Segmenter, batch: Any) -> None:
    seen = []
    for module in segmenter.side.stack:
        module.register_forward_hook(lambda _, given, __: seen.append(given[1]))
    segmenter(*batch[:2])
    assert len(seen) == 4 and all(prior.shape == (2, 5 + MAX_WORDS + 16, 24) for prior in seen)
    for prior in seen:
        assert not prior[:, :5].any()
        assert prior[:, 5 : 5 + MAX_WORDS].any() and prior[:, 5 + MAX_WORDS :].any()


@torch.no_grad()
def test_no_batch_mate_has_a_part_in_training_either(segmenter: Segmenter, batch: Any) -> None:
    image, ids, _ = batch
    segmenter.encoder.eval()
    together = segmenter.side(read(segmenter, image, ids), ids)
    rows = [slice(i, i + 1) for i in range(2)]
    alone = [segmenter.side(read(segmenter, image[row], ids[row]), ids[row]) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.std() > 1e-4


def test_padding_takes_no_part(tiny_segmenter: Make, batch: Any) -> None:
    image, ids, _ = batch  # 4 and 7 tokens
    segmenter = tiny_segmenter("joint", MODELS["frozen"]).eval()
    with torch.no_grad():
        features = read(segmenter, image, ids)
        wanted = segmenter.side(features, ids)
        shorter = segmenter.side(read(segmenter, image, ids[:, :7]), ids[:, :7])
        torch.testing.assert_close(shorter, wanted)
        words = torch.where((ids == 0)[..., None], 1e3, features.word_features)
        torch.testing.assert_close(
            segmenter.side(features._replace(word_features=words), ids), wanted
        )
        words = features.word_features.clone()
        words[0, 3] += 1  # the end token is no padding
        changed = segmenter.side(features._replace(word_features=words), ids)
    assert not torch.allclose(changed[0], wanted[0], atol=1e-6)
    torch.testing.assert_close(changed[1], wanted[1])


@pytest.mark.parametrize("name", ["bridger", "BarLeRIa"])
def test_no_gradient_reaches_the_towers(tiny_segmenter: Make, batch: Any, name: str) -> None:
    image, ids, _ = batch
    segmenter = tiny_segmenter("joint", MODELS[name]).train()
    features = read(segmenter, image, ids)
    assert features.word_features.requires_grad and features.joint_map.requires_grad
    assert not any(x.requires_grad for x in features.tap_maps)
    segmenter.side(features, ids).square().sum().backward()
    assert all(parameter.grad is None for parameter in segmenter.encoder.parameters())
    assert segmenter.side.queries.grad.any()


def test_a_seed_gives_all_the_rest_the_same_weights(
    segmenter: Segmenter, tiny_segmenter: Make
) -> None:
    without = tiny_segmenter("joint").state_dict()
    state = segmenter.state_dict()
    assert {key for key in state if not key.startswith("side.")} == without.keys()
    assert all(torch.equal(state[key], value) for key, value in without.items())


@pytest.mark.parametrize("everything", [False, True])
def test_a_checkpoint_holds_it(
    segmenter: Segmenter, tiny_config: Make, batch: Any, tmp_path: Path, everything: bool
) -> None:
    config, path = tiny_config("joint", {"side": GST}), tmp_path / "best.safetensors"
    torch.nn.init.normal_(segmenter.side.image_out.weight)
    save_checkpoint(path, segmenter, config, everything=everything)
    torch.manual_seed(8)
    loaded = load_segmenter(read_checkpoint(path))
    with torch.no_grad():
        wanted = segmenter.eval()(*batch[:2])
        assert torch.equal(loaded.eval()(*batch[:2]), wanted)
    values = config.to_dict()
    values["model"]["side"] = None
    with pytest.raises(ValueError, match=r"model\.side\b"):
        load_segmenter(read_checkpoint(path), Config.from_dict(values))


def test_positions_are_resized_for_another_image_size(
    segmenter: Segmenter, tiny_config: Make, tmp_path: Path
) -> None:
    config, path = tiny_config("joint", {"side": GST}), tmp_path / "best.safetensors"
    with torch.no_grad():
        segmenter.side.positions.copy_(
            torch.linspace(0, 3, 4)[:, None, None].expand(4, 4, 24).flatten(0, 1)
        )
    save_checkpoint(path, segmenter, config)
    values = config.to_dict()
    values["data"]["image_size"] = 96
    loaded = load_segmenter(read_checkpoint(path), Config.from_dict(values))
    rows = loaded.side.positions.detach().unflatten(0, (6, 6))
    assert rows.std(dim=1).max() < 1e-6  # all columns alike
    assert (rows[1:, 0, 0] > rows[:-1, 0, 0]).all()
    assert torch.equal(loaded.side.queries, segmenter.side.queries)
    values["model"]["side"] = GST | {"queries": 6}
    with pytest.raises(ValueError, match=r"model\.side\.queries is 5 in it and 6 in the config"):
        load_segmenter(read_checkpoint(path), Config.from_dict(values))
