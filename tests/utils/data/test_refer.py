"""REFER files: plain data alone is read, masks are COCO's, mistakes are named."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from utils.data.refer import (
    DATASETS,
    annotation_mask,
    check_split,
    dataset_facts,
    decode_mask,
    read_instances,
    read_records,
    read_refs,
)


class Command:
    """What a pickle can do to its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def make_ref(**changes: Any) -> dict[str, Any]:
    sentences = [{"raw": "A", "sent": "the star", "sent_id": 7, "tokens": ["the", "star"]}]
    ref = {"ref_id": 1, "ann_id": 5, "image_id": 9, "category_id": 2, "split": "val"}
    return {**ref, "file_name": "x_5.jpg", "sent_ids": [7], "sentences": sentences, **changes}


def write_files(root: Path, refs: list[dict], segmentation: Any, dataset: str = "refcoco") -> None:
    folder = root / DATASETS[dataset].folder
    folder.mkdir(parents=True)
    (folder / DATASETS[dataset].refs).write_bytes(pickle.dumps(refs, protocol=2))
    image = {"id": 9, "file_name": "x.jpg", "height": 20, "width": 30}
    annotation = {"id": 5, "image_id": 9, "category_id": 2, "segmentation": segmentation}
    instances = {"images": [image], "annotations": [annotation]}
    (folder / "instances.json").write_text(json.dumps(instances))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([make_ref(sentences=Command(trace))]))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p .*system"):
        read_refs(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "value",
    [np.float64(1.0), np.zeros(3), Path("x"), print],
    ids=lambda value: type(value).__name__,
)
def test_objects_of_any_class_are_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([make_ref(extra=value)]))
    with pytest.raises(ValueError, match="only plain data is read"):
        read_refs(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    refs = [make_ref(extra=(1, 2.5, None, True, {"a": [b"x"] if protocol > 2 else []}, 2**70))]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(refs, protocol=protocol))
    assert read_refs(path) == refs


def test_text_of_python_2_is_read_as_latin_1(tmp_path: Path) -> None:
    numbers = b"".join(
        b"S'%s'\nI%d\ns" % (key, value)
        for key, value in ((b"ref_id", 1), (b"ann_id", 2), (b"image_id", 3), (b"category_id", 4))
    )
    text = b"S'split'\nS'val'\nsS'sentences'\n(lp2\nS'caf\\xe9'\nas"
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp0\n(dp1\n" + numbers + text + b"a.")
    assert read_refs(path)[0]["sentences"] == ["café"]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([make_ref()])[:-20]])
def test_damaged_pickles_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\.p is no readable REFER file"):
        read_refs(path)


def test_pickles_of_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="no list of references"):
        read_refs(path)
    path.write_bytes(pickle.dumps([{"ref_id": 1, "ann_id": 2}]))
    with pytest.raises(ValueError, match="reference 0 has no category_id, image_id"):
        read_refs(path)


def test_missing_and_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"refcoco/refs\(unc\)\.p is missing"):
        read_records(tmp_path, "refcoco")
    path = tmp_path / "instances.json"
    with pytest.raises(ValueError, match=r"instances\.json is missing"):
        read_instances(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="no readable JSON"):
        read_instances(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no COCO 'images'"):
        read_instances(path)


def test_records_join_the_three_tables(tmp_path: Path) -> None:
    square = [[2, 3, 12, 3, 12, 13, 2, 13]]
    write_files(tmp_path, [make_ref()], square)
    (record,) = read_records(tmp_path, "refcoco")
    assert record["file_name"] == "x.jpg"
    assert (record["height"], record["width"]) == (20, 30)
    assert record["sentences"] == [[7, "the star"]]
    expected = np.zeros((20, 30), bool)
    expected[3:13, 2:12] = True
    np.testing.assert_array_equal(decode_mask(record), expected)
    assert json.loads(json.dumps(record)) == record


def test_overlapping_parts_count_once() -> None:
    parts = [[2, 3, 12, 3, 12, 13, 2, 13], [7, 3, 17, 3, 17, 13, 7, 13]]
    mask = coco_mask.decode(annotation_mask({"segmentation": parts}, 20, 30))
    assert set(np.unique(mask)) == {0, 1} and mask.sum() == 150


def test_run_lengths_of_crowds_are_read_in_both_forms() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[3:13, 2:12] = 1
    counts, column = [43], 10
    for _ in range(9):
        counts += [column, 20 - column]
    counts += [10, 600 - sum(counts) - 10]
    plain = annotation_mask({"segmentation": {"counts": counts, "size": [20, 30]}}, 20, 30)
    np.testing.assert_array_equal(coco_mask.decode(plain), mask)
    packed = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": packed["size"], "counts": packed["counts"].decode()}
    again = annotation_mask({"segmentation": text}, 20, 30)
    np.testing.assert_array_equal(coco_mask.decode(again), mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, "split 'dev' is none of train, val, testA, testB"),
        ({"image_id": 3}, "image 3 or annotation 5 is not in"),
        ({"ann_id": 3}, "image 9 or annotation 3 is not in"),
        ({"sentences": []}, "reference 1 has no sentence"),
    ],
)
def test_files_that_do_not_fit_together_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_files(tmp_path, [make_ref(**changes)], [[2, 3, 12, 3, 12, 13]])
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path, "refcoco")


def test_facts_of_the_data_sets() -> None:
    assert [facts.max_words for facts in DATASETS.values()] == [17, 17, 17, 22, 22]
    assert list(DATASETS["refcocog_u"].splits) == ["train", "val", "test"]
    assert list(DATASETS["refcocog_g"].splits) == ["train", "val"]
    with pytest.raises(ValueError, match="known are demo, refcoco, "):
        dataset_facts("refcok")
    with pytest.raises(ValueError, match=r"it has train, val, test$"):
        check_split("refcocog_u", "testA")
