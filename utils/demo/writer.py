"""Write the demo data set, in the layout of RefCOCO."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from utils.demo.drawing import full_mask, render, visible_masks
from utils.demo.language import STYLES, draw_expression
from utils.demo.scenes import KINDS, Scene, make_scene

Row = dict[str, Any]
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


class _Tables:
    """Collect the rows of ``instances.json`` and of the references, and number them."""

    def __init__(self) -> None:
        self.images: list[Row] = []
        self.annotations: list[Row] = []
        self.refs: list[Row] = []
        self.num_sentences = 0

    def add_image(self, scene: Scene) -> Row:
        image_id = FIRST_IMAGE_ID + len(self.images)
        name = f"COCO_train2014_{image_id:012d}.jpg"
        image = {"id": image_id, "file_name": name, "height": scene.height, "width": scene.width}
        self.images.append(image)
        return image

    def add_annotation(self, image: Row, kind: str, segmentation: Any) -> Row:
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

    def add_ref(self, image: Row, annotation: Row, split: str, texts: list[str]) -> None:
        sentences = [
            {"raw": text, "sent": text, "sent_id": number, "tokens": text.split(" ")}
            for number, text in enumerate(texts, start=self.num_sentences)
        ]
        self.num_sentences += len(texts)
        # RefCOCO appends the annotation; the image's own name is in instances.json
        name = image["file_name"].replace(".jpg", f"_{annotation['id']}.jpg")
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": annotation["id"],
                "image_id": image["id"],
                "category_id": annotation["category_id"],
                "file_name": name,
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )

    def write(self, folder: Path) -> None:
        """Write ``instances.json`` and ``refs(unc).p``."""
        instances = {
            "info": {"description": "Generated scenes of coloured shapes", "version": "1"},
            "licenses": [],
            "images": self.images,
            "annotations": self.annotations,
            "categories": [
                {"id": number, "name": kind, "supercategory": "shape"}
                for number, kind in enumerate(KINDS, start=1)
            ],
        }
        (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
        # protocol 2 is what Python 2 wrote the official files with, or could read
        (folder / "refs(unc).p").write_bytes(pickle.dumps(self.refs, protocol=2))


def write_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    num_train_objects: int = 6000,
    num_test_objects: int = 400,
    shows_progress: bool = False,
) -> None:
    """Generate images, ``instances.json`` and ``refs(unc).p`` in ``folder`` from a seed.

    ``num_train_objects`` and ``num_test_objects`` (for each of val, testA and testB) are reached,
    with a few more from the last image. Splits share no image. Files are written to
    ``folder``.part, which replaces ``folder`` when it is complete.
    """
    folder = Path(folder)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "images").mkdir(parents=True)
    tables = _Tables()
    total = num_train_objects + num_test_objects * (len(STYLE_SHARES) - 1)
    with tqdm(total=total, unit="objects", disable=not shows_progress) as bar:
        for split in STYLE_SHARES:
            num_objects = num_train_objects if split == "train" else num_test_objects
            goal = len(tables.refs) + num_objects
            while (before := len(tables.refs)) < goal:
                _add_scene(tables, split, part / "images", seed)
                bar.update(len(tables.refs) - before)
    tables.write(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _add_scene(tables: _Tables, split: str, folder: Path, seed: int) -> None:
    # one generator for each image, so that a picture does not depend on earlier ones
    rng = np.random.default_rng([seed, len(tables.images)])
    scene, masks = _draw_scene(rng)
    image = tables.add_image(scene)
    for index, shape in enumerate(scene.objects):
        segmentation = _segmentation(rng, scene, index, masks[index])
        annotation = tables.add_annotation(image, shape.kind, segmentation)
        texts = _draw_sentences(rng, scene, index, STYLE_SHARES[split])
        if len(texts) >= NUM_SENTENCES[0]:
            tables.add_ref(image, annotation, split, texts)
    colours = cv2.cvtColor(render(scene), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    (folder / image["file_name"]).write_bytes(encoded.tobytes())


def _draw_scene(rng: np.random.Generator) -> tuple[Scene, list[np.ndarray]]:
    """Draw a scene of random shape in which no object is hidden too much, and its masks."""
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
    """Encode the visible part of an object as COCO polygons, or now and then as run lengths."""
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


def run_lengths(mask: np.ndarray) -> Row:
    """Encode a mask as COCO's uncompressed RLE: runs of 0 and 1 in turn, column by column."""
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    counts = np.diff(edges, prepend=0, append=mask.size)
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def _draw_sentences(
    rng: np.random.Generator, scene: Scene, index: int, style_shares: tuple[float, ...]
) -> list[str]:
    """Draw two to four different expressions, or fewer if the scene allows no more."""
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
