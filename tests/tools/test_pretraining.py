"""The demo CLIP's training: its losses by hand, and a run that stops and goes on."""

from pathlib import Path

import pytest
import torch

from model.backbones import read_weights, sizes_of_name, sizes_of_state
from tools import pretraining
from tools.pretraining import Pretraining, competition_loss, expression_loss, pretrain
from utils.files import read_json_lines

OWNER = torch.tensor([0, 0, 1])  # two expressions about the first image, one about the second


def test_expression_loss_ignores_what_happens_to_be_true():
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


def test_competition_is_won_by_patches_of_ones_own():
    cosine = torch.full((2, 3, 4), -1.0)
    cosine[0, 0, 0] = cosine[0, 1, 1] = cosine[1, 2, 2] = 1.0
    apart = competition_loss(cosine, OWNER, torch.tensor(20.0))
    cosine[0, 1] = cosine[0, 0]  # both expressions of the first image point at one patch
    together = competition_loss(cosine, OWNER, torch.tensor(20.0))
    assert apart < 1e-3
    torch.testing.assert_close(together, torch.tensor(2 / 3) * torch.tensor(2.0).log())


def options(folder: Path, **changes) -> Pretraining:
    values = {
        "name": "demo-resnet",
        "output": folder / "clip.pt",
        "steps": 4,
        "batch_size": 4,
        "lr": 1e-3,
        "seed": 0,
        "workers": 0,
        "attribute_steps": 2,
        "log_interval": 1,
        "eval_interval": 2,
        "device": "cpu",
    }
    return Pretraining(**(values | changes))


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pretraining, "HELD_OUT", 4)
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        folder.mkdir()
    pretrain(options(folders[0]))

    update = pretraining.update
    calls = []

    def break_off(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(pretraining, "update", break_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain(options(folders[1]))
    monkeypatch.setattr(pretraining, "update", update)
    pretrain(options(folders[1]))

    whole, stopped = (read_weights(folder / "clip.pt") for folder in folders)
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    assert sizes_of_state(whole) == sizes_of_name("demo-resnet")
    assert all(value.dtype == torch.float16 for value in whole.values())
    rows = read_json_lines(folders[1] / "clip-pretraining.jsonl")
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3, 4]
    assert 0 <= rows[-1]["pointing"]["all"] <= 1
    assert not (folders[1] / "clip.resume").exists()
