"""The demo CLIPs' training: its batches, its losses by hand, and a run that stops and continues."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.backbones import read_weights, sizes_of_name, sizes_of_state
from tools import pretraining
from tools.pretraining import (
    Pretraining,
    PretrainingBatches,
    competition_loss,
    expression_loss,
    pretrain,
)
from utils.demo.language import STYLES
from utils.files import read_json_lines

OWNER = torch.tensor([0, 0, 1])  # two expressions about the first image, one about the second


def batches(**changes: Any) -> PretrainingBatches:
    values = {"stream": "train", "seed": 0, "batch_size": 16, "image_size": 64, "length": 3}
    return PretrainingBatches(**(values | changes))


def test_a_batch() -> None:
    batch = batches(attribute_batches=1)[1]
    texts, owner, unrelated = batch["expressions"], batch["owner"], batch["unrelated"]
    assert batch["image"].shape == (16, 3, 64, 64) and batch["image"].dtype == torch.uint8
    assert len(batch["captions"]) == 16
    assert len(texts) == len(owner) == len(batch["style"]) == len(batch["target"])
    assert owner.unique().tolist() == list(range(16))
    assert batch["target"].flatten(1).any(dim=1).all()  # every target can be seen
    assert len(batch["style"].unique()) > 1
    # an expression is no negative of its own scene, nor of one with the same expression
    assert not unrelated[owner, torch.arange(len(texts))].any()
    first = {text: int(owner[i]) for i, text in enumerate(texts)}
    assert not any(unrelated[first[text], column] for column, text in enumerate(texts))
    assert unrelated.float().mean() > 0.5


def test_streams_differ_and_repeat() -> None:
    first, again, other = batches()[0], batches()[0], batches(stream="held out")[0]
    assert torch.equal(first["image"], again["image"])
    assert first["expressions"] == again["expressions"]
    assert not torch.equal(first["image"], other["image"])
    attributes = batches(attribute_batches=1)[0]["style"].unique()
    assert attributes.tolist() == [STYLES.index("attribute")]


def test_expression_loss_ignores_what_happens_to_be_true() -> None:
    torch.manual_seed(0)
    cosine = torch.rand(2, 3, 5)
    unrelated = torch.tensor([[False, False, False], [True, False, False]])
    loss = expression_loss(cosine, OWNER, unrelated, torch.tensor(2.0))
    score = 2.0 * (20 * cosine).logsumexp(dim=2) / 20
    # the only false pair is the second image with the first expression
    over_images = -torch.log_softmax(score[:, 0], dim=0)[0] / 3
    rivals = torch.stack([score[1, 2], score[1, 0]])
    over_texts = -torch.log_softmax(rivals, dim=0)[0] / 3
    torch.testing.assert_close(loss, (over_images + over_texts) / 2)


def test_competition_is_won_by_patches_of_ones_own() -> None:
    cosine = torch.full((2, 3, 4), -1.0)
    cosine[0, 0, 0] = cosine[0, 1, 1] = cosine[1, 2, 2] = 1.0
    apart = competition_loss(cosine, OWNER, torch.tensor(20.0))
    cosine[0, 1] = cosine[0, 0]  # both expressions of the first image point at one patch
    together = competition_loss(cosine, OWNER, torch.tensor(20.0))
    assert apart < 1e-3
    torch.testing.assert_close(together, torch.tensor(2 / 3) * torch.tensor(2.0).log())


def options(folder: Path) -> Pretraining:
    folder.mkdir(exist_ok=True)
    return Pretraining(
        name="demo-resnet",
        output=folder / "clip.pt",
        steps=3,
        batch_size=2,
        lr=1e-3,
        seed=0,
        workers=0,
        attribute_steps=2,
        log_interval=1,
        eval_interval=2,
        device="cpu",
    )


def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "HELD_OUT", 2)
    whole, stopped = options(tmp_path / "whole"), options(tmp_path / "stopped")
    pretrain(whole)

    update, calls = pretraining.update, []

    def break_off(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(pretraining, "update", break_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped)
    monkeypatch.setattr(pretraining, "update", update)
    pretrain(stopped)

    ours, theirs = read_weights(whole.output), read_weights(stopped.output)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert sizes_of_state(ours) == sizes_of_name("demo-resnet")
    assert all(value.dtype == torch.float16 for value in ours.values())
    rows = read_json_lines(stopped.output.with_name("clip-pretraining.jsonl"))
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3]
    assert 0 <= rows[-1]["pointing"]["all"] <= 1
    assert not stopped.output.with_suffix(".resume").exists()
