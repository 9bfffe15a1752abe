"""Files as large as RefCOCO's: its counts at full size, and files that readers accept at any."""

import json
import pickletools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tools.bulk import IMAGES, NUM_ANNOTATIONS, plan_images, write_bulk
from utils.data.datasets import DATASETS
from utils.prepare.refer import read_instances, read_refs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 80 images."""
    root = tmp_path_factory.mktemp("bulk")
    write_bulk(root, num_images=80, workers=1)
    return root


def test_full_size_is_as_published() -> None:
    plan = plan_images()
    refs, sentences, images = Counter(), Counter(), Counter()
    for image in plan:
        images[image.split] += 1
        refs[image.split] += len(image.sentences)
        sentences[image.split] += sum(image.sentences)
    published = DATASETS["refcoco"].splits
    assert {split: (refs[split], sentences[split]) for split in published} == published
    assert images == IMAGES
    assert sum(image.num_annotations for image in plan) == NUM_ANNOTATIONS
    assert all(image.num_annotations > len(image.sentences) > 0 for image in plan)


def test_small_sizes_keep_every_split() -> None:
    for number in (8, 9, 61):
        plan = plan_images(number)
        assert len(plan) == number and {image.split for image in plan} == IMAGES.keys()


def test_files_belong_together(root: Path) -> None:
    refs = read_refs(root / "refcoco/refs(unc).p")
    instances = read_instances(root / "refcoco/instances.json")
    images = {image["id"]: image for image in instances["images"]}
    annotations = {row["id"]: row for row in instances["annotations"]}
    assert len(images) == 80 and len(annotations) == len(instances["annotations"])
    assert len(annotations) == pytest.approx(80 * NUM_ANNOTATIONS / sum(IMAGES.values()), abs=1)
    assert all(annotations[ref["ann_id"]]["image_id"] == ref["image_id"] for ref in refs)
    assert len({ref["ref_id"] for ref in refs}) == len(refs)
    spoken = [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]]
    assert sorted(spoken) == list(range(len(spoken)))
    for image in images.values():
        assert (root / "images/train2014" / image["file_name"]).stat().st_size > 4000


def test_masks_are_polygons_of_some_length_and_a_few_run_lengths(root: Path) -> None:
    instances = read_instances(root / "refcoco/instances.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    rows = instances["annotations"]
    crowds = [row for row in rows if row["iscrowd"]]
    assert 0 < len(crowds) < len(rows) / 20
    corners = [len(part) / 2 for row in rows if not row["iscrowd"] for part in row["segmentation"]]
    assert 24 < np.mean(corners) < 30
    for row in [*crowds, *rows[:50]]:
        encoded = coco_mask.frPyObjects(row["segmentation"], *sizes[row["image_id"]])
        rle = encoded if isinstance(encoded, dict) else coco_mask.merge(encoded)
        assert coco_mask.area(rle) > 0


def test_references_are_a_pickle_of_python_2(root: Path) -> None:
    data = (root / "refcoco/refs(unc).p").read_bytes()
    names = {code.name for code, _, _ in pickletools.genops(data)}
    assert "BINSTRING" in names and not any("UNICODE" in name for name in names)


def test_the_same_seed_writes_the_same(root: Path, tmp_path: Path) -> None:
    write_bulk(tmp_path, num_images=80, workers=2)
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    assert all((root / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)
    other = tmp_path / "other"
    write_bulk(other, num_images=80, seed=1, workers=1)
    first, second = (json.loads((r / "refcoco/instances.json").read_text()) for r in (root, other))
    assert first["annotations"] != second["annotations"]
