"""Scoring: what is counted, how often, and that nothing else changes the numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.evaluator import Result, evaluate
from utils.distributed import Processes

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


class Oracle(nn.Module):
    """Answers with the letterboxed truth; it knows a sample by its image."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.known = [(item["image"], item["mask"]) for item in map(dataset.__getitem__, range(9))]

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        masks = [next(m for i, m in self.known if torch.equal(i, one)) for one in image]
        logits = 20.0 * torch.stack(masks)[:, None] - 10
        return logits, logits.new_zeros(())


def score(segmenter: Any, dataset: Any, **options: Any) -> Result:
    defaults = {"threshold": 0.35, "batch_size": 4, "precision": "fp32", "processes": ALONE}
    return evaluate(segmenter, dataset, **(defaults | options))


def test_the_truth_scores_nearly_all(fake_set: Any) -> None:
    dataset = fake_set(9)
    result = score(Oracle(dataset), dataset)
    assert [record.index for record in result.records] == list(range(9))
    for record in result.records:
        truth = dataset.original(record.index)[1]
        assert record.iou > 0.7  # what is lost is lost to the resize to 16 pixels
        assert record.intersection <= truth.sum() <= record.union <= truth.size
    sample = dataset.info(3)
    row = result.records[3].to_dict()
    assert (row["ref_id"], row["sentence_id"], row["sentence"]) == (1, 3, sample.sentence)


def test_counts_are_those_of_masks_at_the_original_size(fake_set: Any, fake_segmenter: Any) -> None:
    class Nothing(fake_segmenter):
        def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full((len(image), 1, 4, 4), -9.0), image.new_zeros((), dtype=torch.float)

    dataset = fake_set(5)
    for record in score(Nothing(), dataset).records:
        assert (record.intersection, record.union) == (0, dataset.original(record.index)[1].sum())


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (8, 0)])
def test_neither_batches_nor_workers_change_the_numbers(
    fake_set: Any, fake_segmenter: Any, batch_size: int, workers: int
) -> None:
    torch.manual_seed(0)
    segmenter, dataset = fake_segmenter(dropout=0.5, norm=True), fake_set(7)
    reference = score(segmenter, dataset, batch_size=4)
    assert 0 < reference.metrics.intersection < reference.metrics.union
    assert score(segmenter, dataset, batch_size=batch_size, workers=workers) == reference


def test_each_process_counts_its_own_part(fake_set: Any, fake_segmenter: Any) -> None:
    """The parts of three processes on seven sentences, put together, are the whole."""
    torch.manual_seed(0)
    segmenter, dataset = fake_segmenter(), fake_set(7)

    class Third(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value]

    parts = [
        score(segmenter, dataset, processes=Third(rank=rank, world_size=3, device=ALONE.device))
        for rank in range(3)
    ]
    assert [len(part.records) for part in parts] == [3, 2, 2]
    together = sorted((r for part in parts for r in part.records), key=lambda r: r.index)
    assert together == score(segmenter, dataset).records


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_in_its_mode_and_draws_nothing(
    fake_set: Any, fake_segmenter: Any, training: bool
) -> None:
    segmenter = fake_segmenter(dropout=0.5).train(training)
    before = torch.get_rng_state()
    score(segmenter, fake_set(3))
    assert segmenter.training is training and torch.equal(torch.get_rng_state(), before)


def test_a_higher_threshold_finds_less(fake_set: Any, fake_segmenter: Any) -> None:
    segmenter, dataset = fake_segmenter(), fake_set(5)
    found = [score(segmenter, dataset, threshold=t).metrics.intersection for t in (0.01, 0.5, 0.99)]
    assert found == sorted(found, reverse=True) and found[0] > found[2]
    assert np.sum([dataset.original(i)[1].sum() for i in range(5)]) == found[0]
