"""Conv-Adapter: what it computes and where it stands in either kind of image tower."""

from collections.abc import Callable

import torch
from torch import nn

from model.adapters.conv_adapter import ConvAdapter, ConvBesideConv
from model.backbones.resnet import Bottleneck

ADAPTER = {"name": "conv_adapter"}


def test_a_bottleneck_beside_a_convolution() -> None:
    plain, x = nn.Conv2d(8, 8, 3, padding=1, bias=False), torch.randn(2, 8, 5, 5)
    adapted = ConvBesideConv(plain, 2)
    down, _, up = adapted.change
    torch.testing.assert_close(adapted(x), plain(x) + up(nn.functional.gelu(down(x))))
    assert adapted.weight is plain.weight
    assert down.weight.shape == (2, 8, 1, 1) and up.weight.shape == (8, 2, 1, 1)


def test_every_bottleneck_of_a_resnet(tiny_segmenter: Callable) -> None:
    clip = tiny_segmenter("resnet", {"bridges": [], "adapters": [ADAPTER]}).encoder.clip
    blocks = [module for module in clip.modules() if isinstance(module, Bottleneck)]
    assert len(blocks) == 5 and all(isinstance(block.conv2, ConvBesideConv) for block in blocks)
    assert not any(parameter.requires_grad for parameter in clip.text.parameters())


def test_the_shortcut_of_every_mlp_of_a_vit(tiny_segmenter: Callable) -> None:
    clip = tiny_segmenter("vit", {"bridges": [], "adapters": [ADAPTER]}).encoder.clip
    assert all(isinstance(block.mlp.shortcut, ConvAdapter) for block in clip.visual.blocks)
    block, x = clip.visual.blocks[0].mlp, torch.randn(2, 5, 64)
    torch.testing.assert_close(block(x), x + block.shortcut.change(x) + block.branch(block.norm(x)))
    assert sum(isinstance(module, ConvAdapter) for module in clip.modules()) == 12
