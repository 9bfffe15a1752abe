"""Scoring: what is counted, how often, and that nothing else changes the numbers."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeSegmenter, FakeSet
from torch import Tensor, nn

from engine import evaluator
from engine.evaluator import (
    Result,
    evaluate,
    evaluate_by,
    find_masks,
    predict_logits,
    sentences_per_pass,
)
from utils.distributed import Processes

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


class Oracle(nn.Module):
    """Answers with the letterboxed truth; it knows a sample by its image."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.known = [(item["image"], item["mask"]) for item in map(dataset.__getitem__, range(9))]

    def begin(self, image: Tensor) -> Tensor:
        return next(mask for known, mask in self.known if torch.equal(known, image[0]))

    def finish(self, masks: list[Tensor], ids: Tensor) -> Tensor:
        return 20.0 * torch.stack(masks)[:, None] - 10


class SharedSet(FakeSet):
    """Six sentences about three boxes in every picture, those of a picture far apart."""

    def picture(self, index: int) -> int:
        return index // 2 % (-(-len(self) // 6))

    def original(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = super().original(self.picture(index))
        return image, np.roll(mask, index // 2, axis=1)

    def info(self, index: int) -> Any:
        return super().info(index)._replace(file_name=f"{self.picture(index)}.jpg")


OPTIONS = {"threshold": 0.35, "batch_size": 4, "precision": "fp32", "processes": ALONE}


def score(segmenter: Any, dataset: Any, **options: Any) -> Result:
    return evaluate(segmenter, dataset, **(OPTIONS | options))


def test_the_truth_scores_nearly_all() -> None:
    dataset = FakeSet(9)
    result = score(Oracle(dataset), dataset)
    assert [record.index for record in result.records] == list(range(9))
    for record in result.records:
        truth = dataset.original(record.index)[1]
        assert record.iou > 0.7  # what is lost is lost to the resize to 32 pixels
        assert record.intersection <= truth.sum() <= record.union <= truth.size
    sample = dataset.info(3)
    row = asdict(result.records[3])
    assert (row["ref_id"], row["sentence_id"], row["sentence"]) == (1, 3, sample.sentence)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2), (8, 0)])
def test_neither_batches_nor_workers_change_the_numbers(batch_size: int, workers: int) -> None:
    torch.manual_seed(0)
    segmenter, dataset = FakeSegmenter(dropout=0.5, norm=True), SharedSet(27)
    reference = score(segmenter, dataset, batch_size=4)
    assert 0 < reference.metrics.intersection < reference.metrics.union
    assert score(segmenter, dataset, batch_size=batch_size, workers=workers) == reference


def test_each_process_counts_its_own_part() -> None:
    """The parts of three processes on the images of a set, put together, are the whole."""
    torch.manual_seed(0)
    segmenter, dataset = FakeSegmenter(), SharedSet(27)

    class Third(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value]

    parts = [
        score(segmenter, dataset, processes=Third(rank=rank, world_size=3, device=ALONE.device))
        for rank in range(3)
    ]
    assert [len(part.records) for part in parts] == [11, 10, 6]
    together = sorted((r for part in parts for r in part.records), key=lambda r: r.index)
    assert together == score(segmenter, dataset).records


def test_an_image_is_read_and_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, dataset = FakeSegmenter(), SharedSet(27)
    read, decoded, seen = [], [], []
    load, decode, encode = dataset.image, dataset.truth, segmenter.begin
    monkeypatch.setattr(dataset, "image", lambda index: read.append(index) or load(index))
    monkeypatch.setattr(dataset, "truth", lambda index: decoded.append(index) or decode(index))
    monkeypatch.setattr(segmenter, "begin", lambda x: seen.append(len(x)) or encode(x))
    score(segmenter, dataset)
    assert read == [0, 2, 4, 6, 8]
    assert sorted(decoded) == list(range(0, 27, 2))
    assert seen == [1] * 5


@pytest.mark.parametrize("protocol", ["native", "released"])
def test_the_masks_of_pictures_are_those_that_were_counted(protocol: str) -> None:
    torch.manual_seed(0)
    segmenter, dataset = FakeSegmenter(norm=True).eval(), SharedSet(27)
    records = score(segmenter, dataset, threshold=0.5, protocol=protocol).records
    chosen = [26, 0, 5, 6, 1, 12, 13, 20, 2, 3]
    options = {"threshold": 0.5, "precision": "fp32", "device": ALONE.device}
    options["protocol"] = protocol
    masks = find_masks(segmenter, dataset, chosen, **options)
    assert 0 < sum(mask.sum() for mask in masks) < sum(mask.size for mask in masks)
    for index, mask in zip(chosen, masks, strict=True):
        truth = dataset.truth(index)
        pixels = ((mask & truth).sum(), (mask | truth).sum())
        assert pixels == (records[index].intersection, records[index].union)
    assert find_masks(segmenter, dataset, [], **options) == []


@pytest.mark.parametrize("model", [None, {"bridges": []}])
def test_a_sentence_has_the_same_logits_whatever_it_passes_with(
    kind: str,
    model: dict | None,
    tiny_segmenter: Any,
    batch: tuple[Tensor, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slow path: one image and one sentence at a time, through the model's plain forward.

    Where a pass takes one sentence it is the same path; else only its size is another one.
    """
    segmenter = tiny_segmenter(kind, model).eval()
    image, (first, second), _ = batch
    ids = [torch.stack([first] * 9 + [second]), second[None]]
    options = {"precision": "fp32", "device": ALONE.device}
    together = predict_logits(segmenter, image, ids, **options)
    assert [len(one) for one in together] == [10, 1]
    monkeypatch.setattr(evaluator, "CPU_PIXELS", 0)
    one_by_one = predict_logits(segmenter, image, ids, **options)
    monkeypatch.undo()
    for i, sentences in enumerate(ids):
        for j, sentence in enumerate(sentences):
            one = image[i : i + 1], sentence[None]
            alone = predict_logits(segmenter, one[0], [one[1]], **options)[0][0]
            assert torch.equal(together[i][j], alone)
            with torch.no_grad():
                plain = segmenter(*one)[0, 0]
            assert torch.equal(one_by_one[i][j], plain)
            torch.testing.assert_close(together[i][j], plain)


def test_large_images_pass_with_one_sentence_on_a_cpu() -> None:
    sizes = [sentences_per_pass(side, ALONE.device) for side in (80, 160, 224, 320, 416, 640)]
    assert sizes == [8, 8, 4, 2, 1, 1]
    assert sentences_per_pass(416, torch.device("cuda")) == 8


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_in_its_mode_and_draws_nothing(training: bool) -> None:
    segmenter = FakeSegmenter(dropout=0.5).train(training)
    before = torch.get_rng_state()
    score(segmenter, FakeSet(3))
    assert segmenter.training is training and torch.equal(torch.get_rng_state(), before)


def test_a_higher_threshold_finds_less() -> None:
    segmenter, dataset = FakeSegmenter(), FakeSet(5)
    found = [score(segmenter, dataset, threshold=t).metrics.intersection for t in (0.01, 0.5, 0.99)]
    assert found == sorted(found, reverse=True) and found[0] > found[2]
    assert np.sum([dataset.original(i)[1].sum() for i in range(5)]) == found[0]


def test_several_protocols_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dataset, segmenter, calls = FakeSet(9), FakeSegmenter(), []
    finish = segmenter.finish
    monkeypatch.setattr(
        segmenter, "finish", lambda states, ids: calls.append(0) or finish(states, ids)
    )
    alone = {
        name: score(segmenter, dataset, protocol=name, threshold=0.5)
        for name in ("native", "released")
    }
    num_passes = len(calls) // 2
    calls.clear()
    together = evaluate_by(
        ["native", "released"], segmenter, dataset, **(OPTIONS | {"threshold": 0.5})
    )
    assert len(calls) == num_passes and together == alone
    assert alone["native"].records != alone["released"].records


def test_the_first_sentence_of_every_reference_alone() -> None:
    dataset, segmenter = SharedSet(9), FakeSegmenter()
    everything = score(segmenter, dataset)
    first = {}
    for record in everything.records:
        first.setdefault(record.ref_id, record)
    chosen = score(segmenter, dataset, first_sentences=True)
    assert chosen.records == list(first.values())
    assert 1 < len(chosen.records) < len(everything.records)
