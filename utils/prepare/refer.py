"""Read REFER annotations (Yu et al., 2016): references, their sentences, and COCO masks.

Files are found where CRIS, ETRIS, LAVT and REFER keep them. References are a pickle of Python 2
or 3, or JSON; annotations are COCO's ``instances.json``. No code in a pickle is run.
"""

import codecs
import gc
import json
import os
import pickle
import reprlib
from collections.abc import Collection
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from utils.data.datasets import DatasetFacts, dataset_facts
from utils.prepare.annotations import Entry, Source, number_sentences, read_sentences, whole_number

Row = dict[str, Any]
COCO = "images/train2014"  # folder of COCO's images below the root
# Below the root, or below the folder that the user names: of CRIS and ETRIS, of LAVT and refer
# (whose root is refer/data), and of plain copies of COCO.
IMAGE_FOLDERS = (
    COCO,
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "mscoco/images/train2014",
    "mscoco/train2014",
    "train2014",
    "coco/train2014",
    "coco/images/train2014",
    "coco2014/train2014",
    "COCO/train2014",
)
REF_KEYS = {"ref_id", "ann_id", "image_id", "split", "sentences"}
NO_CATEGORY = 0  # COCO's begin at 1
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNUSED: Row = {}  # replaces an annotation that no reference names


def refer_source(root: str | Path, dataset: str, *, images: Path | None = None) -> Source:
    """Find the files of a published data set or the demo; a missing one keeps its usual path.

    Args:
        images: the folder of images or one that holds it; images are then searched only there.

    Raises:
        ValueError: the data set is unknown. Only ``read`` opens the files.
    """
    root, facts = Path(root), dataset_facts(dataset)
    looked = annotation_places(root, facts)
    refs, instances = (next(filter(Path.is_file, paths), paths[0]) for paths in looked)
    folders = image_places(root, facts, images)
    return Source(
        dataset=dataset,
        files=(refs, instances),
        images=next(filter(has_images, folders), folders[0]),
        image_store=facts.image_store,
        splits=tuple(facts.splits),
        read=partial(_read_entries, refs, instances, tuple(facts.splits)),
        published=facts.splits,
        shares_images=facts.shares_images,
    )


def annotation_places(root: Path, facts: DatasetFacts) -> tuple[list[Path], list[Path]]:
    """List where references and annotations may be, the usual place first."""
    # an archive that was unpacked in a folder of its name has the name twice
    folders = [root / facts.folder, root / facts.folder / facts.folder]
    names = (facts.refs, str(Path(facts.refs).with_suffix(".json")))
    refs = [folder / name for folder in folders for name in names]
    return refs, [folder / "instances.json" for folder in folders]


def image_places(root: Path, facts: DatasetFacts, images: Path | None = None) -> list[Path]:
    """List where images may be, the usual place first."""
    if images is not None:
        return [images, *(images / folder for folder in IMAGE_FOLDERS)]
    folders = IMAGE_FOLDERS if facts.images == COCO else (facts.images,)
    return [root / folder for folder in folders]


def has_images(folder: Path) -> bool:
    """Return whether a folder holds a JPEG file."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".jpg") for entry in entries)


def _read_entries(refs: Path, instances: Path, splits: tuple[str, ...]) -> list[Entry]:
    """Join references, annotations and images: one entry a reference, in the file's order."""
    _check_present(refs, instances)
    collects = gc.isenabled()
    gc.disable()  # searching a million containers for cycles takes half of the time
    try:
        # entries before instances: the rest of the references is freed before the large file
        entries = _reference_entries(refs, splits)
        number_sentences(entries)
        ann_ids = {entry.record["ann_id"] for entry in entries}
        image_ids = {entry.record["image_id"] for entry in entries}
        tables = read_instances(instances, ann_ids)
        annotations = _by_id(tables["annotations"], "annotations", ann_ids, instances)
        images = _by_id(tables["images"], "images", image_ids, instances)
        fields = _image_fields(images, instances)
        return [_join(entry, annotations, fields, instances) for entry in entries]
    finally:
        if collects:
            gc.enable()


def _check_present(*paths: Path) -> None:
    if missing := [str(path) for path in paths if not path.is_file()]:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(
            f"{' and '.join(missing)} {verb} missing; references and instances.json are both "
            "needed, and come from one archive (datasets/README.md says where from)"
        )


def _reference_entries(path: Path, splits: tuple[str, ...]) -> list[Entry]:
    """Read the references as entries that have neither image nor segmentation yet."""
    entries: list[Entry] = []
    positions: dict[int, int] = {}
    for position, ref in enumerate(read_refs(path)):
        at = f"{path}: reference at position {position} (counted from 0)"
        ref_id = whole_number(ref["ref_id"], f"{at}: ref_id")
        place = f"{path}: reference {ref_id}"
        if positions.setdefault(ref_id, position) != position:
            raise ValueError(
                f"{place}: duplicate ref_id, at positions {positions[ref_id]} and {position} "
                "(counted from 0); remove one or change its identifier"
            )
        if ref["split"] not in splits:
            split = reprlib.repr(ref["split"])
            raise ValueError(f"{place}: split {split} is none of {', '.join(splits)}")
        record = {
            "ref_id": ref_id,
            "ann_id": whole_number(ref["ann_id"], f"{place}: ann_id"),
            "image_id": whole_number(ref["image_id"], f"{place}: image_id"),
            "category_id": _category(ref, place),
            "split": ref["split"],
            "sentences": read_sentences(ref["sentences"], f"{place}: sentences"),
        }
        entries.append(Entry(record, None, place))
    return entries


def _category(row: Row, place: str) -> int | None:
    value = row.get("category_id")
    return None if value is None else whole_number(value, f"{place}: category_id")


def _by_id(rows: list[Row], table: str, wanted: Collection[int], path: Path) -> dict[int, Row]:
    """Index the wanted rows of a table; duplicates must be equal."""
    found: dict[int, Row] = {}
    for position, row in enumerate(rows):
        place = f"{path}: {table}[{position}]"
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(f"{place} has no id; every entry of the table needs one")
        number = whole_number(row["id"], f"{place}: id")
        if number in wanted and found.setdefault(number, row) != row:
            raise ValueError(f"{place}: duplicate id {number} with other content; remove one")
    return found


def _image_fields(images: dict[int, Row], path: Path) -> dict[int, Row]:
    """Read ``file_name`` without folders, ``height`` and ``width`` of every image."""
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
                f"{place}: file_name {written!r} and {owners[name]!r} have the same name, and "
                "all images of a data set are in one folder; rename one of them"
            )
        height, width = (whole_number(image[k], f"{place}: {k}") for k in ("height", "width"))
        if min(height, width) < 1:
            raise ValueError(f"{place}: height {height} and width {width} should be above 0")
        fields[number] = {"file_name": name, "height": height, "width": width}
    return fields


def _join(entry: Entry, annotations: dict[int, Row], images: dict[int, Row], path: Path) -> Entry:
    """Add to an entry what ``path`` says about its image and its annotation."""
    record, place = entry.record, entry.place
    ann_id, image_id = record["ann_id"], record["image_id"]
    if ann_id not in annotations or image_id not in images:
        raise ValueError(
            f"{place}: image {image_id} or annotation {ann_id} is not in {path}; "
            "take both files from the same release"
        )
    annotation, owner = annotations[ann_id], f"{path}: annotation {ann_id}"
    own_image = annotation.get("image_id", image_id)
    if whole_number(own_image, f"{owner}: image_id") != image_id:
        raise ValueError(
            f"{place}: image_id is {image_id}, and annotation {ann_id} of {path} belongs to image "
            f"{own_image}; take both files from the same release"
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


class _CodeError(pickle.UnpicklingError):
    """A pickle asks for more than plain data."""


class _PlainUnpickler(pickle.Unpickler):
    """Read containers, text and numbers; refuse a pickle that names any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise _CodeError(f"it asks for {module}.{name}, and only plain data is read")


def _decode_windows(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as Western European text of Windows."""
    assert isinstance(error, UnicodeDecodeError)
    data = error.object[error.start : error.end]
    try:
        return data.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return data.decode("latin-1"), error.end


_WINDOWS = "utf-8 or cp1252"
codecs.register_error(_WINDOWS, _decode_windows)
# all that a damaged pickle raises, as the documentation of the module warns
_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError,
    ImportError, OverflowError, MemoryError,
)  # fmt: skip


def read_refs(path: Path) -> list[Row]:
    """Read REFER's references without running code: a pickle of Python 2 or 3, or JSON.

    Python 2 stored text as bytes: UTF-8, or Western European text of Windows.

    Raises:
        ValueError: missing, damaged, holding more than plain data, or without the expected keys.
    """
    _check_present(path)
    with path.open("rb") as file:
        start = file.read(64).removeprefix(_BYTE_ORDER_MARK).lstrip()
        file.seek(0)
        # no pickle of a list begins with a bracket
        refs = _load_json(file, path) if start[:1] in (b"[", b"{") else _load_pickle(file, path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path} holds no list of references; take the published file")
    for position, ref in enumerate(refs):
        if missing := REF_KEYS - ref.keys():
            name = ref.get("ref_id", f"at position {position} (counted from 0)")
            keys = ", ".join(sorted(missing))
            raise ValueError(f"{path}: reference {name} has no {keys}; every one needs it")
    return refs


def _load_pickle(file: BinaryIO, path: Path) -> Any:
    try:
        return _PlainUnpickler(file, encoding="utf-8", errors=_WINDOWS).load()
    except _PICKLE_ERRORS as error:
        way_out = "take the published file, or write yours as JSON"
        way_out = way_out if isinstance(error, _CodeError) else "fetch it again"
        reason = str(error).rstrip(".")
        raise ValueError(f"{path} is no readable REFER file: {reason}; {way_out}") from error


def _load_json(file: BinaryIO, path: Path, **options: Any) -> Any:
    try:
        return json.load(file, **options)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON file: {error}; fetch it again") from error


def read_instances(path: Path, annotations: Collection[int] | None = None) -> Row:
    """Read COCO's ``instances.json``; ValueError if it is missing or something else.

    ``annotations`` are the identifiers of those to keep, None for all. The published files hold
    four times as many as a data set needs, and keeping fewer halves time and memory.
    """

    def keep(row: Row) -> Row:
        is_annotation = "segmentation" in row and isinstance(row.get("id"), int)
        return _UNUSED if is_annotation and row["id"] not in (annotations or ()) else row

    _check_present(path)
    with path.open("rb") as file:
        tables = _load_json(file, path, object_hook=None if annotations is None else keep)
    keys = ("images", "annotations")
    if not isinstance(tables, dict) or not all(isinstance(tables.get(key), list) for key in keys):
        raise ValueError(
            f"{path} holds no lists of COCO 'images' and 'annotations'; take the file that is "
            "beside the references in their archive"
        )
    return tables | {"annotations": [row for row in tables["annotations"] if row is not _UNUSED]}
