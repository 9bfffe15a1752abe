"""Masks from logits, and scores from intersections and unions, against numbers worked by hand."""

import random

import numpy as np
import pytest
import torch

from engine.metrics import Record, metrics_from_records, threshold_logit, threshold_mask


def record(intersection: int, union: int) -> Record:
    return Record(0, 1, 2, "a box", intersection, union)


def test_scores_by_hand() -> None:
    scores = metrics_from_records([record(1, 4), record(9, 10), record(6, 10)]).to_dict()
    assert scores["oIoU"] == pytest.approx(100 * 16 / 24)
    assert scores["mIoU"] == pytest.approx(100 * (0.25 + 0.9 + 0.6) / 3)
    hits = {"Pr@0.5": 2, "Pr@0.6": 1, "Pr@0.7": 1, "Pr@0.8": 1, "Pr@0.9": 0}  # 0.6 is not above 0.6
    assert {name: scores[name] for name in hits} == pytest.approx(
        {name: 100 * count / 3 for name, count in hits.items()}
    )
    assert (scores["intersection"], scores["union"], scores["count"]) == (16, 24, 3)
    assert set(metrics_from_records([]).to_dict().values()) == {0}


def test_an_empty_truth_is_missed_whatever_is_found() -> None:
    scores = metrics_from_records([record(0, 0), record(0, 6), record(4, 4)]).to_dict()
    assert (scores["mIoU"], scores["Pr@0.5"]) == (pytest.approx(100 / 3), pytest.approx(100 / 3))
    assert (scores["oIoU"], scores["count"]) == (40, 3)
    assert metrics_from_records([record(0, 0)]).to_dict()["oIoU"] == 0


def test_the_order_of_records_changes_no_bit() -> None:
    rng = random.Random(0)
    records = [record(rng.randrange(1000), 1000 + rng.randrange(1000)) for _ in range(500)]
    reference = metrics_from_records(records)
    for _ in range(5):
        rng.shuffle(records)
        assert metrics_from_records(records) == reference


@pytest.mark.parametrize("threshold", [1e-30, 1e-6, 0.1, 0.35, 0.5, 0.999, 1 - 1e-7])
def test_masks_are_those_of_probabilities(threshold: float) -> None:
    """On both sides of the edge, over the numbers next to it and over all sizes."""
    edge = np.float32(threshold_logit(threshold, torch.device("cpu")))
    bits = np.abs(edge).view(np.int32).astype(np.int64) + np.arange(-20_000, 20_000)
    near = np.sign(edge) * bits.clip(0, None).astype(np.int32).view(np.float32)
    logits = torch.cat([torch.from_numpy(near), torch.linspace(-120, 120, 9999)])
    mask = threshold_mask(logits, threshold)
    assert 0 < mask.sum() < len(mask)
    assert torch.equal(mask, logits.sigmoid() > threshold)


def test_nan_is_outside_and_nothing_exceeds_one() -> None:
    logits = torch.tensor([torch.nan, -torch.inf, torch.inf, 0, -0.0])
    assert threshold_mask(logits, 0.5).tolist() == [False, False, True, False, False]
    assert not threshold_mask(logits, 1 - 1e-12).any(), "1 in float32"
