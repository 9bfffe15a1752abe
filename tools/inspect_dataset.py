"""Look at a packed data set: statistics of a split, and a contact sheet with masks and sentences.

With --sentence, both are of the references that have a sentence with all of these words.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import numpy as np

    from tools.dataset_statistics import Statistics
    from tools.reference_sheet import Reference
    from utils.data.store import ReferStore

EXAMPLE = """example:
  python tools/inspect_dataset.py --dataset refcoco --split val
  python tools/inspect_dataset.py --dataset demo --split testB --sentence left --sample 12"""
NUM_WORDS = 20  # most frequent ones that are printed
WORDS_A_ROW = 5


def report(header: dict[str, Any], split: str, statistics: "Statistics", phrase: str) -> str:
    """All that is said of a split, a line for each kind of number."""
    from tools.dataset_statistics import STOP_WORDS
    from utils.data.datasets import LONG, SHORT

    tokens = statistics.num_tokens
    over = ", ".join(f"{(tokens > limit).sum():,} longer than {limit}" for limit in (SHORT, LONG))
    rows = {
        "references": f"{len(statistics.rows):,}",
        "expressions": f"{len(tokens):,}",
        "images": f"{len(statistics.num_objects):,}",
        "categories": f"{statistics.num_categories:,}",
        "references an image": summary(statistics.num_objects),
        "mask over image": _areas(statistics.shares),
        "words an expression": summary(statistics.num_words),
        "tokens, with both ends": f"{summary(tokens)}; {over}",
    }
    condition = f", expressions with the words of {phrase!r}" if phrase else ""
    lines = [f"{header['dataset']} {split}{condition}"]
    lines += [f"  {name:<24}{row}" for name, row in rows.items()]
    frequent = [f"{word} {count:,}" for word, count in statistics.words.most_common(NUM_WORDS)]
    lines.append("  most frequent words")
    for first in range(0, len(frequent), WORDS_A_ROW):
        row = frequent[first : first + WORDS_A_ROW]
        lines.append(f"    {''.join(f'{entry:<18}' for entry in row).rstrip()}")
    lines.append(f"    left out: {' '.join(sorted(STOP_WORDS))}")
    return "\n".join(lines)


def summary(numbers: "np.ndarray") -> str:
    """Mean, median and largest of whole numbers."""
    import numpy as np

    return f"mean {numbers.mean():.2f}, median {np.median(numbers):g}, most {numbers.max():,}"


def _areas(shares: "np.ndarray") -> str:
    import numpy as np

    low, median, high = (f"{100 * value:.2f} %" for value in np.quantile(shares, (0.05, 0.5, 0.95)))
    empty = (shares == 0).sum()
    return f"median {median}, a twentieth below {low}, a twentieth above {high}; {empty:,} empty"


def recorded(header: dict[str, Any]) -> str:
    """What the header of the store says of the whole data set."""
    skipped, shared = header["skipped"], header["shared_images"]
    names = skipped["images"]
    more = f", {names[0]} for one" if names else ""
    lines = [
        f"as packed (all splits), fingerprint {header['fingerprint']}",
        f"  skipped                 {len(names):,} images, {skipped['refs']:,} references{more}",
    ]
    pairs = ", ".join(f"{pair}: {number:,}" for pair, number in shared.items())
    lines.append(f"  shared images           {pairs or 'none'}")
    differences = header["differences"] or ["none"]
    lines += [f"  differs from published  {difference}" for difference in differences]
    lines += [f"  source                  {sha}  {name}" for name, sha in header["sources"].items()]
    return "\n".join(lines)


def references(
    store: "ReferStore", split: str, rows: "np.ndarray", phrase: str
) -> list["Reference"]:
    """What the contact sheet shows of the references in ``rows``."""
    from tools.dataset_statistics import says
    from tools.reference_sheet import Reference
    from utils.data.masks import decode_mask

    found = []
    for row in rows.tolist():
        record = store.reference(split, row)
        name, mask = record["file_name"], decode_mask(record)
        share = f"{100 * mask.mean():.3g} %" if mask.any() else "empty mask"
        sentences = [(text, says(text, phrase)) for _, text in record["sentences"]]
        title = f"{record['ref_id']} · {share} · {name}"
        found.append(Reference(title, _decoded(store, name), mask, sentences))
    return found


def _decoded(store: "ReferStore", name: str) -> "np.ndarray":
    import cv2
    import numpy as np

    data = np.frombuffer(store.image(name), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"{store.images_path}: {name} cannot be decoded; pack it again")
    return image


def write_sheet(
    store: "ReferStore", split: str, statistics: "Statistics", arguments: argparse.Namespace
) -> str:
    """Draw ``--sample`` references by ``--seed``, write their sheet, and return a line about it."""
    import numpy as np

    from tools.reference_sheet import reference_sheet
    from utils.images import write_image

    number = min(arguments.sample, len(statistics.rows))
    rng = np.random.default_rng(arguments.seed)
    rows = np.sort(rng.choice(statistics.rows, number, replace=False))
    sheet = reference_sheet(references(store, split, rows, arguments.sentence))
    path = arguments.output or Path(f"runs/inspect/{store.dataset}-{split}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, sheet)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); name another --output"
        ) from None
    return f"{path}: {number} references, {sheet.shape[1]} x {sheet.shape[0]} pixels"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a packed data set")
    parser.add_argument("--split", required=True, metavar="NAME", help="one of its splits")
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder (%(default)s)")
    parser.add_argument("--sentence", default="", metavar="WORDS", help="words to look for")
    parser.add_argument(
        "--sample", type=int, default=24, metavar="N", help="references on the sheet (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which (%(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.png", help="runs/inspect/DATASET-SPLIT.png"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        _check(arguments)
        from tools.dataset_statistics import split_statistics
        from utils.data.store import ReferStore

        store = ReferStore(arguments.root, arguments.dataset)
        store.check_split(arguments.split)
        statistics = split_statistics(store, arguments.split, arguments.sentence)
        print(report(store.header, arguments.split, statistics, arguments.sentence))
        print(f"\n{recorded(store.header)}")
        if arguments.sample:
            print(f"\n{write_sheet(store, arguments.split, statistics, arguments)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from tools.dataset_statistics import words_of

    if arguments.sentence and not words_of(arguments.sentence):
        raise ValueError(f"--sentence {arguments.sentence!r} has no word; give one or more")
    if arguments.sample < 0:
        raise ValueError(f"--sample is {arguments.sample}; give 0 for no picture, or more")
    if arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}; give 0 or more")
    if arguments.output is not None and arguments.output.suffix != ".png":
        raise ValueError(f"--output {arguments.output} should end in .png, the form it has")


if __name__ == "__main__":
    sys.exit(main())
