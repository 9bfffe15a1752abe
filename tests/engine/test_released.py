"""Released ETRIS checkpoints compute what they computed, and nothing else is taken for one."""

import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engine.released import load_released, read_released
from model import build_segmenter
from utils.config import load_config
from utils.data.tokenizer import tokenize

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
sys.path.insert(0, str(GOLDEN))
import stand_in  # noqa: E402

# models on the meta device: names and sizes alone are compared
pytestmark = pytest.mark.filterwarnings("ignore:.*which is a no-op")
SENTENCES = [
    "man in red shirt on the left",
    "the second giraffe from the right behind the fence",
]


def build(name: str):
    config = load_config(ROOT / f"config/{name}_released.yaml")
    return build_segmenter(config.model, image_size=416, max_words=17, load_weights=False)


def test_equals_the_released_code_on_stand_in_weights():
    segmenter = build("etris_vitb16").eval()
    load_released(segmenter, stand_in.state_dict("etris_vitb16"), "stand-in")
    golden = np.load(GOLDEN / "etris_vitb16.npz")
    images = [cv2.imread(str(GOLDEN / f"example_image{i}.png"))[..., ::-1] for i in (0, 1)]
    image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    ids, _ = tokenize(SENTENCES, 17)
    assert torch.equal(ids, torch.from_numpy(golden["ids"]).long())
    with torch.no_grad():
        logits, _ = segmenter(image, ids)
    wanted = torch.from_numpy(golden["logits"])
    assert (logits - wanted).abs().max() < 1e-4 * wanted.std()


@pytest.mark.parametrize("name", ["etris_rn50", "etris_rn101", "etris_vitb16"])
def test_every_key_of_a_released_checkpoint_is_used(name: str):
    with torch.device("meta"):
        segmenter = build(name)
    load_released(segmenter, stand_in.empty_state_dict(name), "stand-in")


@pytest.mark.parametrize(
    ("change", "message"),
    [("bridger.zoom_in.1.weight", "missing"), ("bridger.zoom_in.7.weight", "unexpected")],
)
def test_keys_that_differ_are_named(change: str, message: str):
    state = stand_in.empty_state_dict("etris_rn50")
    if state.pop(change, None) is None:
        state[change] = torch.zeros(1)
    with torch.device("meta"):
        segmenter = build("etris_rn50")
    with pytest.raises(ValueError, match=rf"stand-in: .*{message}"):
        load_released(segmenter, state, "stand-in")


@pytest.mark.parametrize("name", ["cris_rn50", "cris_rn101"])
def test_checkpoints_of_cris_are_refused(name: str):
    with torch.device("meta"):
        segmenter = build(name.replace("cris", "etris"))
    with pytest.raises(ValueError, match=r"keys are not those of a released ETRIS.*neck"):
        load_released(segmenter, stand_in.empty_state_dict(name), "stand-in")


def test_a_backbone_of_another_size_is_refused():
    with torch.device("meta"):
        segmenter = build("etris_rn101")
    with pytest.raises(ValueError, match=r"visual\.layer3"):
        load_released(segmenter, stand_in.empty_state_dict("etris_rn50"), "stand-in")


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
