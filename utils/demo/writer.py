"""The demo data set on disk, in the layout in which RefCOCO is distributed."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from utils.demo.drawing import full_mask, render, visible_masks
from utils.demo.language import STYLES, draw_expression
from utils.demo.scenes import KINDS, Scene, make_scene

STYLE_SHARES = {  # of sentences, in the order of STYLES
    "train": (0.5, 0.25, 0.25),
    "val": (0.5, 0.25, 0.25),
    "testA": (1.0, 0.0, 0.0),
    "testB": (0.0, 0.5, 0.5),
}
SHORT_SIDES = (96, 144)  # pixels
ASPECTS = (1.0, 1.4)
NUM_SENTENCES = (2, 4)
LEAST_VISIBLE = 0.65  # share of every object that is seen
RLE_SHARE = 0.01  # masks stored as a crowd's run lengths, as a few of COCO's are
JPEG_QUALITY = 92
SUPERSAMPLING = 4  # of the masks whose outlines become polygons
FIRST_IMAGE_ID = 100_001


class _Split(NamedTuple):
    name: str
    num_objects: int
    style_shares: tuple[float, ...]


class _Tables:
    """Rows of ``instances.json`` and of the references, numbered as they come."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.refs: list[dict[str, Any]] = []
        self.num_sentences = 0

    def add_image(self, scene: Scene) -> dict[str, Any]:
        image_id = FIRST_IMAGE_ID + len(self.images)
        name = f"COCO_train2014_{image_id:012d}.jpg"
        image = {"id": image_id, "file_name": name, "height": scene.height, "width": scene.width}
        self.images.append(image)
        return image

    def add_annotation(self, image: dict, kind: str, segmentation: Any) -> dict[str, Any]:
        is_crowd = isinstance(segmentation, dict)
        encoded = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
        rle = encoded if is_crowd else coco_mask.merge(encoded)
        annotation = {
            "id": len(self.annotations) + 1,
            "image_id": image["id"],
            "category_id": KINDS.index(kind) + 1,
            "segmentation": segmentation,
            "area": float(coco_mask.area(rle)),
            "bbox": coco_mask.toBbox(rle).tolist(),
            "iscrowd": int(is_crowd),
        }
        self.annotations.append(annotation)
        return annotation

    def add_ref(self, image: dict, annotation: dict, split: str, texts: list[str]) -> None:
        sentences = []
        for text in texts:
            words = text.split(" ")
            sentences.append(
                {"raw": text, "sent": text, "sent_id": self.num_sentences, "tokens": words}
            )
            self.num_sentences += 1
        stem, suffix = os.path.splitext(image["file_name"])
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": annotation["id"],
                "image_id": image["id"],
                "category_id": annotation["category_id"],
                # RefCOCO appends the annotation; the image's own name is in instances.json
                "file_name": f"{stem}_{annotation['id']}{suffix}",
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )


def write_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    num_train_objects: int = 6000,
    num_test_objects: int = 400,
    shows_progress: bool = False,
) -> None:
    """Generate images, ``instances.json`` and ``refs(unc).p`` in ``folder``, from a seed alone.

    ``num_train_objects`` and ``num_test_objects`` (of each of val, testA and testB) are reached,
    with a few more from the last image. Splits share no image. Everything is written aside and
    takes the place of ``folder`` when it is complete.
    """
    folder = Path(folder)
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "images").mkdir(parents=True)
    tables = _Tables()
    splits = [
        _Split(name, num_train_objects if name == "train" else num_test_objects, shares)
        for name, shares in STYLE_SHARES.items()
    ]
    total = sum(split.num_objects for split in splits)
    with tqdm(total=total, unit="objects", disable=not shows_progress) as bar:
        for split in splits:
            goal = len(tables.refs) + split.num_objects
            while (before := len(tables.refs)) < goal:
                _add_scene(tables, split, aside / "images", seed)
                bar.update(len(tables.refs) - before)
    _write_tables(tables, aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def _add_scene(tables: _Tables, split: _Split, folder: Path, seed: int) -> None:
    # numbered by image, so that a picture depends on nothing that came before it
    rng = np.random.default_rng([seed, len(tables.images)])
    scene, masks = _draw_scene(rng)
    image = tables.add_image(scene)
    for index, shape in enumerate(scene.objects):
        segmentation = _segmentation(rng, scene, index, masks[index])
        annotation = tables.add_annotation(image, shape.kind, segmentation)
        texts = _draw_sentences(rng, scene, index, split.style_shares)
        if len(texts) >= NUM_SENTENCES[0]:
            tables.add_ref(image, annotation, split.name, texts)
    colours = cv2.cvtColor(render(scene), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    (folder / image["file_name"]).write_bytes(encoded.tobytes())


def _draw_scene(rng: np.random.Generator) -> tuple[Scene, list[np.ndarray]]:
    """A scene of random shape in which no object is hidden too much, and its visible masks."""
    while True:
        short = int(rng.integers(SHORT_SIDES[0], SHORT_SIDES[1] + 1))
        long = round(short * rng.uniform(*ASPECTS))
        height, width = (short, long) if rng.random() < 0.5 else (long, short)
        scene = make_scene(rng, height=height, width=width)
        masks = visible_masks(scene, scale=SUPERSAMPLING)
        shares = [
            mask.sum() / full_mask(scene, index, scale=SUPERSAMPLING).sum()
            for index, mask in enumerate(masks)
        ]
        if min(shares) >= LEAST_VISIBLE:
            return scene, masks


def _segmentation(rng: np.random.Generator, scene: Scene, index: int, mask: np.ndarray) -> Any:
    """What is seen of an object: COCO polygons, or now and then run lengths as of a crowd."""
    if rng.random() < RLE_SHARE:
        half = SUPERSAMPLING // 2
        return run_lengths(mask[half::SUPERSAMPLING, half::SUPERSAMPLING])
    if (mask == full_mask(scene, index, scale=SUPERSAMPLING)).all():
        parts = scene.objects[index].parts
    else:
        contours, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        # slivers between two edges are noise, not parts
        kept = [c for c in contours if cv2.contourArea(c) >= 4 * SUPERSAMPLING**2]
        smooth = [cv2.approxPolyDP(contour, 1.0, True)[:, 0] for contour in kept]
        parts = tuple((points + 0.5) / SUPERSAMPLING for points in smooth)
    return [[round(value, 2) for value in part.ravel().tolist()] for part in parts]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed RLE: lengths of runs of 0 and 1 in turn, column by column."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.concatenate([[0], edges, [mask.size]])
    counts = np.diff(ends)
    counts = counts[:-1] if counts[-1] == 0 else counts
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def _draw_sentences(
    rng: np.random.Generator, scene: Scene, index: int, style_shares: tuple[float, ...]
) -> list[str]:
    """Up to two to four different expressions; fewer where the scene allows no more."""
    wanted = int(rng.integers(NUM_SENTENCES[0], NUM_SENTENCES[1] + 1))
    texts: dict[str, None] = {}
    for _ in range(4 * wanted):
        style = STYLES[int(rng.choice(len(STYLES), p=style_shares))]
        text = draw_expression(rng, scene, index, style)
        if text is not None:
            texts[text] = None
        if len(texts) == wanted:
            break
    return list(texts)


def _write_tables(tables: _Tables, folder: Path) -> None:
    instances = {
        "info": {"description": "Generated scenes of coloured shapes", "version": "1"},
        "licenses": [],
        "images": tables.images,
        "annotations": tables.annotations,
        "categories": [
            {"id": number, "name": kind, "supercategory": "shape"}
            for number, kind in enumerate(KINDS, start=1)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    # protocol 2 is what Python 2 wrote the official files with, or could read
    (folder / "refs(unc).p").write_bytes(pickle.dumps(tables.refs, protocol=2))
