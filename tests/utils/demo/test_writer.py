"""The demo on disk: RefCOCO's layout, and sentences that agree with what the files show."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from utils.data.store import decode_mask
from utils.demo import writer
from utils.demo.language import fits, parse
from utils.demo.scenes import COLOURS, KINDS, Object, Scene
from utils.demo.writer import write_demo
from utils.prepare.masks import to_record
from utils.prepare.refer import read_refs, refer_source

REF_KEYS = {
    "ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sent_ids", "sentences",
}  # fmt: skip


def read_records(root: Path) -> list[dict[str, Any]]:
    return [to_record(entry) for entry in refer_source(root, "demo").read()]


def read_all(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    sizes = {"num_train_objects": 12, "num_test_objects": 5}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo(tmp_path / name, seed=seed, **sizes)
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    assert read_all(tmp_path / "a") != read_all(tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_references_have_the_official_keys(demo_root: Path) -> None:
    refs = read_refs(demo_root / "demo" / "refs(unc).p")
    assert len({ref["ref_id"] for ref in refs}) == len(refs)
    for ref in refs:
        assert ref.keys() == REF_KEYS
        assert 2 <= len(ref["sentences"]) <= 4
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        texts = [sentence["sent"] for sentence in ref["sentences"]]
        assert len(set(texts)) == len(texts)
        for sentence in ref["sentences"]:
            assert sentence.keys() == {"raw", "sent", "sent_id", "tokens"}
            assert " ".join(sentence["tokens"]) == sentence["sent"]


def test_splits_share_no_image_and_keep_their_styles(demo_root: Path) -> None:
    records = read_records(demo_root)
    owner: dict[int, str] = {}
    styles: dict[str, set[str]] = {}
    for record in records:
        assert owner.setdefault(record["image_id"], record["split"]) == record["split"]
        for _, text in record["sentences"]:
            said = parse(text)
            style = "place" if said.place else "relation" if said.relation else "attribute"
            styles.setdefault(record["split"], set()).add(style)
    mixed = {"attribute", "place", "relation"}
    expected = {"testA": {"attribute"}, "testB": {"place", "relation"}}
    assert styles == {"train": mixed, "val": mixed, **expected}


def test_images_vary_in_shape_and_targets_are_large(demo_root: Path) -> None:
    records = read_records(demo_root)
    shapes = {(record["height"], record["width"]) for record in records}
    assert len(shapes) > 20
    assert min(map(min, shapes)) >= 96 and max(map(max, shapes)) <= 210
    assert {height > width for height, width in shapes} == {True, False}
    assert np.mean([decode_mask(record).mean() for record in records]) >= 0.06
    for record in records[:10]:
        image = cv2.imread(str(demo_root / "demo" / "images" / record["file_name"]))
        assert image.shape[:2] == (record["height"], record["width"])
        assert record["file_name"].startswith("COCO_train2014_")


def test_annotations_are_polygons_of_one_or_more_parts(demo_root: Path) -> None:
    instances = json.loads((demo_root / "demo" / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    parts = set()
    for annotation in instances["annotations"]:
        if annotation["iscrowd"]:
            continue
        parts.add(len(annotation["segmentation"]))
        rle = coco_mask.merge(
            coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        )
        assert annotation["area"] == coco_mask.area(rle)
        assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
    assert {1, 2} <= parts
    assert [category["name"] for category in instances["categories"]] == list(KINDS)


def test_run_lengths_hold_the_same_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    for name, share in (("polygons", 0.0), ("crowds", 1.0)):
        monkeypatch.setattr(writer, "RLE_SHARE", share)
        write_demo(tmp_path / name / "demo", num_train_objects=15, num_test_objects=2)
        masks.append([decode_mask(record) for record in read_records(tmp_path / name)])
        instances = json.loads((tmp_path / name / "demo" / "instances.json").read_text())
        assert {bool(row["iscrowd"]) for row in instances["annotations"]} == {bool(share)}
    for polygon, crowd in zip(*masks, strict=True):
        assert (polygon & crowd).sum() / (polygon | crowd).sum() > 0.93


def seen_scene(root: Path, image_id: int, instances: dict) -> tuple[Scene, list[int]]:
    """A scene as the files show it: kinds by category, colours and sizes by the pixels."""
    image = next(row for row in instances["images"] if row["id"] == image_id)
    height, width = image["height"], image["width"]
    pixels = cv2.imread(str(root / "images" / image["file_name"]))[..., ::-1]
    objects, ids = [], []
    for row in instances["annotations"]:
        if row["image_id"] != image_id:
            continue
        rle = coco_mask.frPyObjects(row["segmentation"], height, width)
        mask = coco_mask.decode(rle if isinstance(rle, dict) else coco_mask.merge(rle)) > 0
        seen = np.median(pixels[mask], axis=0)
        colour = min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())
        left, top, w, h = row["bbox"]
        size = "big" if max(w, h) > 0.43 * min(height, width) else "small"
        kind = KINDS[row["category_id"] - 1]
        center = (left + w / 2, top + h / 2)
        objects.append(Object(kind, colour, size, center, COLOURS[colour], ()))
        ids.append(row["id"])
    return Scene(height, width, tuple(objects), np.zeros((2, 2, 3), np.uint8), (0, 1, 0)), ids


def test_sentences_are_true_of_what_the_files_show(demo_root: Path) -> None:
    folder = demo_root / "demo"
    instances = json.loads((folder / "instances.json").read_text())
    results = []
    for record in read_records(demo_root):
        scene, ids = seen_scene(folder, record["image_id"], instances)
        for _, text in record["sentences"]:
            results.append(fits(parse(text), scene) == [ids.index(record["ann_id"])])
    # covered shapes look smaller and shifted, so not every one reads back from its pixels
    assert np.mean(results) > 0.96
