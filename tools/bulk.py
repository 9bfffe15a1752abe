"""REFER files as large as RefCOCO's and without meaning, to measure what reads them.

Counts, splits, file layout and the lengths of polygons and sentences are RefCOCO's. Images are
noise of about its bytes a pixel and a quarter of its pixels: 0.8 GB instead of 3.2.
"""

import itertools
import json
import multiprocessing
import pickle
import struct
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from utils.data.datasets import dataset_facts
from utils.demo.writer import run_lengths

IMAGES = {"train": 16_994, "val": 1_500, "testA": 750, "testB": 750}
NUM_IMAGES = sum(IMAGES.values())
LEAST_IMAGES = 2 * len(IMAGES)  # every split has one, and train has more
NUM_ANNOTATIONS = 196_771
NUM_CATEGORIES = 80
SIZE = (240, 320)  # pixels of the shorter and the longer side
JPEG_QUALITY = 88
GRAIN = (8.0, 32.0)  # of the noise: about half a byte a pixel, as COCO's photographs have
CORNERS = (27.0, 0.6)  # of a polygon: mean, and the deviation of its logarithm
PART_SHARES = (0.85, 0.1, 0.05)  # of objects with one, two and three polygons
CROWD_SHARE = 0.01  # of annotations that are run lengths
WORDS = (
    "left", "right", "man", "woman", "the", "in", "on", "shirt", "white", "black", "red", "blue",
    "guy", "girl", "front", "of", "second", "with", "person", "chair", "middle", "top", "bottom",
    "back", "boy", "dog", "horse", "car", "bowl", "pizza", "table", "holding", "umbrella",
)  # fmt: skip
MEAN_WORDS = (3.6, 0.6)  # of a sentence, as CORNERS
IMAGES_A_TASK = 128


class _Image(NamedTuple):
    """What stands in one image; ``sentences`` has the number of them for every reference."""

    number: int
    split: str
    num_annotations: int
    sentences: list[int]
    first_annotation: int
    first_ref: int
    first_sentence: int


def write_bulk(
    root: str | Path,
    *,
    num_images: int = NUM_IMAGES,
    seed: int = 0,
    workers: int | None = None,
    shows_progress: bool = False,
) -> None:
    """Write ``refcoco/refs(unc).p``, ``refcoco/instances.json`` and ``images/train2014`` in root.

    With another ``num_images`` all counts shrink in proportion; every split keeps an image.
    """
    facts = dataset_facts("refcoco")
    folder, images = Path(root) / facts.folder, Path(root) / facts.images
    for path in (folder, images):
        path.mkdir(parents=True, exist_ok=True)
    plan = plan_images(num_images, seed)
    tasks = [plan[first : first + IMAGES_A_TASK] for first in range(0, num_images, IMAGES_A_TASK)]
    rows: list[str] = []
    annotations: list[str] = []
    refs: list[dict[str, Any]] = []
    # spawn: OpenCV's threads do not survive a fork
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=spawn) as pool,
        tqdm(total=num_images, unit="images", disable=not shows_progress) as bar,
    ):
        for task in pool.map(partial(_write_images, images, seed), tasks):
            rows += task[0]
            annotations += task[1]
            refs += task[2]
            bar.update(len(task[0]))
    (folder / "instances.json").write_text(_instances(rows, annotations), encoding="utf-8")
    np.random.default_rng(seed).shuffle(refs)
    (folder / facts.refs).write_bytes(_python2_pickle(refs))


def plan_images(num_images: int = NUM_IMAGES, seed: int = 0) -> list[_Image]:
    """How much stands in which image, at random and with RefCOCO's sums."""
    rng, share = np.random.default_rng([seed, 0]), num_images / NUM_IMAGES
    counts = {split: max(1, round(share * number)) for split, number in IMAGES.items()}
    counts["train"] += num_images - sum(counts.values())
    splits, num_refs, num_sentences = [], [], []  # of images, of images, of references
    for split, number in counts.items():
        published, part = dataset_facts("refcoco").splits[split], number / IMAGES[split]
        refs = round(published.refs * part)
        splits += [split] * number
        num_refs += _spread(rng, refs, number)
        num_sentences += _spread(rng, round(published.sentences * part), refs)
    others = _spread(rng, round(NUM_ANNOTATIONS * share) - sum(num_refs), num_images)
    plan, annotation, ref, sentence = [], 1, 0, 0
    for number, split in enumerate(splits):
        spoken = num_sentences[ref : ref + num_refs[number]]
        all_of_it = num_refs[number] + others[number]
        plan.append(_Image(number, split, all_of_it, spoken, annotation, ref, sentence))
        annotation += all_of_it
        ref += len(spoken)
        sentence += sum(spoken)
    return plan


def _spread(rng: np.random.Generator, total: int, number: int) -> list[int]:
    """``total`` things at random over ``number`` places, at least one in each."""
    return (1 + rng.multinomial(total - number, np.full(number, 1 / number))).tolist()


def _write_images(
    folder: Path, seed: int, plan: list[_Image]
) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Write some images; return their rows and their annotations' as JSON, and their references.

    JSON, since text goes from process to process in a fraction of the time of nested lists.
    """
    cv2.setNumThreads(1)  # the other processes have the other cores
    images, annotations, refs = [], [], []
    for item in plan:
        # numbered by image, so that nothing depends on the tasks of the others
        rng = np.random.default_rng([seed, 1, item.number])
        height, width = SIZE if rng.random() < 0.75 else SIZE[::-1]
        image = _image_row(item.number, height, width)
        (folder / image["file_name"]).write_bytes(_jpeg(rng, height, width))
        images.append(json.dumps(image))
        rows = [_annotation(rng, image, item, row) for row in range(item.num_annotations)]
        annotations += [json.dumps(row) for row in rows]
        refs += _refs(rng, image, item, rows)
    return images, annotations, refs


def _image_row(number: int, height: int, width: int) -> dict[str, Any]:
    name = f"COCO_train2014_{number + 1:012d}.jpg"
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2014/{name}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 16:28:13",
        "id": number + 1,
    }


def _jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A noisy picture of soft colours."""
    colours = rng.uniform(40, 215, (9, 12, 3)).astype(np.float32)
    soft = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(*GRAIN))
    pixels = cv2.add(soft, cv2.merge([grain] * 3), dtype=cv2.CV_8U)  # cut off at 0 and 255
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _annotation(
    rng: np.random.Generator, image: dict[str, Any], item: _Image, row: int
) -> dict[str, Any]:
    """One object; area and box are those of its corners, without parts taken out of each other."""
    size = np.array([image["width"], image["height"]])
    num_parts = 1 + int(rng.choice(len(PART_SHARES), p=PART_SHARES))
    parts = [_polygon(rng, size) for _ in range(num_parts)]
    low = np.min([part.min(axis=0) for part in parts], axis=0)
    high = np.max([part.max(axis=0) for part in parts], axis=0)
    is_crowd = bool(rng.random() < CROWD_SHARE)
    return {
        "segmentation": _crowd(parts, image) if is_crowd else [p.ravel().tolist() for p in parts],
        "area": round(sum(cv2.contourArea(part.astype(np.float32)) for part in parts), 4),
        "iscrowd": int(is_crowd),
        "image_id": image["id"],
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "category_id": 1 + int(rng.integers(NUM_CATEGORIES)),
        "id": item.first_annotation + row,
    }


def _polygon(rng: np.random.Generator, size: np.ndarray) -> np.ndarray:
    """A star-shaped outline inside the image, its corners to two decimals: (corners, 2)."""
    mean, deviation = CORNERS
    number = max(4, round(rng.lognormal(np.log(mean) - deviation**2 / 2, deviation)))
    angles = np.sort(rng.uniform(0, 2 * np.pi, number))
    radii = rng.uniform(0.7, 1.0, number)[:, None] * rng.uniform(0.05, 0.35, 2) * size.min()
    middle = rng.uniform(0.1, 0.9, 2) * size
    points = middle + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.round(np.clip(points, 0, size), 2)


def _crowd(parts: list[np.ndarray], image: dict[str, Any]) -> dict[str, Any]:
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    cv2.fillPoly(mask, [part.astype(np.int32) for part in parts], 1)
    return run_lengths(mask.astype(bool))


def _refs(
    rng: np.random.Generator, image: dict[str, Any], item: _Image, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The references of an image: to its first annotations, with as many sentences as planned."""
    refs, sentence_id = [], item.first_sentence
    stem = image["file_name"].removesuffix(".jpg")
    for position, number in enumerate(item.sentences):
        ids = list(range(sentence_id, sentence_id + number))
        sentence_id += number
        refs.append(
            {
                "sent_ids": ids,
                "file_name": f"{stem}_{rows[position]['id']}.jpg",
                "ann_id": rows[position]["id"],
                "ref_id": item.first_ref + position,
                "image_id": image["id"],
                "split": item.split,
                "sentences": [_sentence(rng, sent_id) for sent_id in ids],
                "category_id": rows[position]["category_id"],
            }
        )
    return refs


def _sentence(rng: np.random.Generator, sent_id: int) -> dict[str, Any]:
    mean, deviation = MEAN_WORDS
    number = max(1, round(rng.lognormal(np.log(mean) - deviation**2 / 2, deviation)))
    # early words are the frequent ones
    places = (rng.random(number) ** 2 * len(WORDS)).astype(int)
    words = [WORDS[place] for place in places.tolist()]
    text = " ".join(words)
    return {"tokens": words, "raw": text, "sent_id": sent_id, "sent": text}


def _instances(images: list[str], annotations: list[str]) -> str:
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, NUM_CATEGORIES + 1)]
    return (
        f'{{"info": {{"description": "Noise, as large as RefCOCO"}}, "licenses": [], '
        f'"categories": {json.dumps(categories)}, "images": [{", ".join(images)}], '
        f'"annotations": [{", ".join(annotations)}]}}'
    )


def _python2_pickle(value: list[dict[str, Any]]) -> bytes:
    """A pickle as Python 2 wrote the published ones: protocol 2, text as byte strings."""
    return pickle.PROTO + b"\x02" + b"".join(_opcodes(value)) + pickle.STOP


def _opcodes(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        data = value.encode("latin-1")
        yield pickle.BINSTRING + struct.pack("<i", len(data)) + data
    elif isinstance(value, int):
        yield pickle.BININT + struct.pack("<i", value)
    elif isinstance(value, list):
        yield pickle.EMPTY_LIST + pickle.MARK
        for item in value:
            yield from _opcodes(item)
        yield pickle.APPENDS
    else:
        yield pickle.EMPTY_DICT + pickle.MARK
        for item in itertools.chain.from_iterable(value.items()):
            yield from _opcodes(item)
        yield pickle.SETITEMS
