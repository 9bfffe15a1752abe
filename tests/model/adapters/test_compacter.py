"""Compacter: its layers as sums of Kronecker products, what they share, and where they stand."""

import copy
from collections.abc import Callable

import pytest
import torch

from model.adapters.common import TunedNorm
from model.adapters.compacter import Compacter, Hypercomplex, MapCompacter, SlowWeights
from model.backbones.blocks import PreNorm
from model.backbones.slots import Residual

ADAPTER = {"name": "compacter"}


def random_layer(divisions: int, rank: int) -> Hypercomplex:
    torch.manual_seed(0)
    layer = Hypercomplex(24, 12, SlowWeights(divisions), rank).double()
    layer.slow[0].double()
    for parameter in (*layer.parameters(), layer.slow[0].weight):
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize(("divisions", "rank"), [(1, 1), (2, 3), (4, 1)])
def test_a_layer_is_a_sum_of_kronecker_products(divisions: int, rank: int) -> None:
    layer = random_layer(divisions, rank)
    fast = layer.s @ layer.t.mT  # (divisions, 12 / divisions, 24 / divisions)
    weight = sum(torch.kron(a, b) for a, b in zip(layer.slow[0].weight, fast, strict=True))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)


def test_a_map_is_adapted_cell_by_cell() -> None:
    torch.manual_seed(0)
    adapter, x = MapCompacter(16, 4, SlowWeights(4), 1), torch.randn(2, 16, 3, 5)
    tokens = x.flatten(2).mT
    torch.testing.assert_close(adapter(x).flatten(2).mT, Compacter.forward(adapter, tokens))
    assert 0 < (adapter(x) - x).norm() < 0.01 * x.norm()


@pytest.mark.parametrize(("kind", "halves", "maps"), [("vit", 48, 0), ("resnet", 24, 5)])
def test_every_residual_sum_shares_the_slow_weights(
    tiny_segmenter: Callable, kind: str, halves: int, maps: int
) -> None:
    clip = tiny_segmenter(kind, {"bridges": [], "adapters": [ADAPTER]}).encoder.clip
    sums = [module for module in clip.modules() if isinstance(module, Residual)]
    assert all(isinstance(residual.after, Compacter) for residual in sums)
    assert all(isinstance(s.norm, TunedNorm) for s in sums if isinstance(s, PreNorm))
    assert [sum(type(s.after) is k for s in sums) for k in (Compacter, MapCompacter)] == [
        halves,
        maps,
    ]
    layers = [module for module in clip.modules() if isinstance(module, Hypercomplex)]
    assert all(layer.slow[0] is clip.slow_weights for layer in layers)
    assert [name for name in clip.state_dict() if "slow" in name] == ["slow_weights.weight"]
    twin = copy.deepcopy(clip)
    copied = [module for module in twin.modules() if isinstance(module, Hypercomplex)]
    assert all(layer.slow[0] is twin.slow_weights for layer in copied)
