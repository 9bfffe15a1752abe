"""LoRA: what it computes, on which Linears, and that these keep their names and weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model.adapters.lora import LoRA

ADAPTER = {"name": "lora", "rank": 2}


def random_lora(plain: nn.Linear, scale: float = 1.0) -> LoRA:
    lora = LoRA(plain, rank=2, scale=scale)
    nn.init.normal_(lora.up)
    return lora


@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_changes_by_a_low_rank(bias: bool) -> None:
    plain, x = nn.Linear(12, 8, bias=bias), torch.randn(3, 5, 12)
    lora = random_lora(plain, scale=0.5)
    change = 0.5 * lora.up @ lora.down
    wanted = nn.functional.linear(x, plain.weight + change, plain.bias)
    torch.testing.assert_close(lora(x), wanted)
    assert torch.linalg.matrix_rank(change) == 2


def test_the_plain_weights_are_shared_under_their_names() -> None:
    plain = nn.Linear(12, 8).requires_grad_(False)
    lora = LoRA(plain, rank=2, scale=1.0)
    assert lora.weight is plain.weight and lora.bias is plain.bias
    assert {name for name, p in lora.named_parameters() if p.requires_grad} == {"down", "up"}
    assert torch.equal(lora(torch.ones(12)), plain(torch.ones(12)))


@pytest.mark.parametrize(
    ("kind", "towers", "count"),
    [("vit", "both", 48), ("vit", "text", 24), ("resnet", "both", 26), ("resnet", "image", 2)],
)
def test_queries_and_values_of_the_towers(
    tiny_segmenter: Callable, kind: str, towers: str, count: int
) -> None:
    options = {"bridges": [], "adapters": [ADAPTER | {"towers": towers}]}
    clip = tiny_segmenter(kind, options).encoder.clip
    adapted = {name for name, module in clip.named_modules() if isinstance(module, LoRA)}
    assert len(adapted) == count
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj"}
    assert ("visual.attnpool.q_proj" in adapted) == (kind == "resnet")


def test_alpha_scales_by_the_rank(tiny_segmenter: Callable) -> None:
    clips = [
        tiny_segmenter("vit", {"adapters": [ADAPTER | options]}).encoder.clip
        for options in ({}, {"alpha": 8.0})
    ]
    scales = [clip.text.blocks[0].attention.branch.q_proj.scale for clip in clips]
    assert scales == [1.0, 4.0]
