"""Which pictures and which sentences: files, folders, globs, and tables of pairs."""

import csv
import glob
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.picture_files import SUFFIXES


class Question(NamedTuple):
    """A picture and the sentences about it."""

    path: Path
    texts: list[str]


class Inputs(NamedTuple):
    """What to segment, what cannot be, and whether one picture was given by its own name."""

    questions: list[Question]
    problems: list[str]
    is_single: bool


def from_pictures(words: Sequence[str], texts: Sequence[str]) -> Inputs:
    """All sentences about every picture that ``words`` name: files, folders and globs.

    A folder stands for the pictures in it, by their suffix and without folders inside; a glob may
    search those with ``**``. A picture that is named twice counts once.

    Raises:
        ValueError: a sentence without words.
    """
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"--text number {number} is empty; say what to find")
    paths: dict[Path, None] = {}
    problems = []
    for word in words:
        found = _pictures(word)
        paths |= dict.fromkeys(found)
        if not found:
            what = "a folder without pictures" if Path(word).is_dir() else "no such picture"
            problems.append(f"{word}: {what}")
    is_single = len(words) == 1 and not Path(words[0]).is_dir() and list(paths) == [Path(words[0])]
    return Inputs([Question(path, list(texts)) for path in paths], problems, is_single)


def from_pairs(path: Path) -> Inputs:
    """The pairs of a table, CSV with a header or JSON lines: ``image`` and ``sentence``.

    Names of pictures are read from the folder of the table. Sentences about one picture come
    together, in their order.

    Raises:
        ValueError: a table that is missing or of another kind.
    """
    by_picture: dict[Path, list[str]] = {}
    problems = []
    for place, row in _rows(path):
        image, sentence = row.get("image"), row.get("sentence")
        if not isinstance(image, str) or not image.strip():
            problems.append(f"{place}: no 'image'; name a picture")
        elif not isinstance(sentence, str) or not sentence.strip():
            problems.append(f"{place}: no 'sentence'; say what to find")
        else:
            by_picture.setdefault(path.parent / image.strip(), []).append(sentence)
    questions = [Question(picture, texts) for picture, texts in by_picture.items()]
    return Inputs(questions, problems, is_single=False)


def _pictures(word: str) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        files = (file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        return sorted(file for file in files if file.is_file() and file.name[0] != ".")
    if path.exists():  # before globs: a name may hold brackets
        return [path]
    return sorted(
        found for name in glob.glob(word, recursive=True) if (found := Path(name)).is_file()
    )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, ``pairs.csv: line 2``."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table of pairs")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a mark before line 1
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no UTF-8 text; save it as UTF-8") from None
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, text)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _json_rows(path, text)
    else:
        raise ValueError(f"{path}: a table of pairs ends in .csv or .jsonl")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = header
    if missing := {"image", "sentence"} - set(header):
        raise ValueError(
            f"{path}: no column {', '.join(sorted(missing))}; its first line should be "
            "image,sentence"
        )
    try:
        for row in reader:
            yield f"{path}: line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: no CSV: {error}") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None  # as one that names no picture
        yield f"{path}: line {number}", row if isinstance(row, dict) else {}
