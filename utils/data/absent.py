"""What to do about a data set that is not packed: the command, near names, stores of others."""

import difflib
import re
import shlex
from pathlib import Path

from utils.data.facts import DATASETS

IMAGES_SUFFIX = "-images"  # of image stores, which are no data sets
NAME = re.compile(r"[A-Za-z0-9_.+-]+")


def store_path(root: str | Path, name: str) -> Path:
    """Where a packed data set, or the images of several, lie."""
    return Path(root) / "lmdb" / f"{name}.lmdb"


def packing_command(root: str | Path, dataset: str) -> str:
    """The command that packs a data set."""
    what = "--dataset" if dataset in DATASETS else "--custom FILE --images FOLDER --name"
    words = shlex.join([dataset, "--root", str(root)])
    return f"python tools/prepare_datasets.py {what} {words}"


def packed_names(root: str | Path) -> list[str]:
    """Names of the data sets that are packed in ``root``."""
    names = (path.name.removesuffix(".lmdb") for path in (Path(root) / "lmdb").glob("*.lmdb"))
    return sorted(name for name in names if not name.endswith(IMAGES_SUFFIX))


def explain_absent(root: str | Path, dataset: str) -> str:
    """One sentence on a data set without a store: packed by other tools, not packed, or unknown."""
    if NAME.fullmatch(dataset):
        command = packing_command(root, dataset)
        if files := sorted((Path(root) / "lmdb" / dataset).glob("*.lmdb")):
            # one file a split, as they have it
            return foreign_message(files[0], command, is_in_the_way=False)
        if dataset in DATASETS:
            return f"{store_path(root, dataset)} is missing; make it with: {command}"
    packed = packed_names(root)
    near = difflib.get_close_matches(dataset, {*DATASETS, *packed}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    own = ", ".join(name for name in packed if name not in DATASETS)
    also = f", and packed in {Path(root) / 'lmdb'} are {own}" if own else ""
    command = packing_command(root, dataset if NAME.fullmatch(dataset) else "NAME")
    return (
        f"no data set {dataset!r}{hint}; known are {', '.join(DATASETS)}{also}; "
        f"files of your own are packed by: {command}"
    )


def foreign_message(path: Path, command: str, *, is_in_the_way: bool) -> str:
    """One sentence on an LMDB file that other tools packed, perhaps where ours is to lie."""
    return (
        f"{path} was packed by other tools, those of CRIS, ETRIS or BarLeRIa (pickle or pyarrow "
        f"records), which is not read; {'move it away and ' if is_in_the_way else ''}rebuild the "
        f"data set from its annotations and images: {command}"
    )
