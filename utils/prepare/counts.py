"""The references of each split, and how many there are beside what is published."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from utils.prepare.annotations import Entry, Source


class Numbered(NamedTuple):
    """An entry and its place among all of the annotation files."""

    position: int
    entry: Entry

    @property
    def file_name(self) -> str:
        """The name of its image."""
        return self.entry.record["file_name"]


Groups = Mapping[str, list[Numbered]]  # by split


def group_entries(source: Source, entries: list[Entry]) -> Groups:
    """The entries of every split that is published or has any, in the order of ``source.splits``.

    Raises:
        ValueError: an entry names a split that the data set does not have, or there is no entry.
    """
    if not entries:
        raise ValueError(f"{files_of(source)}: there is no reference in it")
    groups: dict[str, list[Numbered]] = {split: [] for split in source.splits}
    for position, entry in enumerate(entries):
        split = entry.record["split"]
        if split not in groups:
            known = ", ".join(source.splits)
            raise ValueError(f"{entry.place}: split {split!r} is none of {known}")
        groups[split].append(Numbered(position, entry))
    return {name: rows for name, rows in groups.items() if rows or name in source.published}


def image_names(groups: Groups) -> dict[str, set[str]]:
    """The images of every split."""
    return {split: {row.file_name for row in rows} for split, rows in groups.items()}


def shared_images(groups: Groups) -> dict[str, int]:
    """``"train val"`` -> images that stand in both, for pairs of splits that share any."""
    names = image_names(groups)
    pairs = {f"{a} {b}": len(names[a] & names[b]) for a, b in combinations(names, 2)}
    return {pair: num for pair, num in pairs.items() if num}


def find_differences(source: Source, groups: Groups) -> list[str]:
    """What differs from the publication, a sentence each: counts, and images that are shared."""
    differences = []
    for split, rows in groups.items():
        published = source.published.get(split)
        counts = len(rows), sum(len(row.entry.record["sentences"]) for row in rows)
        if published and published.refs and counts != tuple(published):
            differences.append(
                "{} has {:,} references and {:,} expressions, published are {:,} and {:,}".format(
                    split, *counts, *published
                )
            )
    if not source.shares_images:
        for pair, num in shared_images(groups).items():
            names = " and ".join(pair.split())
            differences.append(f"{names} have {num:,} images in common, published are none")
    return differences


def refuse_differences(source: Source, differences: list[str]) -> None:
    """``ValueError`` if there are any, with the way out."""
    if differences:
        raise ValueError(
            f"{files_of(source)}: not {source.dataset} as it is published: "
            f"{'; '.join(differences)}; take the files that datasets/README.md names, or pack "
            "these as they are with --accept-differences, which is recorded"
        )


def files_of(source: Source) -> str:
    """The annotation files, for messages."""
    return ", ".join(map(str, source.files))
