"""Look at a packed data set: statistics of a split, and a contact sheet with masks and sentences.

With --sentence, both are of the references that have a sentence with all of these words.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402
from utils.data.datasets import LONG, SHORT  # noqa: E402
from utils.data.store import ReferStore, decode_mask  # noqa: E402

EXAMPLES = """  python tools/inspect_dataset.py --dataset refcoco --split val
  python tools/inspect_dataset.py --dataset demo --split testB --sentence left --sample 12"""
NUM_WORDS, WORDS_PER_ROW = 20, 5  # most frequent words that are printed
# excluded from the frequent words, of which they would be half
STOP_WORDS = {
    "a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "that", "the",
    "to", "with",
}  # fmt: skip

SIDE = 300  # the longer side of a picture on the sheet, in pixels
GAP = 16
COLUMNS = 6
TITLE_SIZE = 11  # height of its letters
INDENT = 12
MAX_SENTENCES = 8  # one's own data may have any number
MAX_LINES = 6  # of a sentence
OUTLINE = (255, 0, 200)  # which photographs hardly have
RING = 10  # radius in pixels around an object that is smaller than that
DIMMED = 0.55  # brightness beside the mask: dark enough to see the mask, light enough for the rest


class Statistics(NamedTuple):
    """Numbers of the references of a split that have at least one of the chosen sentences.

    Attributes:
        rows: positions of the N references in the split: int (N,).
        shares: area of each mask over that of its image, 0 to 1: float (N,).
        num_objects: references on each image that has any: int (images,).
        num_words: words of each chosen sentence: int (M,).
        num_tokens: the same in tokens of CLIP, start and end included: int (M,).
        words: how often each word occurs, without ``STOP_WORDS``.
        num_categories: different categories of the references.
    """

    rows: np.ndarray
    shares: np.ndarray
    num_objects: np.ndarray
    num_words: np.ndarray
    num_tokens: np.ndarray
    words: Counter[str]
    num_categories: int


class Reference(NamedTuple):
    """A reference on the sheet: image uint8 (H, W, 3), RGB, mask bool (H, W), and its sentences,
    each with whether it was asked for."""

    title: str
    image: np.ndarray
    mask: np.ndarray
    sentences: list[tuple[str, bool]]


def words_of(sentence: str) -> list[str]:
    """Split a sentence into words in lower case; "man's" and "t-shirt" are one word each."""
    return re.findall(r"\w+(?:['’-]\w+)*", sentence.lower())


def contains_words(sentence: str, phrase: str) -> bool:
    """Return whether all words of ``phrase`` are words of the sentence, in any order."""
    return set(words_of(phrase)) <= set(words_of(sentence))


def split_statistics(store: ReferStore, split: str, phrase: str = "") -> Statistics:
    """Count over the sentences of a split that contain the words of ``phrase``.

    Raises:
        ValueError: the data set has no such split, or no sentence is left.
    """
    index, records = store.index(split), store.references(split)
    chosen = [[contains_words(text, phrase) for _, text in row["sentences"]] for row in records]
    rows = np.flatnonzero([any(flags) for flags in chosen])
    if not len(rows):
        reason = f"has no sentence with the words of {phrase!r}" if records else "is empty"
        raise ValueError(f"{store.path}: split {split!r} {reason}")
    texts = [text for record in records for _, text in record["sentences"]]
    is_chosen = np.array([flag for flags in chosen for flag in flags])
    spoken = [words_of(text) for text, flag in zip(texts, is_chosen, strict=True) if flag]
    kept = [records[row] for row in rows]
    return Statistics(
        rows=rows,
        shares=index.area[rows] / [record["height"] * record["width"] for record in kept],
        num_objects=np.unique(index.file_name[rows], return_counts=True)[1],
        num_words=np.array([len(words) for words in spoken]),
        num_tokens=index.num_tokens[is_chosen],
        words=Counter(word for words in spoken for word in words if word not in STOP_WORDS),
        num_categories=len({record["category_id"] for record in kept}),
    )


def describe_split(name: str, statistics: Statistics) -> str:
    """Tabulate the statistics of a split."""
    tokens, shares = statistics.num_tokens, statistics.shares
    over = ", ".join(f"{(tokens > limit).sum():,} longer than {limit}" for limit in (SHORT, LONG))
    low, median, high = (f"{100 * share:.2f} %" for share in np.quantile(shares, (0.05, 0.5, 0.95)))
    rows = {
        "references": f"{len(statistics.rows):,}",
        "expressions": f"{len(tokens):,}",
        "images": f"{len(statistics.num_objects):,}",
        "categories": f"{statistics.num_categories:,}",
        "references an image": _summary(statistics.num_objects),
        "mask over image": f"median {median}, a twentieth below {low}, a twentieth above {high}; "
        f"{(shares == 0).sum():,} empty",
        "words an expression": _summary(statistics.num_words),
        "tokens, with both ends": f"{_summary(tokens)}; {over}",
    }
    words = [f"{word} {count:,}" for word, count in statistics.words.most_common(NUM_WORDS)]
    table = [words[first : first + WORDS_PER_ROW] for first in range(0, len(words), WORDS_PER_ROW)]
    lines = [*_table(list(rows.items())), "most frequent words"]
    lines += [f"  {row}" for row in _table(table)]
    lines.append(f"  without: {' '.join(sorted(STOP_WORDS))}")
    return "\n  ".join([name, *lines])


def _summary(numbers: np.ndarray) -> str:
    return f"mean {numbers.mean():.2f}, median {np.median(numbers):g}, most {numbers.max():,}"


def _table(rows: list) -> list[str]:
    return tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()


def describe_header(header: dict[str, Any]) -> str:
    """Tabulate what the header of the store says about the whole data set."""
    skipped, names = header["skipped"], header["skipped"]["images"]
    example = f", for example {names[0]}" if names else ""
    pairs = ", ".join(f"{pair}: {number:,}" for pair, number in header["shared_images"].items())
    rows = [
        ("skipped", f"{len(names):,} images, {skipped['refs']:,} references{example}"),
        ("shared images", pairs or "none"),
        *(
            ("differs from published", difference)
            for difference in header["differences"] or ["none"]
        ),
        *(("source", f"{sha}  {name}") for name, sha in header["sources"].items()),
    ]
    title = f"as packed (all splits), fingerprint {header['fingerprint']}"
    return "\n  ".join([title, *_table(rows)])


def draw_sheet(references: list[Reference]) -> np.ndarray:
    """Draw pictures in rows of six, uint8 (H, W, 3); sentences not asked for are grey."""
    from utils.sheets import grid

    sheet = grid([_draw_reference(reference) for reference in references], COLUMNS, gap=GAP)
    return np.pad(sheet, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


def _draw_reference(reference: Reference) -> np.ndarray:
    """Draw picture, title and sentences: (H, SIDE, 3)."""
    from utils.sheets import BLACK, GREY, draw_text, grid, stack

    title = draw_text(reference.title, SIDE, size=TITLE_SIZE, colour=GREY, max_lines=1)
    strips = [np.pad(_draw_mask(reference), ((0, 6), (0, 0), (0, 0)), constant_values=255)]
    strips.append(np.pad(title, ((0, 4), (0, 0), (0, 0)), constant_values=255))
    for text, is_asked in reference.sentences[:MAX_SENTENCES]:
        colour = BLACK if is_asked else GREY
        lines = draw_text(text, SIDE - INDENT, colour=colour, max_lines=MAX_LINES)
        strips.append(grid([draw_text("•", INDENT, colour=colour), lines], 2, gap=0))
    if (more := len(reference.sentences) - MAX_SENTENCES) > 0:
        strips.append(draw_text(f"and {more} more", SIDE, size=TITLE_SIZE, colour=GREY))
    return stack(strips)


def _draw_mask(reference: Reference) -> np.ndarray:
    """Resize the picture and outline its mask: (H, SIDE, 3)."""
    import cv2

    from utils.images import overlay

    height, width = reference.mask.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller = cv2.INTER_AREA if scale < 1 else None
    image = cv2.resize(reference.image, size, interpolation=smaller or cv2.INTER_CUBIC)
    # every pixel that the mask touches, so that the smallest object keeps its outline
    area = reference.mask.astype(np.float32)
    mask = cv2.resize(area, size, interpolation=smaller or cv2.INTER_NEAREST) > 0
    drawn = overlay(image, mask, OUTLINE, brightness=DIMMED)
    left, top, *extent = cv2.boundingRect(mask.astype(np.uint8))
    if mask.any() and max(extent) < RING:
        middle = left + extent[0] // 2, top + extent[1] // 2
        cv2.circle(drawn, middle, RING, OUTLINE, 1, cv2.LINE_AA)
    before = (SIDE - size[0]) // 2
    after = SIDE - size[0] - before
    return np.pad(drawn, ((0, 0), (before, after), (0, 0)), constant_values=255)


def write_sheet(store: ReferStore, rows: np.ndarray, options: argparse.Namespace) -> None:
    """Choose ``--sample`` of the references in ``rows`` by ``--seed``, and write their sheet."""
    from utils.data.images import decode_image
    from utils.images import write_image

    number = min(options.sample, len(rows))
    references = []
    chosen = np.random.default_rng(options.seed).choice(rows, number, replace=False)
    for row in np.sort(chosen).tolist():
        record = store.reference(options.split, row)
        name, mask = record["file_name"], decode_mask(record)
        image = decode_image(store.image(name))
        if image is None:
            raise ValueError(f"{store.images_path}: {name} cannot be decoded; pack it again")
        texts = [(text, contains_words(text, options.sentence)) for _, text in record["sentences"]]
        share = f"{100 * mask.mean():.3g} %" if mask.any() else "empty mask"
        references.append(Reference(f"{record['ref_id']} · {share} · {name}", image, mask, texts))
    sheet = draw_sheet(references)
    path = options.output or Path(f"runs/inspect/{store.dataset}-{options.split}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, sheet)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); name another --output"
        ) from None
    print(f"\n{path}: {number} references, {sheet.shape[1]} x {sheet.shape[0]} pixels")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="a packed data set")
    add("--split", required=True, metavar="NAME", help="one of its splits")
    add("--root", type=Path, default=Path("datasets"), help="folder (%(default)s)")
    add("--sentence", default="", metavar="WORDS", help="words to look for")
    sample = "references on the sheet (%(default)s)"
    add("--sample", type=int, default=24, metavar="N", help=sample)
    add("--seed", type=int, default=0, metavar="N", help="which references (%(default)s)")
    add("--output", type=Path, metavar="FILE.png", help="runs/inspect/DATASET-SPLIT.png")
    return parser.parse_args(argv)


def inspect(options: argparse.Namespace) -> None:
    """Print the statistics of a split and write its sheet; ValueError for wrong options."""
    if options.sentence and not words_of(options.sentence):
        raise ValueError(f"--sentence {options.sentence!r} has no word; give one or more")
    for name, value in (("--sample", options.sample), ("--seed", options.seed)):
        if value < 0:
            raise ValueError(f"{name} is {value}; give 0 or more")
    if options.output is not None and options.output.suffix != ".png":
        raise ValueError(f"--output {options.output} should end in .png, the form it has")
    store = ReferStore(options.root, options.dataset)
    store.check_split(options.split)
    statistics = split_statistics(store, options.split, options.sentence)
    words = f", expressions with the words of {options.sentence!r}" if options.sentence else ""
    print(describe_split(f"{options.dataset} {options.split}{words}", statistics))
    print(f"\n{describe_header(store.header)}")
    if options.sample:
        write_sheet(store, statistics.rows, options)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(argv)
    return run_command(lambda: inspect(options))


if __name__ == "__main__":
    sys.exit(main())
