"""Files are found where users of CRIS, ETRIS, LAVT and REFER have them."""

from pathlib import Path

import pytest

from utils.prepare.locate import Located, locate

NAME = "COCO_train2014_000000000009.jpg"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("dataset", "refs"),
    [
        ("refcoco", "refcoco/refs(unc).p"),
        ("refcoco+", "refcoco+/refs(unc).p"),
        ("refcocog_u", "refcocog/refs(umd).p"),
        ("refcocog_g", "refcocog/refs(google).p"),
        ("refcoco", "refcoco/refs(unc).json"),
        ("refcocog_g", "refcocog/refcocog/refs(google).p"),
    ],
)
def test_annotations(tmp_path: Path, dataset: str, refs: str) -> None:
    path = touch(tmp_path / refs)
    assert locate(tmp_path, dataset) == Located(path, None, None)
    instances = touch(path.with_name("instances.json"))
    assert locate(tmp_path, dataset) == Located(path, instances, None)


def test_the_pickle_comes_before_the_json(tmp_path: Path) -> None:
    touch(tmp_path / "refcoco/refs(unc).json")
    pickle = touch(tmp_path / "refcoco/refs(unc).p")
    assert locate(tmp_path, "refcoco").refs == pickle


@pytest.mark.parametrize(
    "folder",
    ["images/train2014", "images/mscoco/images/train2014", "train2014", "coco/train2014"],
)
def test_images_below_the_root_or_below_another_folder(tmp_path: Path, folder: str) -> None:
    touch(tmp_path / folder / NAME)
    expected = tmp_path / folder
    assert locate(tmp_path, "refcoco").images == expected
    assert locate(tmp_path / "elsewhere", "refcoco", tmp_path).images == expected
    assert locate(tmp_path / "elsewhere", "refcoco", expected).images == expected


def test_a_folder_without_images_is_none(tmp_path: Path) -> None:
    touch(tmp_path / "images/train2014/readme.txt")
    touch(tmp_path / "images/train2014/val/000000000009.jpg")
    assert locate(tmp_path, "refcoco").images is None
    touch(tmp_path / "train2014" / NAME)
    assert locate(tmp_path, "refcoco").images == tmp_path / "train2014"


def test_images_that_are_named_are_searched_nowhere_else(tmp_path: Path) -> None:
    touch(tmp_path / "images/train2014" / NAME)
    assert locate(tmp_path, "refcoco", tmp_path / "other").images is None


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data set 'refclef'"):
        locate(tmp_path, "refclef")
