"""Values of annotation files, checked: whole numbers, sentences, and names of files."""

import re
import reprlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from utils.prepare.annotations import Entry

_DIGITS = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")


def whole_number(value: Any) -> int:
    """An identifier or a size, written as a number or as its digits; ValueError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    raise ValueError(f"{reprlib.repr(value)} should be one whole number")


def read_sentence(entry: Any) -> list[Any]:
    """``[sentence id or None, text]`` of a plain text or of a dict with ``sent`` or ``raw``.

    The text loses its leading and trailing blanks and nothing else; it may be empty.
    """
    if isinstance(entry, str):
        return [None, clean_text(entry)]
    if not isinstance(entry, dict):
        raise ValueError(f"{reprlib.repr(entry)} should be a text, or have one in 'sent'")
    key = "sent" if entry.get("sent") is not None else "raw"
    if entry.get(key) is None:
        raise ValueError("has neither 'sent' nor 'raw'; one of them should hold the text")
    try:
        text = clean_text(entry[key])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    number = entry.get("sent_id")
    try:
        return [None if number is None else whole_number(number), text]
    except ValueError as error:
        raise ValueError(f"sent_id: {error}") from None


def clean_text(value: Any) -> str:
    """A text without leading and trailing blanks; ValueError if it is none."""
    if not isinstance(value, str):
        raise ValueError(f"{reprlib.repr(value)} should be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!a} holds half a character; write it anew") from None
    return value.strip()


def read_sentences(value: Any) -> list[list[Any]]:
    """A list of sentences as ``read_sentence`` gives them; ValueError if it is none, or empty."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"sentences: {reprlib.repr(value)} should be a list")
    if not value:
        raise ValueError("has no sentence; sentences should hold at least one")
    sentences = []
    for position, entry in enumerate(value):
        try:
            sentences.append(read_sentence(entry))
        except ValueError as error:
            raise ValueError(f"sentences[{position}]: {error}") from None
    return sentences


def number_sentences(entries: Iterable[Entry]) -> None:
    """Count the sentences of all entries from 1 if no one has an identifier of its own.

    Raises:
        ValueError: some have one and some do not.
    """
    pairs = [(entry, sentence) for entry in entries for sentence in entry.record["sentences"]]
    lacking = [entry for entry, (number, _) in pairs if number is None]
    if not lacking:
        return
    if len(lacking) < len(pairs):
        raise ValueError(
            f"{lacking[0].place}: a sentence has no sent_id, and other references have them; "
            "give all sentences one or none"
        )
    for number, (_, sentence) in enumerate(pairs, start=1):
        sentence[0] = number


def relative_path(value: Any) -> str:
    """A path below a folder, with single ``/`` and no ``.``; ValueError if it leaves the folder."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{reprlib.repr(value)} should be the name of a file")
    if "\\" in value or "\0" in value:
        raise ValueError(f"{value!r} holds a character that no path has here; write '/' in paths")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{value!r} leaves its folder; write the path from that folder on")
    return str(path)
