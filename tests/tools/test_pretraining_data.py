"""Batches for the demo CLIPs: whose expressions are true of what, and the same numbers again."""

import torch

from tools.pretraining_data import PretrainingBatches
from utils.demo.language import STYLES


def batches(**changes) -> PretrainingBatches:
    values = {"stream": "train", "seed": 0, "batch_size": 16, "image_size": 64, "length": 3}
    return PretrainingBatches(**(values | changes))


def test_an_item():
    item = batches()[1]
    texts, owner = item["expressions"], item["owner"]
    assert item["image"].shape == (16, 3, 64, 64) and item["image"].dtype == torch.uint8
    assert len(item["captions"]) == 16
    assert len(texts) == len(owner) == len(item["style"]) == len(item["target"])
    assert owner.unique().tolist() == list(range(16))
    assert item["target"].flatten(1).any(dim=1).all()  # every target can be seen


def test_own_and_equal_expressions_are_never_negatives():
    item = batches()[1]
    texts, owner, unrelated = item["expressions"], item["owner"], item["unrelated"]
    assert not unrelated[owner, torch.arange(len(texts))].any()
    first = {text: int(owner[i]) for i, text in enumerate(texts)}
    for column, text in enumerate(texts):
        assert not unrelated[first[text], column]
    assert unrelated.float().mean() > 0.5


def test_streams_are_apart_and_repeat():
    first, again, other = batches()[0], batches()[0], batches(stream="held out")[0]
    assert torch.equal(first["image"], again["image"])
    assert first["expressions"] == again["expressions"]
    assert not torch.equal(first["image"], other["image"])


def test_attributes_come_first():
    stream = batches(attribute_batches=1)
    assert stream[0]["style"].unique().tolist() == [STYLES.index("attribute")]
    assert len(stream[1]["style"].unique()) > 1
