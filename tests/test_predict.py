"""Run predict.py on folders, tables and damaged files, with an untrained model on a tiny CLIP."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from engine.prediction import load
from engine.prediction_io import KINDS

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "predict.py"))
torch.set_num_threads(1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """``pictures/``: a.png and a.jpg of different sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (20, 30, 3), "a.jpg": (40, 25)}.items():
        cv2.imwrite(str(folder / name), rng.integers(0, 256, shape, dtype=np.uint8))
    return folder


@pytest.fixture
def predict(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., int]:
    """Run predict.py into ``out/``; return its exit code."""

    def run(*words: str | Path) -> int:
        arguments = ["--checkpoint", tiny_checkpoint(), "--output", tmp_path / "out", *words]
        return SCRIPT["main"]([str(word) for word in arguments])

    return run


def index(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "predictions.json").read_text(encoding="utf-8"))


def test_every_output_of_a_folder_agrees_with_a_call(
    predict: Callable, tiny_checkpoint: Callable, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    texts = ["a star", "the ring"]
    words = [word for text in texts for word in ("--text", text)]
    segmenter = load(tiny_checkpoint(), device="cpu")
    threshold = float(np.median(segmenter.probability(pictures / "a.png", "a star")))
    assert {*KINDS, "rle"} == set(SCRIPT["KINDS"])
    saved = ["--save", *SCRIPT["KINDS"], "--threshold", str(threshold), "--device", "cpu"]
    assert predict("--image", pictures, *words, *saved) == 0
    segmenter.threshold = threshold
    rows = index(tmp_path)
    pairs = [(Path(row["image"]).name, row["sentence"]) for row in rows]
    assert pairs == [(name, text) for name in ("a.jpg", "a.png") for text in texts]
    files = [name for row in rows for name in row["files"].values()]
    assert len(set(files)) == 4 * 4 and files[0] == "a/1-mask.png"
    for row in rows:
        mask = segmenter(row["image"], row["sentence"])
        drawn = {
            kind: cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)
            for kind, name in row["files"].items()
        }
        assert np.array_equal(drawn["mask"] > 0, mask)
        assert np.array_equal(drawn["cutout"][:, :, 3] > 0, mask)
        assert np.array_equal(coco_mask.decode(row["segmentation"]), mask)
        assert row["area"] == mask.sum() and [row["height"], row["width"]] == list(mask.shape)
        assert drawn["probability"].dtype == np.uint16
    assert 0 < rows[2]["area"] < 600, "an empty or full mask proves little"
    assert capsys.readouterr().out.count("\n") == 4


def test_bad_files_get_a_line_and_the_others_are_segmented(
    predict: Callable[..., int], pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    table = tmp_path / "pairs.csv"
    table.write_text(
        "image,sentence\npictures/broken.jpg,a star\npictures/a.png,a star\n"
        "pictures/a.png,\npictures/none.png,a star\n"
    )
    assert predict("--pairs", table) == 1
    lines = capsys.readouterr().err.splitlines()
    for line, named in zip(lines, ("pairs.csv: line 4", "broken.jpg", "none.png"), strict=True):
        assert line.startswith("error: ") and named in line
    assert [row["files"]["mask"] for row in index(tmp_path)] == ["a/1-mask.png"]
    assert (tmp_path / "out" / "a" / "1-overlay.png").exists()
    assert predict("--image", pictures / "broken.jpg", "--text", "a star") == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--threshold", "1.5"], "eval.threshold"),
        (["--device", "gpu"], "'gpu'"),
        (["--device", "cuda:99"], "'cuda:99'"),
        (["--logits", "all.npy"], "all.npy"),
        (["--logits", "all.txt"], "all.txt"),
        (["--text", "  "], "--text number 2 is empty"),
    ],
)
def test_wrong_options_are_named(
    predict: Callable[..., int], pictures: Path, capsys: Any, words: list[str], named: str
) -> None:
    assert predict("--image", pictures, "--text", "a star", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--image", "a.png"], ["--pairs", "p.csv", "--text", "a"]])
def test_pictures_and_sentences_are_needed(
    predict: Callable[..., int], capsys: Any, words: list[str]
) -> None:
    with pytest.raises(SystemExit):
        predict(*words)
    assert "--text" in capsys.readouterr().err.splitlines()[-1]
