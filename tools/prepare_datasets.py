"""Pack referring segmentation data for training: annotations and images into LMDB files.

The demo data set is generated; the others are read from the official files, which
datasets/README.md says where to get and where to put. Finished work is never redone unasked.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """example:
  python tools/prepare_datasets.py --dataset demo
  python tools/prepare_datasets.py --dataset refcoco refcoco+ --root datasets"""


def prepare(root: Path, dataset: str, *, force: bool = False) -> dict[str, Any]:
    """Generate (demo) or read a data set, pack it, and return the header of its store.

    What is finished stays, unless ``force``. Raises ``ValueError`` for missing or damaged files.
    """
    from utils.data.demo.writer import write_demo
    from utils.data.packing import pack_dataset, packed_header
    from utils.data.refer import dataset_facts, source_files
    from utils.data.store import store_path

    folder = root / dataset_facts(dataset).folder
    header = None if force else packed_header(root, dataset)
    if header is not None:
        print(f"{dataset}: already packed in {store_path(root, dataset)} (--force packs it again)")
        return header
    shows_progress = sys.stderr.isatty()
    if dataset == "demo":
        if not force and all(path.is_file() for path in source_files(root, dataset)):
            print(f"{dataset}: already generated in {folder} (--force generates it again)")
        else:
            print(f"{dataset}: generating scenes in {folder}")
            write_demo(folder, shows_progress=shows_progress)
    print(f"{dataset}: packing into {store_path(root, dataset)}")
    return pack_dataset(root, dataset, force=force, shows_progress=shows_progress)


def report(root: Path, headers: list[dict[str, Any]]) -> str:
    """A table of references, sentences and images by split, and the bytes of every store."""
    from utils.data.refer import DATASETS
    from utils.data.store import store_path

    lines = [f"{'data set':<12}{'split':<8}{'refs':>9}{'sentences':>11}{'images':>9}"]
    stores: dict[str, None] = {}
    for header in headers:
        name = header["dataset"]
        stores |= {name: None, header["images"]: None}
        for split, count in header["splits"].items():
            published = DATASETS[name].splits[split]
            differs = published not in (0, count["refs"])
            note = f"   published: {published:,} refs" if differs else ""
            numbers = f"{count['refs']:>9,}{count['sentences']:>11,}{count['images']:>9,}"
            lines.append(f"{name:<12}{split:<8}{numbers}{note}")
    for name in stores:
        path = store_path(root, name)
        lines.append(f"{path}: {path.stat().st_size:,} bytes")
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    from utils.data.refer import DATASETS

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(DATASETS)
    parser.add_argument("--dataset", nargs="+", required=True, metavar="NAME", help=names)
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder (%(default)s)")
    parser.add_argument("--force", action="store_true", help="redo what is already done")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        headers = [
            prepare(arguments.root, name, force=arguments.force) for name in arguments.dataset
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(arguments.root, headers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
