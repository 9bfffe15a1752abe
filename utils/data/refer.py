"""REFER annotations (Yu et al., 2016): references, their sentences, and COCO masks."""

import json
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask


class DatasetFacts(NamedTuple):
    """What is known of a data set before its files are read.

    Attributes:
        folder: of its annotations, below the root.
        refs: file of its references.
        images: folder of its images, below the root.
        image_store: name of the packed images; data sets on the same images share one.
        max_words: tokens of a sentence that are kept, start and end included.
        splits: name -> number of references that are published; 0 where the user chooses.
    """

    folder: str
    refs: str
    images: str
    image_store: str
    max_words: int
    splits: dict[str, int]


_COCO = ("images/train2014", "coco-images")

DATASETS = {
    "demo": DatasetFacts(
        "demo", "refs(unc).p", "demo/images", "demo-images", 17,
        {"train": 0, "val": 0, "testA": 0, "testB": 0},
    ),
    "refcoco": DatasetFacts(
        "refcoco", "refs(unc).p", *_COCO, 17,
        {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ),
    "refcoco+": DatasetFacts(
        "refcoco+", "refs(unc).p", *_COCO, 17,
        {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ),
    "refcocog_u": DatasetFacts(
        "refcocog", "refs(umd).p", *_COCO, 22, {"train": 42226, "val": 2573, "test": 5023}
    ),
    "refcocog_g": DatasetFacts(
        "refcocog", "refs(google).p", *_COCO, 22, {"train": 44822, "val": 5000}
    ),
}  # fmt: skip

REF_KEYS = {"ref_id", "ann_id", "image_id", "category_id", "split", "sentences"}


def dataset_facts(dataset: str) -> DatasetFacts:
    """The facts of a data set; ValueError lists the known names."""
    if dataset not in DATASETS:
        raise ValueError(f"no data set {dataset!r}; known are {', '.join(DATASETS)}")
    return DATASETS[dataset]


def check_split(dataset: str, split: str) -> None:
    """ValueError lists the splits of a data set if ``split`` is none of them."""
    splits = dataset_facts(dataset).splits
    if split not in splits:
        raise ValueError(f"data set {dataset!r} has no split {split!r}; it has {', '.join(splits)}")


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, text and numbers; a pickle that names any code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain data is read")


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read a REFER pickle, of Python 2 or 3, without running code from it.

    Raises:
        ValueError: missing, damaged, holding more than plain data, or without the expected keys.
    """
    with _open(path) as file:
        try:
            refs = _PlainUnpickler(file, encoding="latin-1").load()
        except _PICKLE_ERRORS as error:
            raise ValueError(f"{path} is no readable REFER file: {error}") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path} is no REFER file: it holds no list of references")
    for position, ref in enumerate(refs):
        if missing := REF_KEYS - ref.keys():
            raise ValueError(f"{path}: reference {position} has no {', '.join(sorted(missing))}")
    return refs


# all that a damaged pickle raises, as the documentation of the module warns
_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError,
    ImportError, OverflowError, MemoryError,
)  # fmt: skip


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} is missing; datasets/README.md says where each file comes from")
    return path.open("rb")


def read_instances(path: Path) -> dict[str, Any]:
    """Read COCO's ``instances.json``; ValueError if it is missing or something else."""
    with _open(path) as file:
        try:
            instances = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(instances, dict) or not {"images", "annotations"} <= instances.keys():
        raise ValueError(f"{path} holds no COCO 'images' and 'annotations'")
    return instances


def annotation_mask(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The union of an annotation's polygons, or its RLE, as one compressed COCO RLE.

    Rasterised by pycocotools: other fillers draw other borders.
    """
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str | bytes):
        return segmentation
    encoded = coco_mask.frPyObjects(segmentation, height, width)
    return encoded if isinstance(encoded, dict) else coco_mask.merge(encoded)


def read_records(root: Path, dataset: str) -> list[dict[str, Any]]:
    """Join references, annotations and images of a data set into one plain record a reference.

    A record has ``ref_id, ann_id, image_id, category_id, split, file_name, height, width``, the
    mask as RLE text in ``rle``, and ``sentences``, a list of ``[sentence id, text]``.

    Raises:
        ValueError: a file is missing or damaged, or they do not belong together.
    """
    facts = dataset_facts(dataset)
    refs_path, instances_path = source_files(root, dataset)
    refs = read_refs(refs_path)
    instances = read_instances(instances_path)
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    records = []
    for ref in refs:
        name = f"{refs_path}: reference {ref['ref_id']}"
        if ref["split"] not in facts.splits:
            raise ValueError(f"{name}: split {ref['split']!r} is none of {', '.join(facts.splits)}")
        if not ref["sentences"]:
            raise ValueError(f"{name} has no sentence")
        if ref["image_id"] not in images or ref["ann_id"] not in annotations:
            raise ValueError(
                f"{name}: image {ref['image_id']} or annotation {ref['ann_id']} is not in "
                f"{instances_path}; take both files from the same release"
            )
        records.append(_record(ref, images[ref["image_id"]], annotations[ref["ann_id"]]))
    return records


def source_files(root: Path, dataset: str) -> tuple[Path, Path]:
    """The files of references and of annotations that a data set is read from."""
    facts = dataset_facts(dataset)
    folder = Path(root) / facts.folder
    return folder / facts.refs, folder / "instances.json"


def _record(ref: dict, image: dict, annotation: dict) -> dict[str, Any]:
    height, width = image["height"], image["width"]
    rle = annotation_mask(annotation, height, width)["counts"]
    return {
        **{key: ref[key] for key in ("ref_id", "ann_id", "image_id", "category_id", "split")},
        "file_name": os.path.basename(image["file_name"]),
        "height": height,
        "width": width,
        "rle": rle.decode("ascii") if isinstance(rle, bytes) else rle,
        "sentences": [[sentence["sent_id"], sentence["sent"]] for sentence in ref["sentences"]],
    }


def decode_mask(record: dict[str, Any]) -> Any:
    """The mask of a record: bool (H, W)."""
    rle = {"size": [record["height"], record["width"]], "counts": record["rle"].encode("ascii")}
    return coco_mask.decode(rle).astype(bool)
