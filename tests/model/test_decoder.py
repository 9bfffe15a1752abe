"""Parts of the decoder and the loss against their formulas."""

import math

import torch
import torch.nn.functional as F

from model.clip.common import sine, sine_grid
from model.decoder import convolve, coordinates
from model.loss import text_to_pixel_loss


def test_convolve_is_a_convolution_per_sample():
    x, weight, bias = torch.randn(3, 4, 7, 5), torch.randn(3, 4, 3, 3), torch.randn(3)
    wanted = torch.stack(
        [F.conv2d(x[i : i + 1], weight[i : i + 1], bias[i : i + 1], padding=1)[0] for i in range(3)]
    )
    torch.testing.assert_close(convolve(x, weight, bias), wanted, rtol=1e-4, atol=1e-5)


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
