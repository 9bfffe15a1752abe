"""The published data sets: their files, their splits, and how much is in them."""

from collections.abc import Iterable
from typing import NamedTuple


class SplitFacts(NamedTuple):
    """Published references and expressions of a split; 0 where the user chooses their number."""

    refs: int
    sentences: int


class DatasetFacts(NamedTuple):
    """What is known of a data set before its files are read.

    Attributes:
        folder: of its annotations, below the root.
        refs: file of its references.
        images: folder of its images, below the root.
        image_store: name of the packed images; data sets on the same images share one.
        max_words: tokens at which a sentence is cut, start and end included.
        splits: name -> published counts.
        shares_images: whether an image may be in several splits. RefCOCO, RefCOCO+ and the
            UMD split of G-Ref divide images; Google's split of G-Ref divides objects.
    """

    folder: str
    refs: str
    images: str
    image_store: str
    max_words: int
    splits: dict[str, SplitFacts]
    shares_images: bool = False


_COCO = ("images/train2014", "coco-images")
SHORT, LONG = 17, 22

# Counts of the files that REFER (Yu et al., 2016) links to. ETRIS and BarLeRIa print RefCOCO's
# figure for the training expressions of RefCOCO+, and count a test set of Google's split of G-Ref
# that was never released (104,560 expressions).
DATASETS = {
    "demo": DatasetFacts(
        "demo", "refs(unc).p", "demo/images", "demo-images", SHORT,
        dict.fromkeys(("train", "val", "testA", "testB"), SplitFacts(0, 0)),
    ),
    "refcoco": DatasetFacts(
        "refcoco", "refs(unc).p", *_COCO, SHORT,
        {
            "train": SplitFacts(42404, 120624),
            "val": SplitFacts(3811, 10834),
            "testA": SplitFacts(1975, 5657),
            "testB": SplitFacts(1810, 5095),
        },
    ),
    "refcoco+": DatasetFacts(
        "refcoco+", "refs(unc).p", *_COCO, SHORT,
        {
            "train": SplitFacts(42278, 120191),
            "val": SplitFacts(3805, 10758),
            "testA": SplitFacts(1975, 5726),
            "testB": SplitFacts(1798, 4889),
        },
    ),
    "refcocog_u": DatasetFacts(
        "refcocog", "refs(umd).p", *_COCO, LONG,
        {
            "train": SplitFacts(42226, 80512),
            "val": SplitFacts(2573, 4896),
            "test": SplitFacts(5023, 9602),
        },
    ),
    "refcocog_g": DatasetFacts(
        "refcocog", "refs(google).p", *_COCO, LONG,
        {"train": SplitFacts(44822, 85474), "val": SplitFacts(5000, 9536)},
        shares_images=True,
    ),
}  # fmt: skip

REFCOCO = ("refcoco", "refcoco+", "refcocog_u", "refcocog_g")
SPLITS = ("train", "val", "test", "testA", "testB")


def dataset_facts(dataset: str) -> DatasetFacts:
    """Look up a published data set; ``ValueError`` lists the known names."""
    if dataset not in DATASETS:
        raise ValueError(f"no data set {dataset!r}; known are {', '.join(DATASETS)}")
    return DATASETS[dataset]


def check_split(dataset: str, split: str, splits: Iterable[str]) -> None:
    """Raise ``ValueError`` with the splits of a data set if ``split`` is none of them."""
    names = list(splits)
    if split in names:
        return
    reason = "; its test set was never released" if dataset == "refcocog_g" else ""
    raise ValueError(
        f"data set {dataset!r} has no split {split!r}{reason}; it has {', '.join(names)}"
    )


def default_max_words(datasets: Iterable[str]) -> int:
    """Return where sentences are cut: the most tokens of several data sets; 17 for one's own."""
    return max(DATASETS[name].max_words if name in DATASETS else SHORT for name in datasets)
