"""Zoom layers of Bridger: each by hand, its laws in a model, and the image size it belongs to."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.checkpoint import load_segmenter, read_checkpoint, save_checkpoint


def bridger(zoom: str) -> dict:
    return {"bridges": [{"name": "bridger", "dim": 8, "heads": 4, "zoom": zoom}]}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_interpolation_replaces_what_gets_finer(tiny_segmenter: Callable, stage: int) -> None:
    """Where a grid gets coarser or stays the convolution of ``deconv``, else both by hand."""
    segmenter = tiny_segmenter("resnet", bridger("interpolate"))
    part, width = segmenter.encoder.bridges[0].stages[stage], (32, 64, 128)[stage]
    grid = (8, 4, 2)[stage]
    x, narrow = torch.randn(2, width, grid, grid), torch.randn(2, 8, 4, 4)
    pairs = {part.zoom_in: (x, 4), part.zoom_out: (narrow, grid)}
    for module, (value, size) in pairs.items():
        (weight,) = module.parameters()
        if size > value.shape[2]:
            finer = F.interpolate(value, size, mode="bilinear", align_corners=False)
            expected = F.conv2d(finer, weight)
        else:
            expected = F.conv2d(value, weight, stride=value.shape[2] // size)
        assert expected.shape[2] == size
        torch.testing.assert_close(module(value), expected)


@pytest.mark.parametrize("zoom", ["linear", "mlp"])
def test_positions_are_mixed_where_channels_are_few(tiny_segmenter: Callable, zoom: str) -> None:
    """In and out of the first stage, 8 cells a side and 32 channels to 4 and 8, by sums."""
    stage = tiny_segmenter("resnet", bridger(zoom)).encoder.bridges[0].stages[0]
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter)

    def over_positions(layers: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if zoom == "linear":
            return torch.einsum("pq,bcq->bcp", layers.weight, x) + layers.bias
        hidden = torch.einsum("pq,bcq->bcp", layers[0].weight, x) + layers[0].bias
        return torch.einsum("pq,bcq->bcp", layers[2].weight, hidden.relu()) + layers[2].bias

    x, narrow = torch.randn(2, 32, 8, 8), torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        channels = stage.zoom_in.narrow
        y = torch.einsum("dc,bcq->bdq", channels.weight, x.flatten(2)) + channels.bias[:, None]
        y = over_positions(stage.zoom_in.positions, y).unflatten(2, (4, 4))
        torch.testing.assert_close(stage.zoom_in(x), y, rtol=1e-4, atol=1e-3)
        channels = stage.zoom_out.widen
        y = over_positions(stage.zoom_out.positions, narrow.flatten(2))
        y = torch.einsum("dc,bcq->bdq", channels.weight, y) + channels.bias[:, None]
        y = y.unflatten(2, (8, 8))
        torch.testing.assert_close(stage.zoom_out(narrow), y, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("zoom", ["linear", "mlp"])
def test_weights_for_another_image_size_are_refused(
    tiny_config: Callable, tiny_segmenter: Callable, zoom: str, tmp_path: Path
) -> None:
    path = tmp_path / "best.safetensors"
    config = tiny_config("resnet", bridger(zoom))
    save_checkpoint(path, tiny_segmenter("resnet", bridger(zoom)), config)
    load_segmenter(read_checkpoint(path), config)
    other = tiny_config("resnet", bridger(zoom), data={"image_size": 96})
    message = r"zoom_in\.positions.* of 64 pixels and this model takes 96; set data.image_size=64$"
    with pytest.raises(ValueError, match=message):
        load_segmenter(read_checkpoint(path), other)
