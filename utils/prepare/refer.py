"""REFER annotations (Yu et al., 2016): references, their sentences, and COCO masks, joined."""

import contextlib
import gc
import reprlib
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from utils.data.datasets import dataset_facts
from utils.prepare.annotations import Entry, Source
from utils.prepare.fields import number_sentences, read_sentences, whole_number
from utils.prepare.refer_files import read_instances, read_refs, repaired

Row = dict[str, Any]
NO_CATEGORY = 0  # COCO's begin at 1


def refer_source(
    root: str | Path,
    dataset: str,
    *,
    refs: Path | None = None,
    instances: Path | None = None,
    images: Path | None = None,
) -> Source:
    """Where a published data set or the demo is read from.

    ``refs``, ``instances`` and ``images`` name files and folder that are not at their usual place
    below ``root``. References may be JSON: in a file that ends in ``.json`` where the pickle is
    missing, or under the name of the pickle.

    Raises:
        ValueError: the data set is unknown. Its files are opened by ``read`` alone.
    """
    facts = dataset_facts(dataset)
    folder = Path(root) / facts.folder
    if refs is None:
        refs = folder / facts.refs
        if not refs.is_file() and refs.with_suffix(".json").is_file():
            refs = refs.with_suffix(".json")
    instances = instances or folder / "instances.json"
    return Source(
        dataset=dataset,
        files=(refs, instances),
        images=images or Path(root) / facts.images,
        image_store=facts.image_store,
        splits=tuple(facts.splits),
        read=partial(_read_entries, refs, instances, tuple(facts.splits)),
        published=facts.splits,
        shares_images=facts.shares_images,
    )


def _read_entries(refs: Path, instances_path: Path, splits: tuple[str, ...]) -> list[Entry]:
    """Join references, annotations and images to one entry a reference, in the file's order."""
    _check_present(refs, instances_path)
    with _collector_off():
        return _joined_entries(refs, instances_path, splits)


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """No search for cycles: among a million containers without any, it takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _joined_entries(refs: Path, instances_path: Path, splits: tuple[str, ...]) -> list[Entry]:
    # entries before instances: all else of the references is gone when the large file is read
    entries = _reference_entries(refs, splits)
    number_sentences(entries)
    ann_ids = {entry.record["ann_id"] for entry in entries}
    image_ids = {entry.record["image_id"] for entry in entries}
    instances = read_instances(instances_path, ann_ids)
    annotations = _by_id(instances["annotations"], "annotations", ann_ids, instances_path)
    images = _by_id(instances["images"], "images", image_ids, instances_path)
    fields = _image_fields(images, instances_path)
    return [_join(entry, annotations, fields, instances_path) for entry in entries]


def _check_present(refs: Path, instances: Path) -> None:
    missing = [path for path in (refs, instances) if not path.is_file()]
    if len(missing) == 2:
        raise ValueError(
            f"{refs} is missing, and so is {instances}; "
            "datasets/README.md says where they come from"
        )
    if missing:
        there = instances if missing[0] == refs else refs
        raise ValueError(
            f"{missing[0]} is missing, and {there} is there; neither is of use alone, and both "
            "come from one archive (datasets/README.md says where from)"
        )


def _reference_entries(path: Path, splits: tuple[str, ...]) -> list[Entry]:
    """Entries whose records have neither image nor segmentation yet."""
    entries: list[Entry] = []
    positions: dict[int, int] = {}
    for position, ref in enumerate(read_refs(path)):
        at = f"{path}: reference at position {position} (counted from 0)"
        ref_id = _number(ref, "ref_id", at)
        place = f"{path}: reference {ref_id}"
        if positions.setdefault(ref_id, position) != position:
            raise ValueError(
                f"{place}: ref_id stands twice, at positions {positions[ref_id]} and {position} "
                "(counted from 0); remove one or give it an identifier of its own"
            )
        if ref["split"] not in splits:
            split = reprlib.repr(ref["split"])
            raise ValueError(f"{place}: split {split} is none of {', '.join(splits)}")
        record = {
            "ref_id": ref_id,
            "ann_id": _number(ref, "ann_id", place),
            "image_id": _number(ref, "image_id", place),
            "category_id": _category(ref, place),
            "split": ref["split"],
            "sentences": _sentences(ref["sentences"], place),
        }
        entries.append(Entry(record, None, place))
    return entries


def _number(row: Row, key: str, place: str) -> int:
    try:
        return whole_number(row[key])
    except ValueError as error:
        raise ValueError(f"{place}: {key} {error}") from None


def _category(row: Row, place: str) -> int | None:
    return None if row.get("category_id") is None else _number(row, "category_id", place)


def _sentences(value: Any, place: str) -> list[list[Any]]:
    if isinstance(value, list | tuple):
        value = [_repaired(entry) for entry in value]
    try:
        return read_sentences(value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _repaired(sentence: Any) -> Any:
    if isinstance(sentence, str):
        return repaired(sentence)
    if isinstance(sentence, dict):
        texts = {key: sentence.get(key) for key in ("sent", "raw")}
        return sentence | {k: repaired(text) for k, text in texts.items() if isinstance(text, str)}
    return sentence


def _by_id(rows: list[Row], table: str, wanted: Collection[int], path: Path) -> dict[int, Row]:
    """The wanted rows of a table; a row that stands twice must say the same twice."""
    found: dict[int, Row] = {}
    for position, row in enumerate(rows):
        place = f"{path}: {table}[{position}]"
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(f"{place} has no id; every entry of the table needs one")
        number = _number(row, "id", place)
        if number in wanted and found.setdefault(number, row) != row:
            raise ValueError(f"{place}: id {number} stands twice with other content; remove one")
    return found


def _image_fields(images: dict[int, Row], path: Path) -> dict[int, Row]:
    """``file_name`` without folders, ``height`` and ``width`` of every image."""
    fields: dict[int, Row] = {}
    owners: dict[str, str] = {}
    for number, image in images.items():
        place = f"{path}: image {number}"
        if missing := {"file_name", "height", "width"} - image.keys():
            raise ValueError(f"{place} has no {', '.join(sorted(missing))}; every image needs it")
        written = image["file_name"]
        name = PureWindowsPath(written).name if isinstance(written, str) else ""
        if name in ("", "..") or "\0" in name:
            raise ValueError(f"{place}: file_name {reprlib.repr(written)} should name a file")
        if owners.setdefault(name, written) != written:
            raise ValueError(
                f"{place}: file_name {written!r} and {owners[name]!r} are one name in a folder; "
                "all images of a data set lie in one, so rename one of them"
            )
        height, width = (_number(image, key, place) for key in ("height", "width"))
        if min(height, width) < 1:
            raise ValueError(f"{place}: height {height} and width {width} should be above 0")
        fields[number] = {"file_name": name, "height": height, "width": width}
    return fields


def _join(entry: Entry, annotations: dict[int, Row], images: dict[int, Row], path: Path) -> Entry:
    """The entry with what ``path`` says of its image and its annotation."""
    record, place = entry.record, entry.place
    ann_id, image_id = record["ann_id"], record["image_id"]
    if ann_id not in annotations or image_id not in images:
        raise ValueError(
            f"{place}: image {image_id} or annotation {ann_id} is not in {path}; "
            "take both files from the same release"
        )
    annotation = annotations[ann_id]
    owner = f"{path}: annotation {ann_id}"
    if "image_id" in annotation and _number(annotation, "image_id", owner) != image_id:
        raise ValueError(
            f"{place}: image_id is {image_id}, and annotation {ann_id} of {path} belongs to image "
            f"{annotation['image_id']}; take both files from the same release"
        )
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise ValueError(
            f"{place}: annotation {ann_id} of {path} has no segmentation, so there is no mask; "
            "take it from COCO's own annotations or remove the reference"
        )
    category = record["category_id"]
    if category is None:
        category = _category(annotation, owner)
    category = NO_CATEGORY if category is None else category
    joined = record | {"category_id": category} | images[image_id]
    return Entry(joined, segmentation, f"{place}: annotation {ann_id}")
