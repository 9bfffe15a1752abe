"""What was packed, in a table and notes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.data.datasets import LONG, REFCOCO, SHORT
from utils.data.store import store_path

MOST_LISTED = 10
Header = dict[str, Any]


def summarise(root: Path, headers: Sequence[Header]) -> str:
    """A row a split, notes on what is out of the ordinary, and the stores' sizes."""
    titles = (f">{SHORT} tokens", f">{LONG} tokens")
    lines = [
        "",
        f"{'data set':<12}{'split':<7}{'references':>11}{'expressions':>12}{'images':>8}"
        f"{'bytes':>16}{titles[0]:>12}{titles[1]:>12}{'seconds':>9}",
    ]
    for header in headers:
        for split, count in header["splits"].items():
            lines.append(
                f"{header['dataset']:<12}{split:<7}{count['refs']:>11,}{count['sentences']:>12,}"
                f"{count['images']:>8,}{count['bytes']:>16,}{count['over_17']:>12,}"
                f"{count['over_22']:>12,}{count['seconds']:>9.1f}"
            )
    lines += [f"{header['dataset']}: {note}" for header in headers for note in _notes(header)]
    stores = [name for header in headers for name in (header["dataset"], header["images"])]
    for name in dict.fromkeys(stores):
        path = store_path(root, name)
        lines.append(f"{path}: {path.stat().st_size:,} bytes")
    return "\n".join(lines)


def _notes(header: Header) -> list[str]:
    """What a user should know of a data set, a sentence each."""
    dataset, notes = header["dataset"], []
    if header["differences"]:
        notes.append(f"accepted, not as published: {'; '.join(header['differences'])}")
    elif dataset in REFCOCO:
        notes.append("references and expressions of every split are as many as published")
    names = header["skipped"]["images"]
    if names:
        others = len(names) - MOST_LISTED
        listed = ", ".join(names[:MOST_LISTED]) + (f" and {others:,} more" if others > 0 else "")
        notes.append(
            f"{len(names):,} images were skipped with {header['skipped']['refs']:,} references: "
            f"{listed}"
        )
    for split, count in header["splits"].items():
        if count["empty_masks"]:
            fate = ", left out of training" if split == "train" else ""
            notes.append(f"{count['empty_masks']:,} masks of {split} are empty{fate}")
        if count["empty_sentences"]:
            notes.append(f"{count['empty_sentences']:,} expressions of {split} have no words")
    for pair, number in header["shared_images"].items():
        notes.append(f"{' and '.join(pair.split())} share {number:,} images")
    if not header["shared_images"] and len(header["splits"]) > 1:
        notes.append("no image stands in two splits")
    return notes
