"""REFER files as they exist: what can be joined is, code never runs, mistakes are named."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.datasets import DATASETS
from utils.data.store import decode_mask
from utils.prepare.annotations import Entry
from utils.prepare.masks import to_record
from utils.prepare.refer import read_instances, read_refs, refer_source

SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]
IMAGE = {"id": 9, "file_name": "x.jpg", "height": 20, "width": 30}


class Command:
    """What a pickle can do to its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def make_ref(**changes: Any) -> dict[str, Any]:
    """A reference as published; ``None`` takes a key away."""
    sentences = [{"raw": "A", "sent": "the star", "sent_id": 7, "tokens": ["the", "star"]}]
    ref = {"ref_id": 1, "ann_id": 5, "image_id": 9, "category_id": 2, "split": "val"}
    ref = {**ref, "file_name": "x_5.jpg", "sent_ids": [7], "sentences": sentences, **changes}
    return {key: value for key, value in ref.items() if value is not None}


def make_annotation(**changes: Any) -> dict[str, Any]:
    annotation = {"id": 5, "image_id": 9, "category_id": 2, "segmentation": SQUARE, "iscrowd": 0}
    return {key: value for key, value in (annotation | changes).items() if value != "none"}


def make_instances(**changes: Any) -> dict[str, Any]:
    categories = [{"id": 2, "name": "star"}]
    tables = {"images": [IMAGE], "annotations": [make_annotation()], "categories": categories}
    return tables | changes


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Entry]]:
    """Write the files of RefCOCO with these references and tables, and read them."""

    def write_and_read(refs: list[dict] | None = None, **tables: Any) -> list[Entry]:
        folder = tmp_path / "refcoco"
        folder.mkdir(exist_ok=True)
        (folder / "refs(unc).p").write_bytes(pickle.dumps(refs or [make_ref()], protocol=2))
        (folder / "instances.json").write_text(json.dumps(make_instances(**tables)))
        return refer_source(tmp_path, "refcoco").read()

    return write_and_read


def test_source_of_every_data_set(tmp_path: Path) -> None:
    for name, facts in DATASETS.items():
        source = refer_source(tmp_path, name)
        folder = tmp_path / facts.folder
        assert source.dataset == name and source.splits == tuple(facts.splits)
        assert source.files == (folder / facts.refs, folder / "instances.json")
        assert source.images == tmp_path / facts.images
        assert (source.image_store, source.published) == (facts.image_store, facts.splits)
        assert source.shares_images == (name == "refcocog_g")
    with pytest.raises(ValueError, match=r"no data set 'refcok'; known are demo, refcoco, "):
        refer_source(tmp_path, "refcok")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("dataset", "refs"),
    [
        ("refcoco+", "refcoco+/refs(unc).p"),
        ("refcocog_u", "refcocog/refs(umd).p"),
        ("refcocog_g", "refcocog/refs(google).p"),
        ("refcoco", "refcoco/refs(unc).json"),
        ("refcocog_g", "refcocog/refcocog/refs(google).p"),
    ],
)
def test_annotations_are_found(tmp_path: Path, dataset: str, refs: str) -> None:
    path = touch(tmp_path / refs)
    instances = touch(path.with_name("instances.json"))
    assert refer_source(tmp_path, dataset).files == (path, instances)


@pytest.mark.parametrize(
    "folder",
    ["images/train2014", "images/mscoco/images/train2014", "train2014", "coco/train2014"],
)
def test_images_are_found_below_the_root_or_below_another_folder(
    tmp_path: Path, folder: str
) -> None:
    touch(tmp_path / folder / "1.jpg")
    expected, elsewhere = tmp_path / folder, tmp_path / "elsewhere"
    assert refer_source(tmp_path, "refcoco").images == expected
    assert refer_source(elsewhere, "refcoco", images=tmp_path).images == expected
    assert refer_source(elsewhere, "refcoco", images=expected).images == expected
    assert refer_source(tmp_path, "refcoco", images=elsewhere).images == elsewhere
    assert refer_source(tmp_path, "demo").images == tmp_path / "demo/images"


def test_a_folder_without_images_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "images/train2014/readme.txt")
    touch(tmp_path / "images/train2014/val/1.jpg")
    touch(tmp_path / "train2014/1.jpg")
    assert refer_source(tmp_path, "refcoco").images == tmp_path / "train2014"


def test_entries_join_the_three_tables(read: Callable) -> None:
    (entry,) = read()
    record = to_record(entry)
    assert {key: value for key, value in record.items() if key != "rle"} == {
        "ref_id": 1, "ann_id": 5, "image_id": 9, "category_id": 2, "split": "val",
        "file_name": "x.jpg", "height": 20, "width": 30, "sentences": [[7, "the star"]],
    }  # fmt: skip
    expected = np.zeros((20, 30), bool)
    expected[3:13, 2:12] = True
    np.testing.assert_array_equal(decode_mask(record), expected)
    assert json.loads(json.dumps(record)) == record


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([make_ref(sentences=Command(trace))]))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p .*asks for posix\.system"):
        read_refs(path)
    assert not trace.exists()


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(3), Path("x"), print], ids=type)
def test_objects_of_any_class_are_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([make_ref(extra=value)]))
    with pytest.raises(ValueError, match="only plain data"):
        read_refs(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    refs = [make_ref(extra=(1, 2.5, None, True, {"a": [b"x"] if protocol > 2 else []}, 2**70))]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(refs, protocol=protocol))
    assert read_refs(path) == refs


def python_2_pickle(text: bytes) -> bytes:
    """Protocol 0 as Python 2 writes a reference whose one sentence is the operation ``text``."""
    numbers = b"".join(
        b"S'%s'\nI%d\ns" % (key, value)
        for key, value in ((b"ref_id", 1), (b"ann_id", 5), (b"image_id", 9), (b"category_id", 2))
    )
    sentence = b"(dp3\nS'sent'\n" + text + b"sS'sent_id'\nI7\ns"
    split = b"S'split'\nS'val'\nsS'sentences'\n(lp2\n" + sentence + b"as"
    return b"(lp0\n(dp1\n" + numbers + split + b"a."


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (b"S'caf\\xc3\\xa9'\n", "café"),  # str that holds UTF-8
        (b"S'caf\\xe9'\n", "café"),  # str that holds Latin-1
        (b"S'the man\\x92s hat'\n", "the man’s hat"),  # str from a Windows machine
        (b"S'\\x81'\n", "\x81"),  # which that machine cannot have written
        (b"Vcaf\\u00e9\n", "café"),  # unicode
        (b"V\\u00c3\\u00a9\n", "Ã©"),  # unicode that looks like UTF-8 and is not
        (b"U\x05caf\xc3\xa9", "café"),  # the same in protocol 1 and 2
        (b"X\x05\x00\x00\x00caf\xc3\xa9", "café"),
        (b"S'\xf0\\x9f\\x90\\x88'\n", "🐈"),
    ],
)
def test_text_of_python_2_becomes_what_was_written(
    tmp_path: Path, read: Callable, operation: bytes, expected: str
) -> None:
    read()
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(python_2_pickle(operation))
    (entry,) = refer_source(tmp_path, "refcoco").read()
    assert entry.record["sentences"] == [[7, expected]]


@given(position=st.integers(0, 500), value=st.integers(0, 255), is_cut=st.booleans())
def test_damage_is_named_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, is_cut: bool
) -> None:
    data = bytearray(pickle.dumps([make_ref()], protocol=2))
    position %= len(data)
    data[position] = value
    path = tmp_path_factory.mktemp("damaged") / "refs.p"
    path.write_bytes(bytes(data[:position] if is_cut else data))
    try:
        refs = read_refs(path)
    except ValueError as error:
        assert str(error).startswith(str(path))
    else:
        assert isinstance(refs, list)


@pytest.mark.parametrize("name", ["refs(unc).json", "refs(unc).p"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n  "])
def test_references_may_be_json(tmp_path: Path, read: Callable, name: str, mark: bytes) -> None:
    expected = read()
    (tmp_path / "refcoco" / "refs(unc).p").unlink()
    path = tmp_path / "refcoco" / name
    path.write_bytes(mark + json.dumps([make_ref()]).encode())
    source = refer_source(tmp_path, "refcoco")
    assert source.files[0] == path
    (entry,) = source.read()
    assert entry[:2] == expected[0][:2]


def test_a_pickle_goes_before_json(tmp_path: Path, read: Callable) -> None:
    read()
    (tmp_path / "refcoco" / "refs(unc).json").write_text("[]")
    assert len(refer_source(tmp_path, "refcoco").read()) == 1


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("refs.p", b"", "readable REFER"),
        ("refs.p", b"not a pickle", "readable REFER"),
        ("refs.p", pickle.dumps([make_ref()])[:-20], "readable REFER"),
        ("refs.p", pickle.dumps({"a": 1}), "list of references"),
        ("refs.json", b'{"a": 1}', "list of references"),
        ("refs.json", b"[1, 2]", "list of references"),
        ("refs.json", b"[{]", "readable JSON"),
        ("refs.p", pickle.dumps([{"split": "val"}]), "position 0 .*ann_id, image_id, ref_id, sent"),
        ("refs.p", pickle.dumps([make_ref(ann_id=None)]), "reference 1 has no ann_id"),
        ("instances.json", None, "missing"),
        ("instances.json", b"{", "readable JSON"),
        ("instances.json", b"[" * 100_000, "readable JSON"),
        ("instances.json", b'{"images": "\x80"}', "readable JSON"),
        ("instances.json", b"{}", "'images' and 'annotations'"),
        ("instances.json", b"[]", "'images' and 'annotations'"),
        ("instances.json", b'{"images": {}, "annotations": []}', "'images' and 'annotations'"),
    ],
)
def test_unreadable_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*{named}"):
        (read_instances if name == "instances.json" else read_refs)(path)


def test_only_the_wanted_annotations_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    annotations = [make_annotation(id=number) for number in (1, 2, "3", 3)]
    path.write_text(json.dumps(make_instances(annotations=annotations)))
    assert read_instances(path)["annotations"] == annotations
    assert read_instances(path, {3})["annotations"] == annotations[2:]
    assert read_instances(path, {3})["images"] == [IMAGE]


@pytest.mark.parametrize("absent", [[0], [1], [0, 1]])
def test_missing_files_are_named(tmp_path: Path, read: Callable, absent: list[int]) -> None:
    read()
    source = refer_source(tmp_path, "refcoco")
    paths = [source.files[number] for number in absent]
    for path in paths:
        path.unlink()
    with pytest.raises(ValueError, match=r"(is|are) missing") as caught:
        source.read()
    assert [str(path) in str(caught.value) for path in source.files] == [
        path in paths for path in source.files
    ]


def test_identifiers_may_be_text_or_whole_floats(read: Callable) -> None:
    ref = make_ref(ref_id="1", ann_id=" 5 ", image_id=9.0, category_id="2")
    ref["sentences"][0]["sent_id"] = "7"
    images = [IMAGE | {"id": "9", "height": "20", "width": 30.0}]
    annotations = [make_annotation(id="5", image_id="09")]
    (entry,) = read([ref], images=images, annotations=annotations)
    (expected,) = read()
    assert entry == expected
    assert all(type(value) is not float for value in entry.record.values())


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ({"sent": "  left man \n", "sent_id": 7}, "left man"),
        ({"sent": "the {red} one – “left” 猫", "sent_id": 7}, "the {red} one – “left” 猫"),
        ({"sent": "a  b\tc", "sent_id": 7}, "a  b\tc"),
        ({"raw": "Left Man. ", "sent_id": 7}, "Left Man."),
        ({"raw": "Left", "sent": None, "sent_id": 7}, "Left"),
        ({"raw": "Left", "sent": "left", "sent_id": 7}, "left"),
        ({"raw": "Left", "sent": "   ", "sent_id": 7}, ""),  # counted in the published numbers
    ],
)
def test_sentences_are_kept_as_they_are(read: Callable, sentence: dict, text: str) -> None:
    (entry,) = read([make_ref(sentences=[sentence])])
    assert entry.record["sentences"] == [[7, text]]


def test_sentences_without_identifiers_are_counted(read: Callable) -> None:
    refs = [
        make_ref(ref_id=4, sentences=["left ", {"raw": "a star"}]),
        make_ref(ref_id=2, sentences=[{"sent": "star"}]),
    ]
    found = [entry.record["sentences"] for entry in read(refs)]
    assert found == [[[1, "left"], [2, "a star"]], [[3, "star"]]]
    refs[1]["sentences"][0]["sent_id"] = 3
    with pytest.raises(ValueError, match=r"reference 4: a sentence has no sent_id, and other"):
        read(refs)


def test_the_image_entry_names_the_file(read: Callable) -> None:
    for written in ("x.jpg", "train2014/x.jpg", "../../x.jpg", "/etc/x.jpg", "C:\\coco\\x.jpg"):
        (entry,) = read([make_ref(file_name="y.jpg")], images=[IMAGE | {"file_name": written}])
        assert entry.record["file_name"] == "x.jpg"


@pytest.mark.parametrize(
    ("ref", "annotation", "tables", "expected"),
    [
        ({"category_id": 99}, {}, {}, 99),
        ({"category_id": 2}, {}, {"categories": []}, 2),
        ({"category_id": None}, {}, {}, 2),
        ({"category_id": None}, {"category_id": "none"}, {}, 0),
        ({}, {"category_id": "none"}, {}, 2),
    ],
)
def test_categories_need_not_be_known(
    read: Callable, ref: dict, annotation: dict, tables: dict, expected: int
) -> None:
    (entry,) = read([make_ref(**ref)], annotations=[make_annotation(**annotation)], **tables)
    assert entry.record["category_id"] == expected


@pytest.mark.parametrize("iscrowd", [0, 1, "none"])
@pytest.mark.parametrize("is_rle", [False, True])
def test_masks_are_read_whatever_iscrowd_says(read: Callable, is_rle: bool, iscrowd: Any) -> None:
    rle = {"size": [20, 30], "counts": [43, *[10, 10] * 9, 10, 367]}
    annotations = [make_annotation(segmentation=rle if is_rle else SQUARE, iscrowd=iscrowd)]
    mask = decode_mask(to_record(read(annotations=annotations)[0]))
    assert mask.sum() == 100 and mask[3:13, 2:12].all()


def test_two_references_of_one_annotation(read: Callable) -> None:
    one, two = read([make_ref(), make_ref(ref_id=2)])
    assert one.record["ann_id"] == two.record["ann_id"] == 5
    assert to_record(one)["rle"] == to_record(two)["rle"]


def test_equal_rows_may_be_duplicates(read: Callable) -> None:
    assert read(images=[IMAGE] * 2, annotations=[make_annotation()] * 2) == read()


def test_rows_that_nobody_names_are_not_looked_at(read: Callable) -> None:
    other = make_annotation(id=6, image_id="none", segmentation=[])
    image = {"id": 10, "file_name": "elsewhere/x.jpg"}
    assert read(images=[IMAGE, image], annotations=[other, make_annotation()]) == read()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ref_id": "x"}, "at position 0 (counted from 0): ref_id: 'x'"),
        ({"ref_id": 1.5}, "ref_id: 1.5"),
        ({"ref_id": True}, "ref_id: True"),
        ({"ref_id": "²"}, "ref_id: '²'"),
        ({"ann_id": [5]}, "1: ann_id: [5]"),
        ({"image_id": float("nan")}, "1: image_id: nan"),
        ({"category_id": "cat"}, "1: category_id: 'cat'"),
        ({"split": "dev"}, "1: split 'dev' is none of train, val, testA, testB"),
        ({"split": ["val"]}, "1: split ['val']"),
        ({"image_id": 3}, "1: image 3 or annotation 5"),
        ({"ann_id": 3}, "1: image 9 or annotation 3"),
        ({"sentences": []}, "1: sentences: []"),
        ({"sentences": "left"}, "1: sentences: 'left'"),
        ({"sentences": [3]}, "1: sentences[0]: 3"),
        ({"sentences": [{"sent_id": 1}]}, "1: sentences[0] has neither 'sent' nor 'raw'"),
        ({"sentences": [{"sent": 5, "sent_id": 1}]}, "1: sentences[0]: sent: 5"),
        ({"sentences": [{"sent": "a", "sent_id": "b"}]}, "1: sentences[0]: sent_id: 'b'"),
        ({"sentences": ["\ud83d"]}, "1: sentences[0]: '\\ud83d'"),
    ],
)
def test_wrong_references_are_named(
    tmp_path: Path, read: Callable, changes: dict, named: str
) -> None:
    path = tmp_path / "refcoco" / "refs(unc).p"
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{path}: reference ')}") as caught:
        read([make_ref(**changes)])
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "image", "named"),
    [
        *(({"segmentation": x}, {}, "annotation 5 of FILE") for x in ("none", None, [], {})),
        ({"image_id": 8}, {}, "image_id is 9, and annotation 5 of FILE belongs to image 8"),
        ({"image_id": None}, {}, "FILE: annotation 5: image_id: None"),
        ({"id": "none"}, {}, "FILE: annotations[0] has no id"),
        ({"id": None}, {}, "FILE: annotations[0]: id: None"),
        ({}, {"file_name": 3}, "FILE: image 9: file_name 3"),
        ({}, {"file_name": "a/.."}, "FILE: image 9: file_name 'a/..'"),
        ({}, {"file_name": ""}, "FILE: image 9: file_name ''"),
        ({}, {"height": 0}, "FILE: image 9: height 0"),
        ({}, {"width": "wide"}, "FILE: image 9: width: 'wide'"),
        ({}, {"width": "none"}, "FILE: image 9 has no width"),
        ({}, {"id": "none"}, "FILE: images[0] has no id"),
    ],
)
def test_wrong_annotations_and_images_are_named(
    tmp_path: Path, read: Callable, annotation: dict, image: dict, named: str
) -> None:
    path = tmp_path / "refcoco" / "instances.json"
    images = [{key: value for key, value in (IMAGE | image).items() if value != "none"}]
    with pytest.raises(ValueError, match=re.escape(named.replace("FILE", str(path)))):
        read(annotations=[make_annotation(**annotation)], images=images)


def test_duplicates_and_strange_rows_are_named(read: Callable) -> None:
    with pytest.raises(ValueError, match=r"reference 1: .*ref_id.* positions 0 and 2"):
        read([make_ref(), make_ref(ref_id=2), make_ref(ref_id="1")])
    with pytest.raises(ValueError, match=r"annotations\[1\]: duplicate id 5"):
        read(annotations=[make_annotation(), make_annotation(area=3)])
    with pytest.raises(ValueError, match=r"images\[1\]: duplicate id 9"):
        read(images=[IMAGE, IMAGE | {"width": 31}])
    with pytest.raises(ValueError, match=r"images\[1\] has no id"):
        read(images=[IMAGE, 5])


def test_images_of_one_name_in_two_folders_are_named(read: Callable) -> None:
    refs = [make_ref(), make_ref(ref_id=2, ann_id=6, image_id=10)]
    annotations = [make_annotation(), make_annotation(id=6, image_id=10)]
    images = [IMAGE | {"file_name": "a/x.jpg"}, IMAGE | {"id": 10, "file_name": "b/x.jpg"}]
    with pytest.raises(ValueError, match=r"image 10: .*'b/x\.jpg' and 'a/x\.jpg'"):
        read(refs, images=images, annotations=annotations)
