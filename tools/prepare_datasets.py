"""Pack referring segmentation data for training: annotations and images into LMDB files.

RefCOCO, RefCOCO+ and G-Ref are packed from the official files, which are found where users of
CRIS, ETRIS, LAVT and REFER have them, or fetched with --download. The demo is generated. Data of
your own are described by a file of JSON lines or by the lists of CRIS (docs/own-data.md).

What is there and what is missing is told before anything starts. Finished work is never redone
unasked: give the same command again after Ctrl-C or an error, and it goes on from there.
"""

import argparse
import errno
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from utils.prepare.survey import Item

EXAMPLE = """examples:
  python tools/prepare_datasets.py --dataset demo
      generate the demo and pack it
  python tools/prepare_datasets.py --dataset refcoco refcoco+ --images /data/coco/train2014
      pack two data sets, their annotations from datasets/, their images from elsewhere
  python tools/prepare_datasets.py --dataset all --root /data/ref --download --verify
      fetch what is missing of all four (14 GB), pack it and read it back
  python tools/prepare_datasets.py --dataset refcoco --pixels 416
      the same, and the images resized to what training reads, so that it decodes none
  python tools/prepare_datasets.py --custom mine.jsonl --images pictures --name mine
      pack your own data; train on it with data.dataset=mine
  python tools/prepare_datasets.py --custom anns --images images --masks masks --name medical
      the same from train.json, val.json, ... in the folder anns, as CRIS has them"""
# faults of the user's folders, not of this code
FOLDER_FAULTS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST,
}  # fmt: skip


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    from utils.data.datasets import DATASETS

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = f"{', '.join(DATASETS)}, or all for the four but the demo"
    add = parser.add_argument
    add("--dataset", nargs="+", default=[], metavar="NAME", help=names)
    add("--root", type=Path, default=Path("datasets"), help="folder of all data (%(default)s)")
    add("--images", type=Path, metavar="DIR", help="folder of the images, or one that holds it")
    add("--download", action="store_true", help="fetch the files that are missing")
    add(
        "--verify",
        action="store_true",
        help="read what is packed whole and compare it with its checksums",
    )
    add(
        "--skip-bad",
        action="store_true",
        help="leave out references whose image is missing or damaged",
    )
    add(
        "--accept-differences",
        action="store_true",
        help="pack files that are not as published; recorded",
    )
    add(
        "--pixels",
        type=int,
        metavar="SIZE",
        help="also keep the images resized to data.image_size, 390 KB each at 416: training then "
        "decodes none and reads the same pixels",
    )
    add("--force", action="store_true", help="redo what is already done")
    add("--workers", type=int, metavar="N", help="processes (one a core)")
    add("--custom", type=Path, metavar="FILE", help="your own data: JSON lines, or a folder")
    add("--name", help="what your own data shall be called")
    add("--masks", type=Path, metavar="DIR", help="folder of the mask images, with a folder")
    return parser.parse_args(argv)


def check_options(arguments: argparse.Namespace) -> None:
    """``ValueError`` for options that do not go together."""
    own, folder = arguments.custom is not None, arguments.custom and arguments.custom.is_dir()
    named = bool(arguments.dataset)
    rules = {
        "name data sets with --dataset, or your own with --custom (--help has examples)": (
            not own and not named
        ),
        "--dataset and --custom are two commands; give one of them": own and named,
        "--custom needs --name, what the data set shall be called": own and not arguments.name,
        "--custom needs --images, the folder of its images": own and not arguments.images,
        "--custom with a folder of lists needs --masks, the folder of the mask images": (
            own and folder and not arguments.masks
        ),
        "--masks goes with a folder of lists; lines of JSON name their masks themselves": (
            own and not folder and arguments.masks
        ),
        "--name and --masks describe your own data; they need --custom": (
            not own and (arguments.name or arguments.masks)
        ),
        "--download fetches published data sets; your own data must be there": (
            own and arguments.download
        ),
        "--accept-differences is about published counts; your own data have none": (
            own and arguments.accept_differences
        ),
        "--images is the folder of COCO's images; the demo draws its own": (
            arguments.dataset == ["demo"] and arguments.images
        ),
        "--pixels is data.image_size of the training to come, 416 as a rule": (
            arguments.pixels is not None and arguments.pixels < 1
        ),
        "--workers must be 1 or more": arguments.workers is not None and arguments.workers < 1,
    }
    for message, is_broken in rules.items():
        if is_broken:
            raise ValueError(message)


def known_names(names: list[str]) -> list[str]:
    """The data sets that are asked for, each once; ``ValueError`` has the nearest known name."""
    from utils.data.datasets import DATASETS, REFCOCO

    for name in names:
        if name not in (*DATASETS, "all"):
            near = get_close_matches(name.lower(), [*DATASETS, "all"], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; your own data need --custom"
            raise ValueError(f"no data set {name!r}; known are {', '.join(DATASETS)}, all{hint}")
    return list(dict.fromkeys(n for name in names for n in (REFCOCO if name == "all" else [name])))


def prepare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Find or fetch, pack and verify what is asked for; returns the headers of the stores.

    Raises:
        ValueError: something is missing, damaged or not as published, or the disk is too full.
    """
    from utils.logging import start_logging
    from utils.prepare.provision import find_or_fetch

    check_options(arguments)
    start_logging()
    if arguments.custom:
        return [pack(own_item(arguments), arguments)]
    names = known_names(arguments.dataset)
    published = [name for name in names if name != "demo"]
    options = {"images": arguments.images, "fetches": arguments.download, "force": arguments.force}
    progress = sys.stderr.isatty()
    found = find_or_fetch(arguments.root, published, **options, shows_progress=progress)
    items = {item.source.dataset: item for item in found}
    return [pack(items[n] if n in items else demo_item(arguments), arguments) for n in names]


def own_item(arguments: argparse.Namespace) -> "Item":
    """The user's own data."""
    from utils.prepare.custom import jsonl_source, lists_source
    from utils.prepare.pack import packed_header
    from utils.prepare.survey import Item, describe_own

    path, options = arguments.custom, {"images": arguments.images, "name": arguments.name}
    if path.is_dir():
        source = lists_source(path, masks=arguments.masks, **options)
    else:
        source = jsonl_source(path, **options)
    print(describe_own(arguments.root, source))
    return Item(source, None if arguments.force else packed_header(arguments.root, source))


def demo_item(arguments: argparse.Namespace) -> "Item":
    """The demo, generated if it is not there."""
    from utils.demo.writer import write_demo
    from utils.prepare.pack import packed_header
    from utils.prepare.refer import refer_source
    from utils.prepare.survey import Item

    source = refer_source(arguments.root, "demo")
    header = None if arguments.force else packed_header(arguments.root, source)
    folder = source.files[0].parent
    if header is None and not arguments.force and all(path.is_file() for path in source.files):
        print(f"demo: already generated in {folder} (--force generates it again)")
    elif header is None:
        print(f"demo: generating scenes in {folder}")
        write_demo(folder, shows_progress=sys.stderr.isatty())
    return Item(source, header)


def pack(item: "Item", arguments: argparse.Namespace) -> dict[str, Any]:
    """Pack a data set unless that is done, what is asked for beside it, and return its header."""
    from utils.data.store import store_path
    from utils.prepare.pack import pack_dataset, verify_dataset
    from utils.prepare.pixels import pack_pixels

    root, (source, header) = arguments.root, item
    name, path = source.dataset, store_path(root, source.dataset)
    options = {"workers": arguments.workers, "shows_progress": sys.stderr.isatty()}
    if header is None:
        print(f"{name}: packing into {path}", flush=True)
        header = pack_dataset(
            root,
            source,
            force=arguments.force,
            skip_bad=arguments.skip_bad,
            accept_differences=arguments.accept_differences,
            **options,
        )
    else:
        print(f"{name}: already packed in {path} (--force packs it again)", flush=True)
    if arguments.verify:
        verify_dataset(root, name, **options)
        print(f"{name}: verified, all images, masks and counts are as they were packed", flush=True)
    if arguments.pixels:
        pixels = pack_pixels(root, name, arguments.pixels, force=arguments.force, **options)
        size = pixels.stat().st_size
        print(f"{name}: images resized to {arguments.pixels} in {pixels}, {size:,} bytes")
    return header


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        headers = prepare(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FOLDER_FAULTS:
            raise
        print(f"error: {error.filename or arguments.root}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; give the same command again and it goes on from here", file=sys.stderr)
        return 130
    from utils.prepare.summary import summarise

    print(summarise(arguments.root, headers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
