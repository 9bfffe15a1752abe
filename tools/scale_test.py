"""Measure packing and opening at the size of RefCOCO, on generated files, against limits.

Writes 19,994 noisy images, 50,000 references and 142,210 expressions in the layout of RefCOCO,
packs them in a process of its own and opens them in another. Exit code 1 if a limit is missed.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """example:
  python tools/scale_test.py
  python tools/scale_test.py --folder /data/scale --images 2000"""
MARK = ".scale-test"  # in a folder that this command may empty
NUM_ITEMS = 100  # read after opening
BYTES_AN_IMAGE = 110_000  # of disk: the file, its packed copy, annotations


class Limit(NamedTuple):
    """A measured figure and the most it may be."""

    name: str
    measured: float
    most: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.measured <= self.most


def run(folder: Path, num_images: int, *, seed: int = 0) -> dict[str, Any]:
    """Write files into an empty ``folder``, pack and open them; all that was measured."""
    from tools.bulk import write_bulk

    _check_space(folder, num_images)
    shows_progress = sys.stderr.isatty()
    began = time.perf_counter()
    print(f"writing {num_images:,} images and their references into {folder}", flush=True)
    write_bulk(folder, num_images=num_images, seed=seed, shows_progress=shows_progress)
    figures = {"images": num_images, "writing": {"seconds": time.perf_counter() - began}}
    print("packing", flush=True)
    figures["packing"] = in_fresh_process(pack, folder, shows_progress)
    print("opening", flush=True)
    figures["opening"] = in_fresh_process(open_packed, folder)
    print("comparing with a JPEG and a PNG mask for every reference", flush=True)
    figures["bytes"] = compare_bytes(folder, shows_progress)
    return figures


def in_fresh_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``function`` returns, and the peak memory of its process and of each that it starts."""
    from utils.memory import PeakMemory

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    with PeakMemory(process.pid or 0) as memory:
        process.join()
    if process.exitcode:
        raise ValueError(f"{function.__name__} failed with exit code {process.exitcode}; see above")
    return {**receiver.recv(), "peak_bytes": list(memory.peaks.values())}


def _send(sender: Connection, function: Callable[..., dict[str, Any]], arguments: Any) -> None:
    try:
        sender.send(function(*arguments))
    except ValueError as error:
        sys.exit(f"error: {error}")


def pack(root: Path, shows_progress: bool) -> dict[str, Any]:
    """Pack what ``write_bulk`` wrote in ``root``."""
    from utils.prepare.pack import pack_dataset
    from utils.prepare.refer import refer_source

    began = time.perf_counter()
    source = refer_source(root, "refcoco")
    # fewer images than RefCOCO's differ from what is published, and shall
    header = pack_dataset(root, source, accept_differences=True, shows_progress=shows_progress)
    return {
        "seconds": time.perf_counter() - began,
        "fingerprint": header["fingerprint"],
        "splits": header["splits"],
    }


def open_packed(root: Path) -> dict[str, Any]:
    """Open the training split as a worker does, then read some items of it.

    Memory is counted with all pages of the files that opening has touched. Of items, it is counted
    without them: Linux maps more of the images than are read, as long as it has the room.
    """
    from utils.data.dataset import ReferDataset
    from utils.memory import own_size, present_size

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
        "seconds_for_items": time.perf_counter() - began - seconds,
    }


def compare_bytes(root: Path, shows_progress: bool) -> dict[str, Any]:
    """Bytes of the packed files, and of a copy of the image and a PNG mask for each reference."""
    import cv2
    from tqdm import tqdm

    from utils.data.datasets import dataset_facts
    from utils.data.masks import decode_mask
    from utils.data.store import ReferStore

    store = ReferStore(root, "refcoco")
    images, folder = 0, root / dataset_facts("refcoco").images
    masks = 0
    for split in store.splits:
        for record in tqdm(store.references(split), desc=split, disable=not shows_progress):
            images += (folder / record["file_name"]).stat().st_size
            mask = decode_mask(record).astype("uint8") * 255
            masks += len(cv2.imencode(".png", mask)[1])
    return {
        "packed": {path.name: path.stat().st_size for path in (store.path, store.images_path)},
        "an_image_a_reference": images,
        "a_mask_a_reference": masks,
    }


def limits(figures: dict[str, Any]) -> list[Limit]:
    """What is promised of the size of RefCOCO."""
    packing, opening, sizes = figures["packing"], figures["opening"], figures["bytes"]
    separate = sizes["an_image_a_reference"] + sizes["a_mask_a_reference"]
    share = sum(sizes["packed"].values()) / separate
    own = opening["own_bytes_after_items"]
    return [
        Limit("packing, time", packing["seconds"], 360, "s"),
        Limit("packing, peaks of all processes", sum(packing["peak_bytes"]) / 1e6, 2000, "MB"),
        Limit("packed over JPEG and PNG a reference", 100 * share, 45, "%"),
        Limit("opening, time", opening["seconds"], 0.2, "s"),
        Limit("opening, more memory", opening["bytes"] / 1e6, 100, "MB"),
        Limit("100 items, more memory of its own", own / 1e6, 100, "MB"),
    ]


def table(found: list[Limit]) -> str:
    """A row for every limit."""
    lines = [f"{'':<38}{'measured':>12}{'at most':>12}"]
    for limit in found:
        measured, most = f"{limit.measured:,.5g} {limit.unit}", f"{limit.most:g} {limit.unit}"
        verdict = "holds" if limit.holds else "MISSED"
        lines.append(f"{limit.name:<38}{measured:>12}{most:>12}   {verdict}")
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=19_994, metavar="N", help="how many (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="write here and keep it (a temporary folder)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/scale-test.json"),
        metavar="FILE.json",
        help="all figures (%(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        _check(arguments)
        if arguments.folder:
            _empty(arguments.folder)
            figures = run(arguments.folder, arguments.images)
        else:
            with tempfile.TemporaryDirectory(prefix="scale-test-") as folder:
                figures = run(Path(folder), arguments.images)
        found = limits(figures)
        _write(arguments.output, figures, found)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{table(found)}\n\n{arguments.output}: all figures")
    return 0 if all(limit.holds for limit in found) else 1


def _check(arguments: argparse.Namespace) -> None:
    from tools.bulk import LEAST_IMAGES, NUM_IMAGES
    from utils.memory import is_known

    if not is_known():
        raise ValueError("memory is read from Linux's /proc, which this system lacks; run it there")
    if not LEAST_IMAGES <= arguments.images <= NUM_IMAGES:
        raise ValueError(
            f"--images is {arguments.images}; give {LEAST_IMAGES} to {NUM_IMAGES:,}, "
            "which are RefCOCO's"
        )
    if arguments.output.suffix != ".json":
        raise ValueError(f"--output {arguments.output} should end in .json, the form it has")


def _empty(folder: Path) -> None:
    """Make ``folder``, without what an earlier test left there; anybody else's files are kept."""
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; give --folder a new or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _check_space(folder: Path, num_images: int) -> None:
    free, needed = shutil.disk_usage(folder).free, num_images * BYTES_AN_IMAGE
    if free < needed:
        raise ValueError(
            f"{folder} has {free:,} bytes free, and {needed:,} are needed; name another --folder"
        )


def _write(path: Path, figures: dict[str, Any], found: list[Limit]) -> None:
    import torch

    from engine.results import provenance

    values = {
        **provenance(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "limits": [{**limit._asdict(), "holds": limit.holds} for limit in found],
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
