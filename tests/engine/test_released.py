"""Released ETRIS checkpoints compute what they computed, and nothing else is taken for one."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model import build_segmenter
from tools.released import load_released, read_released
from utils.config import load_config

ROOT = Path(__file__).parents[2]

# models on the meta device: names and sizes alone are compared
pytestmark = pytest.mark.filterwarnings("ignore:.*which is a no-op")


def build(name: str):
    config = load_config(ROOT / f"config/{name}_released.yaml")
    return build_segmenter(config.model, image_size=416, max_words=17, load_weights=False)


@pytest.mark.parametrize("name", ["etris_rn50", "etris_rn101", "etris_vitb16"])
def test_every_key_of_a_released_checkpoint_is_used(name: str, empty_state: Callable):
    with torch.device("meta"):
        segmenter = build(name)
    load_released(segmenter, empty_state(name), "stand-in")


@pytest.mark.parametrize(
    ("change", "message"),
    [("bridger.zoom_in.1.weight", "missing"), ("bridger.zoom_in.7.weight", "unexpected")],
)
def test_keys_that_differ_are_named(change: str, message: str, empty_state: Callable):
    state = empty_state("etris_rn50")
    if state.pop(change, None) is None:
        state[change] = torch.zeros(1)
    with torch.device("meta"):
        segmenter = build("etris_rn50")
    with pytest.raises(ValueError, match=rf"stand-in: .*{message}"):
        load_released(segmenter, state, "stand-in")


@pytest.mark.parametrize("name", ["cris_rn50", "cris_rn101"])
def test_checkpoints_of_cris_are_refused(name: str, empty_state: Callable):
    with torch.device("meta"):
        segmenter = build(name.replace("cris", "etris"))
    with pytest.raises(ValueError, match=r"keys are not those of a released ETRIS.*neck"):
        load_released(segmenter, empty_state(name), "stand-in")


def test_a_backbone_of_another_size_is_refused(empty_state: Callable):
    with torch.device("meta"):
        segmenter = build("etris_rn101")
    with pytest.raises(ValueError, match=r"visual\.layer3"):
        load_released(segmenter, empty_state("etris_rn50"), "stand-in")


def test_reads_what_the_released_training_saves(tmp_path: Path):
    path = tmp_path / "best_model.pth"
    content = {
        "epoch": 50,
        "cur_iou": np.float64(0.7),
        "prec": {"Pr@50": np.float32(0.8)},
        "state_dict": {"module.neck.txt_proj.bias": torch.ones(2)},
        "scheduler": {"milestones": Counter({35: 1})},
    }
    torch.save(content, path)
    assert torch.equal(read_released(path)["neck.txt_proj.bias"], torch.ones(2))


def test_code_in_a_released_checkpoint_is_not_run(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {}, "prec": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth: cannot be read"):
        read_released(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()
