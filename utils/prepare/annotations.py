"""Define references as all readers of annotations give them, and check values of their files.

``name`` says in the error messages of the checks which value is wrong.
"""

import re
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from utils.data.datasets import SplitFacts

_DIGITS = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")


class Entry(NamedTuple):
    """One reference as its files give it.

    Attributes:
        record: all of a record (``store.py``) but its mask in ``rle``. ``height`` and ``width``
            are None where only the image can tell and it cannot be read.
        segmentation: COCO polygons, a COCO RLE, or the path of a mask image.
        place: file and reference or line, which begins every error message.
    """

    record: dict[str, Any]
    segmentation: Any
    place: str


class Source(NamedTuple):
    """Where a data set is read from.

    Attributes:
        dataset: its name.
        files: the annotation files, whose checksums are stored.
        images: the folder of its images.
        image_store: name of the packed images.
        splits: those it may have, in order.
        read: all references in the order of the files; ValueError for what cannot be read.
        published: split -> published counts; empty for one's own data.
        shares_images: whether an image may be in several splits.
    """

    dataset: str
    files: tuple[Path, ...]
    images: Path
    image_store: str
    splits: tuple[str, ...]
    read: Callable[[], list[Entry]]
    published: dict[str, SplitFacts]
    shares_images: bool

    @property
    def file_list(self) -> str:
        """The annotation files, for messages."""
        return ", ".join(map(str, self.files))


def whole_number(value: Any, name: str) -> int:
    """Read an identifier or a size, written as a number or as digits; ValueError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    raise ValueError(f"{name}: {reprlib.repr(value)} should be one whole number")


def clean_text(value: Any, name: str) -> str:
    """Strip blanks at both ends of a text; ValueError if it is not a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: {reprlib.repr(value)} should be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: {value!a} has half a character; write it again") from None
    return value.strip()


def read_sentences(value: Any, name: str) -> list[list[Any]]:
    """Read a list of sentences as ``[sentence id or None, text]``; a text may be empty.

    A sentence is a text, or a dict with the text in ``sent`` or, without one, in ``raw``.

    Raises:
        ValueError: there is no sentence, or one is not a text.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}: {reprlib.repr(value)} should be a list")
    if not value:
        raise ValueError(f"{name}: {value!r} has no sentence; write at least one")
    return [_read_sentence(entry, f"{name}[{number}]") for number, entry in enumerate(value)]


def _read_sentence(entry: Any, name: str) -> list[Any]:
    if isinstance(entry, str):
        return [None, clean_text(entry, name)]
    if not isinstance(entry, dict):
        raise ValueError(f"{name}: {reprlib.repr(entry)} should be a text, or have one in 'sent'")
    key = "sent" if entry.get("sent") is not None else "raw"
    if entry.get(key) is None:
        raise ValueError(f"{name} has neither 'sent' nor 'raw'; write the text in one of them")
    text, number = clean_text(entry[key], f"{name}: {key}"), entry.get("sent_id")
    return [None if number is None else whole_number(number, f"{name}: sent_id"), text]


def number_sentences(entries: Iterable[Entry]) -> None:
    """Count the sentences of all entries from 1 if none has an identifier.

    Raises:
        ValueError: some have one and some do not.
    """
    pairs = [(entry, sentence) for entry in entries for sentence in entry.record["sentences"]]
    without = [entry for entry, (number, _) in pairs if number is None]
    if not without:
        return
    if len(without) < len(pairs):
        raise ValueError(
            f"{without[0].place}: a sentence has no sent_id, and other references have them; "
            "give one to all sentences or to none"
        )
    for number, (_, sentence) in enumerate(pairs, start=1):
        sentence[0] = number


def relative_path(value: Any, name: str) -> str:
    """Check a path below a folder, and write it with single ``/`` and without ``.``.

    Raises:
        ValueError: it is not a path, or it leaves the folder.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: {reprlib.repr(value)} should be the name of a file")
    if "\\" in value or "\0" in value:
        raise ValueError(f"{name}: {value!r} has a character that paths cannot have; write '/'")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{name}: {value!r} leaves its folder; write a path below that folder")
    return str(path)
