"""The scale test on few images: all its steps, and what it does with figures beyond the limits."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tools import scale_test
from tools.scale_test import main
from utils.data.datasets import DATASETS
from utils.prepare.refer import read_instances, read_refs

NUM_IMAGES = 60
FIGURES: dict[str, Any] = {
    "packing": {"seconds": 100.0, "peak_bytes": 11e8},
    "opening": {"seconds": 0.1, "bytes": 10**7, "own_bytes_after_items": 2 * 10**7},
    "bytes": {"packed": 40, "separate": 100},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, dict[str, Any]]:
    """Exit code, folder and figures of a run on a few images."""
    folder = tmp_path_factory.mktemp("scale")
    output = folder.parent / "scale.json"
    code = main(["--images", str(NUM_IMAGES), "--folder", str(folder), "--output", str(output)])
    return code, folder, json.loads(output.read_text())


def test_full_size_is_as_published() -> None:
    refs = scale_test.make_refs(scale_test.NUM_IMAGES)
    published = DATASETS["refcoco"].splits
    num_refs = Counter(ref["split"] for ref in refs)
    num_sentences: Counter[str] = Counter()
    for ref in refs:
        num_sentences[ref["split"]] += len(ref["sentences"])
    assert {split: (num_refs[split], num_sentences[split]) for split in published} == published
    assert len({(ref["split"], ref["image_id"]) for ref in refs}) == scale_test.NUM_IMAGES
    assert max(ref["ann_id"] for ref in refs) < scale_test.NUM_ANNOTATIONS


def test_files_belong_together(run: tuple[int, Path, dict[str, Any]]) -> None:
    folder = run[1]
    refs = read_refs(folder / "refcoco/refs(unc).p")
    instances = read_instances(folder / "refcoco/instances.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    annotations = {row["id"]: row for row in instances["annotations"]}
    assert len(sizes) == NUM_IMAGES and len(annotations) == len(instances["annotations"])
    share = NUM_IMAGES / scale_test.NUM_IMAGES
    assert len(annotations) == round(share * scale_test.NUM_ANNOTATIONS)
    assert all(annotations[ref["ann_id"]]["image_id"] == ref["image_id"] for ref in refs)
    assert len({ref["ref_id"] for ref in refs}) == len(refs)
    corners = [len(row["segmentation"][0]) / 2 for row in annotations.values()]
    assert 25 < np.mean(corners) < 29
    for row in list(annotations.values())[:50]:
        rles = coco_mask.frPyObjects(row["segmentation"], *sizes[row["image_id"]])
        assert coco_mask.area(rles).all()
    for path in (folder / "images/train2014").iterdir():
        assert path.stat().st_size > 4000


def test_a_small_run_measures_everything(run: tuple[int, Path, dict[str, Any]]) -> None:
    code, folder, found = run
    assert code == (1 if "MISSED" in {limit[-1] for limit in found["limits"]} else 0)
    assert len(found["limits"]) == 6
    splits = found["packing"]["splits"]
    assert sum(split["images"] for split in splits.values()) == found["images"] == NUM_IMAGES
    assert sum(split["refs"] for split in splits.values()) == pytest.approx(150, abs=3)
    packed = sum(path.stat().st_size for path in (folder / "lmdb").glob("*.lmdb"))
    images = sum(path.stat().st_size for path in (folder / "images/train2014").iterdir())
    assert found["bytes"]["packed"] == packed and images < found["bytes"]["separate"] < 5 * images
    assert found["packing"]["peak_bytes"] > 10_000_000
    assert {"commit", "command", "versions"} <= found.keys()


def test_its_own_folder_is_used_again_and_no_other(
    run: tuple[int, Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(scale_test, "measure", lambda folder, num_images: FIGURES)
    own = ["--images", "60", "--output", str(tmp_path / "scale.json"), "--folder"]
    assert main([*own, str(run[1])]) == 0
    assert [path.name for path in run[1].iterdir()] == [scale_test.MARK]
    other = tmp_path / "datasets"
    (other / "refcoco").mkdir(parents=True)
    assert main([*own, str(other)]) == 2
    assert str(other) in capsys.readouterr().err
    assert (other / "refcoco").is_dir()


@pytest.mark.parametrize(
    ("place", "value", "row"),
    [
        (("packing", "seconds"), 361.0, "packing, time .* 361 s .* 360 s"),
        (("packing", "peak_bytes"), 2.1e9, "packing, peaks .* MB .* 2000 MB"),
        (("bytes", "separate"), 85, r"packed over .* 47.059 % .* 45 %"),
        (("opening", "seconds"), 0.3, "opening, time .* 0.3 s .* 0.2 s"),
        (("opening", "bytes"), 2e8, "opening, more .* 200 MB .* 100 MB"),
        (("opening", "own_bytes_after_items"), 2e8, "100 items, .* 200 MB .* 100 MB"),
    ],
)
def test_a_missed_limit_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    place: tuple[str, str], value: Any, row: str,
) -> None:  # fmt: skip
    figures = {**FIGURES, place[0]: {**FIGURES[place[0]], place[1]: value}}
    output = tmp_path / "scale.json"
    monkeypatch.setattr(scale_test, "measure", lambda folder, num_images: figures)
    assert main(["--output", str(output)]) == 1
    (missed,) = (line for line in capsys.readouterr().out.splitlines() if "MISSED" in line)
    assert re.match(row, missed)
    assert [row[-1] for row in json.loads(output.read_text())["limits"]].count("MISSED") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "3"], "--images is 3;"),
        (["--images", "20000"], "--images is 20000;"),
        (["--output", "scale.txt"], "--output scale.txt"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_too_small_a_disk_is_an_error_before_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_test, "BYTES_AN_IMAGE", 10**15)
    folder = tmp_path / "scale"
    output = str(tmp_path / "scale.json")
    assert main(["--images", "60", "--folder", str(folder), "--output", output]) == 2
    assert "60,000,000,000,000,000" in capsys.readouterr().err
    assert not (folder / "images").exists()
