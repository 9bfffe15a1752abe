"""Masks by a comparison of logits: the same pixels as by probabilities."""

import numpy as np
import pytest
import torch

from engine.metrics import threshold_logit, threshold_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("threshold", [1e-30, 1e-6, 0.1, 0.35, 0.5, 0.999, 1 - 1e-7])
def test_the_edge_is_that_of_the_sigmoid(threshold: float) -> None:
    """On both sides of it, over the numbers next to it and over all sizes."""
    edge = np.float32(threshold_logit(threshold, CPU))
    bits = np.abs(edge).view(np.int32).astype(np.int64) + np.arange(-20_000, 20_000)
    near = np.sign(edge) * bits.clip(0, None).astype(np.int32).view(np.float32)
    logits = torch.cat([torch.from_numpy(near), torch.linspace(-120, 120, 9999)])
    mask = threshold_mask(logits, threshold)
    assert 0 < mask.sum() < len(mask)
    assert torch.equal(mask, logits.sigmoid() > threshold)


def test_what_is_no_number_and_what_no_sigmoid_exceeds() -> None:
    logits = torch.tensor([torch.nan, -torch.inf, torch.inf, 0, -0.0])
    assert threshold_mask(logits, 0.5).tolist() == [False, False, True, False, False]
    assert not threshold_mask(logits, 1 - 1e-12).any(), "1 in float32, which nothing exceeds"
