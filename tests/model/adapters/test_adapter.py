"""Adapter: what it computes, where it stands, and the norms that train with it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model.adapters.adapter import AdaptedConv, Adapter
from model.adapters.common import TunedNorm
from model.backbones.blocks import PreNorm
from model.backbones.resnet import Bottleneck

ADAPTER = {"name": "adapter"}


def test_a_bottleneck_with_a_skip() -> None:
    adapter, x = Adapter(8, 2), torch.randn(3, 5, 8)
    down, _, up = adapter.change
    torch.testing.assert_close(adapter(x), x + up(nn.functional.gelu(down(x))))
    assert 0 < (adapter(x) - x).norm() < 0.01 * x.norm()
    assert not down.bias.any() and not up.bias.any() and down.weight.abs().max() <= 0.02


def test_a_map_is_adapted_before_the_convolution() -> None:
    plain, x = nn.Conv2d(8, 32, 1, bias=False), torch.randn(2, 8, 3, 3)
    adapted = AdaptedConv(plain, 2)
    torch.testing.assert_close(adapted(x), plain(x + adapted.change(x)))
    assert adapted.weight is plain.weight
    assert sum(parameter.numel() for parameter in adapted.change.parameters()) == 8 * 2 * 2 + 10


def test_a_norm_that_trains_is_the_norm_at_first() -> None:
    plain, x = nn.LayerNorm(8, eps=1e-3).requires_grad_(False), torch.randn(3, 8)
    nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    tuned = TunedNorm(plain)
    assert torch.equal(tuned(x), plain(x)) and tuned.weight is plain.weight
    nn.init.normal_(tuned.weight_change), nn.init.normal_(tuned.bias_change)
    moved = nn.LayerNorm(8, eps=1e-3)
    moved.weight = nn.Parameter(plain.weight + tuned.weight_change)
    moved.bias = nn.Parameter(plain.bias + tuned.bias_change)
    torch.testing.assert_close(tuned(x), moved(x))


@pytest.mark.parametrize(
    ("options", "halves"),
    [
        ({}, 48),
        ({"halves": "mlp"}, 24),
        ({"halves": "attention", "first_block": 3}, 18),
        ({"towers": "text", "first_block": 11}, 2),
    ],
)
def test_places_in_transformers(tiny_segmenter: Callable, options: dict, halves: int) -> None:
    clip = tiny_segmenter("vit", {"bridges": [], "adapters": [ADAPTER | options]}).encoder.clip
    adapted = [m for m in clip.modules() if isinstance(getattr(m, "after", None), Adapter)]
    assert len(adapted) == halves
    assert all(isinstance(half, PreNorm) and isinstance(half.norm, TunedNorm) for half in adapted)
    assert sum(isinstance(module, TunedNorm) for module in clip.modules()) == halves


def test_places_in_a_resnet(tiny_segmenter: Callable) -> None:
    options = {"bridges": [], "adapters": [ADAPTER | {"norms": False, "towers": "image"}]}
    clip = tiny_segmenter("resnet", options).encoder.clip
    blocks = [module for module in clip.modules() if isinstance(module, Bottleneck)]
    assert all(isinstance(block.conv3, AdaptedConv) for block in blocks)
    trains = {name for name, parameter in clip.named_parameters() if parameter.requires_grad}
    assert len(trains) == 4 * len(blocks) and all(".conv3.change." in name for name in trains)
