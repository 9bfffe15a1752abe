"""Parts of the decoder and the loss against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.backbones.blocks import sine, sine_grid
from model.decoder import Decoder, coordinates
from model.decoder.decoder import Projector
from model.loss import make_target, text_to_pixel_loss


def test_projector_mixes_then_convolves_each_sample_with_its_own_kernel():
    projector = Projector(8, 6).eval()
    nn.init.normal_(projector.kernel.weight)
    x, sentence = torch.randn(3, 8, 5, 5), torch.randn(3, 6)
    mixed = projector.mix(
        projector.finer(projector.upsample(projector.fine(projector.upsample(x))))
    )
    kernel = projector.kernel(sentence)
    weight, bias = kernel[:, :-1].view(3, 1, 4, 3, 3), kernel[:, -1:]
    wanted = torch.stack(
        [F.conv2d(mixed[i : i + 1], weight[i], bias[i], padding=1)[0] for i in range(3)]
    )
    torch.testing.assert_close(projector(x, sentence), wanted, rtol=1e-4, atol=1e-5)


def test_coordinates_run_from_corner_to_corner():
    x, y = coordinates(5)[0]
    assert x[0, 0] == y[0, 0] == -1 and x[-1, -1] == y[-1, -1] == 1
    assert x[0, -1] == 1 and y[0, -1] == -1


def test_sine_positions():
    positions = sine(10, 8)
    assert positions.shape == (10, 8)
    assert math.isclose(positions[3, 0], math.sin(3), abs_tol=1e-6)
    assert math.isclose(positions[3, 3], math.cos(3 * 10_000 ** (-2 / 8)), abs_tol=1e-6)
    grid = sine_grid(5, 16).unflatten(0, (5, 5))
    assert torch.equal(grid[1, 4, :8], sine(5, 8)[4])  # x
    assert torch.equal(grid[1, 4, 8:], sine(5, 8)[1])  # y


def test_loss_is_the_mean_over_both_classes():
    logits = torch.tensor([[[[2.0, -1.0], [0.5, 0.0]]]])
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :4] = 1  # the first cell
    mask[:, :4, 4:6] = 1  # half of the second: counts
    mask[:, 4:5, :4] = 1  # a quarter of the third: does not
    s = torch.sigmoid(logits).flatten()
    wanted = -(s[0].log() + s[1].log() + (1 - s[2]).log() + (1 - s[3]).log()) / 4
    torch.testing.assert_close(text_to_pixel_loss(logits, mask), wanted)


def test_the_released_target_is_the_grey_of_the_nearest_pixel():
    mask = torch.arange(49, dtype=torch.uint8).view(1, 7, 7)
    target = make_target(mask, (2, 2), "nearest")
    assert torch.equal(target, torch.tensor([[[[0.0, 3.0], [21.0, 24.0]]]]) / 255)
    logits = torch.tensor([[[[2.0, -1.0], [0.5, 0.0]]]])
    s = torch.sigmoid(logits)
    wanted = -(target * s.log() + (1 - target) * (1 - s).log()).mean()
    torch.testing.assert_close(text_to_pixel_loss(logits, mask, target="nearest"), wanted)


@pytest.mark.parametrize("options", [{}, {"neck": "fpn"}, {"neck": "plain"}, {"layers": 0}])
def test_what_a_decoder_reads(kind, tiny_segmenter, batch, options) -> None:
    """The plain neck reads the last map only, and without a transformer no word is read."""
    decoder = {"dim": 32, "layers": 1, "heads": 4, "feedforward": 32}
    segmenter = tiny_segmenter(kind, {"bridges": [], "decoder": decoder | options}).eval()
    image, ids, _ = batch
    with torch.no_grad():
        features = segmenter.encoder(image.float(), ids)
        logits = segmenter.decoder(features, ids)
        first, *rest = features.maps
        other_map = features._replace(maps=(torch.randn_like(first), *rest))
        other_words = features._replace(word_features=torch.randn_like(features.word_features))
        reads_maps = not segmenter.decoder(other_map, ids).equal(logits)
        reads_words = not segmenter.decoder(other_words, ids).equal(logits)
    assert reads_maps == (options.get("neck") != "plain")
    assert reads_words == (options.get("layers") != 0)


@pytest.mark.parametrize("neck", ["fpn", "plain"])
def test_a_neck_is_one_graph(kind, tiny_segmenter, batch, neck) -> None:
    image, ids, _ = batch
    segmenter = tiny_segmenter(kind, {"bridges": [], "decoder": {"neck": neck}}).eval()
    compiled = torch.compile(segmenter.decoder.neck, fullgraph=True, backend="eager")
    with torch.no_grad():
        features = segmenter.encoder(image.float(), ids)
        inputs = (*features.maps[:-1], features.joint_map), features.sentence
        torch.testing.assert_close(compiled(*inputs), segmenter.decoder.neck(*inputs))


def test_an_unknown_neck_is_named(tiny_segmenter) -> None:
    with pytest.raises(ValueError, match="no neck 'pyramid'"):
        Decoder(tiny_segmenter("vit").encoder.clip, grid=4, max_tokens=9, neck="pyramid")
