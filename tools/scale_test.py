"""Measure packing and opening at the size of RefCOCO, on generated files, against limits.

Writes 19,994 noisy images, 50,000 references and 142,210 expressions in the layout of RefCOCO,
packs them in one process and opens them in another. Exit code 1 if a limit is missed.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402
from utils.data.datasets import dataset_facts  # noqa: E402
from utils.files import check_output, write_text  # noqa: E402
from utils.memory import own_size, peak_size, present_size  # noqa: E402
from utils.prepare.workers import start_workers  # noqa: E402

EXAMPLE = """  python tools/scale_test.py
  python tools/scale_test.py --folder /data/scale --images 2000"""
MARK = ".scale-test"  # in a folder that this command may empty
NUM_ITEMS = 100  # read after opening
BYTES_AN_IMAGE = 110_000  # of disk: the file, its packed copy, annotations
IMAGES = {"train": 16_994, "val": 1_500, "testA": 750, "testB": 750}
NUM_IMAGES, NUM_ANNOTATIONS = sum(IMAGES.values()), 196_771
LEAST_IMAGES = 2 * len(IMAGES)  # every split has one, and train has more
SIZE = (240, 320)  # pixels of the sides: a quarter of COCO's pixels, of as many bytes each
WORDS = ("left", "right", "man", "the", "in", "on", "shirt", "white", "red", "second", "chair")


def write_files(root: Path, num_images: int) -> None:
    """Write references, annotations and noisy images with RefCOCO's counts, or a share of them."""
    facts = dataset_facts("refcoco")
    folder, images = root / facts.folder, root / facts.images
    folder.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    write = partial(write_image, images, num_images, round(share_of(num_images) * NUM_ANNOTATIONS))
    with start_workers(None, num_images) as run:
        rows = run(write, range(num_images))
        written = list(tqdm(rows, "images", num_images, disable=not sys.stderr.isatty()))
    tables = ", ".join(
        f'"{name}": [{", ".join(row[part] for row in written)}]'
        for part, name in enumerate(("images", "annotations"))
    )
    (folder / "instances.json").write_text(f"{{{tables}}}", encoding="utf-8")
    (folder / facts.refs).write_bytes(pickle.dumps(make_refs(num_images), protocol=2))


def share_of(num_images: int) -> float:
    return num_images / NUM_IMAGES


def make_refs(num_images: int) -> list[dict[str, Any]]:
    """Make the references of every split, in a random order, as REFER's pickles have them."""
    counts = {split: max(1, round(share_of(num_images) * n)) for split, n in IMAGES.items()}
    counts["train"] += num_images - sum(counts.values())
    rng, first = np.random.default_rng(0), 0
    words = iter(rng.choice(WORDS, 4 * NUM_ANNOTATIONS).tolist())  # more than are needed
    refs: list[dict[str, Any]] = []
    for split, count in counts.items():
        published = dataset_facts("refcoco").splits[split]
        num_refs, num_sentences = (round(n * count / IMAGES[split]) for n in published)
        lengths = 1 + rng.poisson(2.6, num_sentences)
        texts = [{"sent": " ".join(islice(words, length))} for length in lengths.tolist()]
        for place in range(num_refs):
            image, number = first + place % count, len(refs)
            # annotation ``a`` is on image ``a % num_images``
            ann_id = image + place // count * num_images
            ids = {"ref_id": number, "ann_id": ann_id, "image_id": image, "category_id": 1}
            refs.append({**ids, "split": split, "sentences": texts[place::num_refs]})
        first += count
    return [refs[place] for place in rng.permutation(len(refs))]


def write_image(folder: Path, num_images: int, num_annotations: int, number: int) -> list[str]:
    """Write an image; return its row as JSON, and those of the objects on it."""
    import cv2

    cv2.setNumThreads(1)  # the other processes have the other cores
    rng = np.random.default_rng(number)
    height, width = SIZE if rng.random() < 0.75 else SIZE[::-1]
    name = f"COCO_train2014_{number:012d}.jpg"
    colours = rng.uniform(40, 215, (9, 12, 3)).astype(np.float32)
    pixels = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels += rng.standard_normal((height, width, 1), np.float32) * rng.uniform(8, 32)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 88]
    cv2.imwrite(str(folder / name), pixels.clip(0, 255).astype(np.uint8), quality)
    objects = []
    for ann_id in range(number, num_annotations, num_images):
        # a star of 27 corners on average, as polygons of COCO have
        angles = np.sort(rng.uniform(0, 2 * np.pi, 4 + rng.poisson(23)))
        radii = rng.uniform(0.7, 1.0, len(angles)) * rng.uniform(0.05, 0.35) * SIZE[0]
        centre = rng.uniform(0.1, 0.9, 2) * (width, height)
        corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        polygon = corners.clip(0, (width, height)).round(2).ravel().tolist()
        ids = {"id": ann_id, "image_id": number, "category_id": 1}
        objects.append(json.dumps({**ids, "segmentation": [polygon]}))
    row = json.dumps({"id": number, "file_name": name, "height": height, "width": width})
    return [row, ", ".join(objects)]


def measure(folder: Path, num_images: int) -> dict[str, Any]:
    """Write files into an empty ``folder``, pack and open them; return all that was measured."""
    free, needed = shutil.disk_usage(folder).free, num_images * BYTES_AN_IMAGE
    if free < needed:
        raise ValueError(
            f"{folder} has {free:,} bytes free, and {needed:,} are needed; name another --folder"
        )
    began = time.perf_counter()
    print(f"writing {num_images:,} images and their references into {folder}", flush=True)
    write_files(folder, num_images)
    figures: dict[str, Any] = {"images": num_images, "seconds": time.perf_counter() - began}
    for name, function in (("packing", pack), ("opening", open_packed)):
        print(name, flush=True)
        spawn = multiprocessing.get_context("spawn")  # memory is that of a new process
        with ProcessPoolExecutor(1, mp_context=spawn) as pool, watch_peaks() as peaks:
            figures[name] = pool.submit(function, folder).result()
        figures[name]["peak_bytes"] = sum(peaks.values())
    return figures | {"bytes": compare_bytes(folder)}


@contextmanager
def watch_peaks() -> Iterator[dict[int, int]]:
    """Yield the peak memory of every process that starts below this one, by its number.

    The sum is an upper bound: peaks may be at different times, and libraries are shared.
    """
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process in descendants(os.getpid()):
                # the latest, not the largest: before a process starts its program, it has the
                # memory of its parent
                peaks[process] = peak_size(process) or peaks.get(process, 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def descendants(process: int) -> list[int]:
    """List the processes that a process and its children started; empty when it has ended."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(one) for t in tasks for one in (t / "children").read_text().split()]
    except OSError:
        return []
    return children + [one for child in children for one in descendants(child)]


def pack(root: Path) -> dict[str, Any]:
    """Pack what ``write_files`` wrote in ``root``."""
    from utils.prepare.pack import pack_dataset
    from utils.prepare.refer import refer_source

    began = time.perf_counter()
    # fewer images than RefCOCO's differ from what is published, as they should
    header = pack_dataset(
        root,
        refer_source(root, "refcoco"),
        accept_differences=True,
        shows_progress=sys.stderr.isatty(),
    )
    return {"seconds": time.perf_counter() - began, "splits": header["splits"]}


def open_packed(root: Path) -> dict[str, Any]:
    """Open the training split as a worker does, then read some items of it.

    Memory is counted with all pages of the files that opening has touched. Of items, it is counted
    without them: Linux maps more of the images than are read, as long as it has the room.
    """
    from utils.data.dataset import ReferDataset

    process = os.getpid()
    present, own, began = present_size(process), own_size(process), time.perf_counter()
    dataset = ReferDataset(root, "refcoco", "train", image_size=416)
    seconds, opened = time.perf_counter() - began, present_size(process)
    for item in range(0, len(dataset), max(1, len(dataset) // NUM_ITEMS)):
        dataset[item]
    return {
        "seconds": seconds,
        "bytes": opened - present,
        "own_bytes_after_items": own_size(process) - own,
    }


def compare_bytes(root: Path) -> dict[str, int]:
    """Count bytes of the packed files, and of a JPEG and a PNG mask for each reference."""
    import cv2

    from utils.data.store import ReferStore, decode_mask

    store, folder = ReferStore(root, "refcoco"), root / dataset_facts("refcoco").images
    separate = 0
    for split in store.splits:
        for record in tqdm(store.references(split), split, disable=not sys.stderr.isatty()):
            mask = cv2.imencode(".png", decode_mask(record).astype("uint8") * 255)[1]
            separate += (folder / record["file_name"]).stat().st_size + len(mask)
    packed = sum(path.stat().st_size for path in (store.path, store.images_path))
    return {"packed": packed, "separate": separate}


def limits(figures: dict[str, Any]) -> list[tuple[str, float, float, str]]:
    """Return what is promised of data of RefCOCO's size: name, measured, the most, unit."""
    packing, opening, sizes = figures["packing"], figures["opening"], figures["bytes"]
    own = opening["own_bytes_after_items"]
    return [
        ("packing, time", packing["seconds"], 360, "s"),
        ("packing, peaks of all processes", packing["peak_bytes"] / 1e6, 2000, "MB"),
        ("packed over JPEG and PNG", 100 * sizes["packed"] / sizes["separate"], 45, "%"),
        ("opening, time", opening["seconds"], 0.2, "s"),
        ("opening, more memory", opening["bytes"] / 1e6, 100, "MB"),
        (f"{NUM_ITEMS} items, more memory of its own", own / 1e6, 100, "MB"),
    ]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print a row for every limit, and write all figures."""
    import torch

    from engine.results import provenance

    if not present_size(os.getpid()):
        raise ValueError("memory is read from Linux's /proc, which this system lacks; run it there")
    if not LEAST_IMAGES <= arguments.images <= NUM_IMAGES:
        raise ValueError(
            f"--images is {arguments.images}; give {LEAST_IMAGES} to {NUM_IMAGES:,}, "
            "which are RefCOCO's"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    check_output("--output", arguments.output, (".json",))
    if arguments.folder:
        _empty(arguments.folder)
        figures = measure(arguments.folder, arguments.images)
    else:
        with tempfile.TemporaryDirectory(prefix="scale-test-") as folder:
            figures = measure(Path(folder), arguments.images)
    rows, missed = [], 0
    for name, measured, most, unit in limits(figures):
        missed += measured > most
        outcome = "MISSED" if measured > most else "met"
        rows.append((name, f"{measured:,.5g} {unit}", f"{most:g} {unit}", outcome))
    values = {**provenance(torch.device("cpu")), "limits": rows, **figures}
    write_text(arguments.output, json.dumps(values, indent=2) + "\n")
    columns = ["left", "right", "right", "left"]
    print(f"\n{tabulate(rows, ['', 'measured', 'at most', ''], 'plain', colalign=columns)}")
    print(f"\n{arguments.output}: all figures")
    return 1 if missed else 0


def _empty(folder: Path) -> None:
    """Create ``folder``, or empty it if an earlier test filled it; other files are not deleted."""
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} has other files; give --folder a new or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--images", type=int, default=NUM_IMAGES, metavar="N", help="how many (%(default)s)")
    add("--folder", type=Path, help="write here and keep the files (a temporary folder)")
    default = Path("runs/scale-test.json")
    text = "all figures (%(default)s)"
    add("--output", type=Path, default=default, metavar="FILE.json", help=text)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
