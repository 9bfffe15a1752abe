"""Names that never collide, and what the files hold."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from engine.prediction_outputs import KINDS, box_of, coco_rle, describe, folder_names, write_png

IMAGE = np.random.default_rng(0).integers(1, 256, (9, 12, 3), dtype=np.uint8)
MASK = np.zeros((9, 12), bool)
MASK[2:5, 3:9] = True
PROBABILITY = np.where(MASK, np.float32(0.75), np.float32(0.1))


def test_no_two_pictures_share_a_folder() -> None:
    paths = ["x/a.jpg", "y/a.png", "A.jpg", "a-2.jpg", "predictions.json.png", "a-2-2.gif"]
    names = folder_names(Path(path) for path in paths)
    assert names == ["a", "a-2", "A-3", "a-2-2", "predictions.json-2", "a-2-2-2"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("..", "picture"),
        (". .", "_"),
        ("a b:c*d\\e\n", "a_b_c_d_e_"),
        ("größe", "größe"),
        ("图" * 99, "图" * 40),
    ],
)
def test_names_are_safe(stem: str, name: str) -> None:
    assert folder_names([Path(f"{stem}.png")]) == [name]


def read(folder: Path, kind: str) -> np.ndarray:
    write_png(folder / "drawn.png", KINDS[kind](IMAGE, MASK, PROBABILITY))
    return cv2.imread(str(folder / "drawn.png"), cv2.IMREAD_UNCHANGED)


def test_files_hold_what_they_say(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, "mask"), MASK * np.uint8(255))
    probability = read(tmp_path, "probability")
    assert probability.dtype == np.uint16
    assert np.allclose(probability / 65535, PROBABILITY, atol=1e-5)
    cutout = cv2.cvtColor(read(tmp_path, "cutout"), cv2.COLOR_BGRA2RGBA)
    assert np.array_equal(cutout[MASK], np.insert(IMAGE[MASK], 3, 255, axis=1))
    assert not cutout[~MASK].any()
    overlay = cv2.cvtColor(read(tmp_path, "overlay"), cv2.COLOR_BGR2RGB)
    assert np.array_equal(overlay[3, 4:8], IMAGE[3, 4:8])
    assert np.array_equal(overlay[0], IMAGE[0] // 3)


def test_run_lengths_and_boxes_are_those_of_coco() -> None:
    rle = coco_rle(MASK)
    assert isinstance(rle["counts"], str) and np.array_equal(coco_mask.decode(rle), MASK)
    assert box_of(MASK) == coco_mask.toBbox(rle).tolist() == [3, 2, 6, 3]
    assert describe(MASK) == "16.7 % of the picture, x 3 to 8, y 2 to 4"
    assert box_of(MASK & False) is None and describe(MASK & False) == "nothing found"
