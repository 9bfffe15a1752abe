"""Pack referring segmentation data for training: annotations and images into LMDB files.

RefCOCO, RefCOCO+ and G-Ref are packed from the official files, which are found where users of
CRIS, ETRIS, LAVT and REFER have them, or downloaded with --download. The demo is generated. Your
own data are described by a file of JSON lines or by the lists of CRIS (docs/own-data.md).

A table of what exists and what is missing is printed before anything starts. Finished work is
never repeated unless you ask: after Ctrl-C or an error, run the same command again to continue.
"""

import argparse
import errno
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402
from utils.data.datasets import DATASETS, REFCOCO  # noqa: E402
from utils.data.store import store_path  # noqa: E402
from utils.logging import start_logging  # noqa: E402
from utils.prepare.custom import jsonl_source, lists_source  # noqa: E402
from utils.prepare.fetch import Job, describe, find_or_fetch, summarise  # noqa: E402
from utils.prepare.pack import pack_dataset, packed_header  # noqa: E402
from utils.prepare.refer import refer_source  # noqa: E402
from utils.prepare.verify import verify_dataset  # noqa: E402

EXAMPLES = """  python tools/prepare_datasets.py --dataset demo
      generate the demo and pack it
  python tools/prepare_datasets.py --dataset refcoco refcoco+ --images /data/coco/train2014
      pack two data sets, their annotations from datasets/, their images from elsewhere
  python tools/prepare_datasets.py --dataset all --root /data/ref --download --verify
      download what is missing of all four (14 GB), pack it and read it back
  python tools/prepare_datasets.py --dataset refcoco --pixels 416
      the same, and store the images resized to what training reads, so that it decodes none
  python tools/prepare_datasets.py --custom mine.jsonl --images pictures --name mine
      pack your own data; train on it with data.dataset=mine
  python tools/prepare_datasets.py --custom anns --images images --masks masks --name medical
      the same from train.json, val.json, ... in the folder anns, as CRIS has them"""
# caused by the user's folders, not by this code
FOLDER_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST,
}  # fmt: skip


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    names = f"{', '.join(DATASETS)}, or all for the four without the demo"
    add("--dataset", nargs="+", default=[], metavar="NAME", help=names)
    add("--root", type=Path, default=Path("datasets"), help="folder of all data (%(default)s)")
    add("--images", type=Path, metavar="DIR", help="folder of the images, or one that holds it")
    add("--download", action="store_true", help="download missing files")
    add("--verify", action="store_true", help="read all that is packed, compare its checksums")
    add("--skip-bad", action="store_true", help="exclude references with a missing or bad image")
    accept = "pack files that are not as published, and record how they differ"
    add("--accept-differences", action="store_true", help=accept)
    pixels = "also store images resized to data.image_size, which training then reads (390 KB each)"
    add("--pixels", type=int, metavar="SIZE", help=pixels)
    add("--force", action="store_true", help="repeat finished work")
    add("--workers", type=int, metavar="N", help="processes (one per core)")
    add("--custom", type=Path, metavar="FILE", help="your own data: JSON lines, or a folder")
    add("--name", help="name of your own data")
    add("--masks", type=Path, metavar="DIR", help="folder of the mask images, with a folder")
    return parser.parse_args(argv)


def check_options(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that do not go together."""
    own, published = options.custom is not None, bool(options.dataset)
    lists = own and options.custom.is_dir()
    masks, pixels, workers = options.masks, options.pixels, options.workers
    mistakes = {
        "give --dataset, or --custom for your own data; see --help": not (own or published),
        "--dataset and --custom are two commands; give one of them": own and published,
        "--custom needs --name, the name of the data set": own and not options.name,
        "--custom needs --images, the folder of its images": own and not options.images,
        "--custom with a folder needs --masks, the folder of its masks": lists and not masks,
        "--masks is for a folder of lists, not for lines of JSON": own and not lists and masks,
        "--name is for your own data; it needs --custom": not own and options.name,
        "--masks is for your own data; it needs --custom": not own and masks,
        "--download is for published data sets, not for --custom": own and options.download,
        "--accept-differences is not for --custom": own and options.accept_differences,
        "--images is not for the demo": options.dataset == ["demo"] and options.images,
        f"--pixels {pixels} should be 1 or more": pixels is not None and pixels < 1,
        f"--workers {workers} should be 1 or more": workers is not None and workers < 1,
    }
    for message, is_made in mistakes.items():
        if is_made:
            raise ValueError(message)


def known_names(names: list[str]) -> list[str]:
    """Expand ``all`` and drop duplicates; ``ValueError`` suggests the nearest known name."""
    for name in names:
        if name not in (*DATASETS, "all"):
            near = get_close_matches(name.lower(), [*DATASETS, "all"], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; your own data need --custom"
            raise ValueError(f"no data set {name!r}; known are {', '.join(DATASETS)}, all{hint}")
    return list(dict.fromkeys(n for name in names for n in (REFCOCO if name == "all" else [name])))


def prepare(options: argparse.Namespace) -> None:
    """Find or download, pack and verify data sets, and print what was packed.

    Raises:
        ValueError: something is missing, damaged or not as published, or the disk is too full.
    """
    check_options(options)
    start_logging()
    if options.custom:
        headers = [pack(own_job(options), options)]
    else:
        names = known_names(options.dataset)
        jobs = find_or_fetch(
            options.root,
            [name for name in names if name != "demo"],
            images=options.images,
            downloads=options.download,
            force=options.force,
            shows_progress=sys.stderr.isatty(),
        )
        found = {job.source.dataset: job for job in jobs}
        headers = [pack(found.get(name) or demo_job(options), options) for name in names]
    print(summarise(options.root, headers))


def own_job(options: argparse.Namespace) -> Job:
    """Find the user's own data, and print what is there."""
    path, places = options.custom, {"images": options.images, "name": options.name}
    if path.is_dir():
        source = lists_source(path, masks=options.masks, **places)
    else:
        source = jsonl_source(path, **places)
    if not source.images.is_dir():
        raise ValueError(
            f"the folder {source.images} is missing; --images should name one that exists"
        )
    job = Job(source, None if options.force else packed_header(options.root, source))
    print(describe(options.root, [job]))
    return job


def demo_job(options: argparse.Namespace) -> Job:
    """Generate the demo if it is not there."""
    from utils.demo.writer import write_demo

    source = refer_source(options.root, "demo")
    header = None if options.force else packed_header(options.root, source)
    folder = source.files[0].parent
    if header is None and not options.force and all(path.is_file() for path in source.files):
        print(f"demo: already generated in {folder} (--force generates it again)")
    elif header is None:
        print(f"demo: generating scenes in {folder}")
        write_demo(folder, shows_progress=sys.stderr.isatty())
    return Job(source, header)


def pack(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Pack, verify and resize a data set unless that is done, and return its header."""
    from utils.prepare.pixels import pack_pixels

    root, (source, header) = options.root, job
    name, path = source.dataset, store_path(root, source.dataset)
    shared = {"workers": options.workers, "shows_progress": sys.stderr.isatty()}
    if header is None:
        print(f"{name}: packing into {path}", flush=True)
        header = pack_dataset(
            root,
            source,
            force=options.force,
            skip_bad=options.skip_bad,
            accept_differences=options.accept_differences,
            **shared,
        )
    else:
        print(f"{name}: already packed in {path} (--force packs it again)", flush=True)
    if options.verify:
        verify_dataset(root, name, **shared)
        print(f"{name}: verified, all images, masks and counts are as they were packed", flush=True)
    if options.pixels:
        pixels = pack_pixels(root, name, options.pixels, force=options.force, **shared)
        size = pixels.stat().st_size
        print(f"{name}: images resized to {options.pixels} in {pixels}, {size:,} bytes")
    return header


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(argv)

    def command() -> None:
        try:
            prepare(options)
        except OSError as error:
            if error.errno not in FOLDER_ERRORS:
                raise
            raise ValueError(f"{error.filename or options.root}: {error.strerror}") from None

    on_interrupt = "\nstopped; run the same command again to continue from here"
    return run_command(command, on_interrupt=on_interrupt)


if __name__ == "__main__":
    sys.exit(main())
