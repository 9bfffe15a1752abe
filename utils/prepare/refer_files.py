"""The files of REFER as they are: references as pickle or JSON, and COCO's ``instances.json``."""

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

REF_KEYS = {"ref_id", "ann_id", "image_id", "split", "sentences"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DROPPED: dict[str, Any] = {}  # stands for an annotation that nobody asked for


class _CodeError(pickle.UnpicklingError):
    """A pickle asks for more than plain data."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, text and numbers; a pickle that names any code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise _CodeError(
            f"it asks for {module}.{name}, and only plain data is read; take the published file, "
            "or write yours as JSON"
        )


# all that a damaged pickle raises, as the documentation of the module warns
_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError,
    ImportError, OverflowError, MemoryError,
)  # fmt: skip


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read REFER's references without running code: a pickle of Python 2 or 3, or JSON.

    Python 2 kept text as bytes. UTF-8 is read as such; other bytes come as lone surrogates, which
    ``repaired`` makes text of.

    Raises:
        ValueError: missing, damaged, holding more than plain data, or without the expected keys.
    """
    with _open(path) as file:
        start = file.read(64).removeprefix(_BYTE_ORDER_MARK).lstrip()
        file.seek(0)
        # no pickle of a list begins with a bracket
        refs = _load_json(file, path) if start[:1] in (b"[", b"{") else _load_pickle(file, path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(
            f"{path} is no REFER file: it holds no list of references; take the published file"
        )
    for position, ref in enumerate(refs):
        if missing := REF_KEYS - ref.keys():
            name = ref.get("ref_id", f"at position {position} (counted from 0)")
            keys = ", ".join(sorted(missing))
            raise ValueError(f"{path}: reference {name} has no {keys}; every one needs it")
    return refs


def repaired(text: str) -> str:
    """A text of ``read_refs`` whose bytes were no UTF-8, taken for Windows' Western European."""
    if text.isascii():
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text  # half a character of another origin
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def read_instances(path: Path, annotations: Collection[int] | None = None) -> dict[str, Any]:
    """Read COCO's ``instances.json``; ValueError if it is missing or something else.

    ``annotations`` are the identifiers of those to keep, None for all. The published files hold
    four times what a data set refers to, and keeping less of them halves time and memory.
    """

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        is_known = "segmentation" in row and isinstance(row.get("id"), int)
        return _DROPPED if is_known and row["id"] not in (annotations or ()) else row

    with _open(path) as file:
        instances = _load_json(file, path, object_hook=None if annotations is None else keep)
    if not isinstance(instances, dict) or not all(
        isinstance(instances.get(key), list) for key in ("images", "annotations")
    ):
        raise ValueError(
            f"{path} holds no lists of COCO 'images' and 'annotations'; take the file that lies "
            "beside the references in their archive"
        )
    rows = instances["annotations"]
    return {**instances, "annotations": [row for row in rows if row is not _DROPPED]}


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise ValueError(f"{path} is missing; datasets/README.md says where each file comes from")
    return path.open("rb")


def _load_pickle(file: BinaryIO, path: Path) -> Any:
    try:
        return _PlainUnpickler(file, encoding="utf-8", errors="surrogateescape").load()
    except _CodeError as error:
        raise ValueError(f"{path} is no readable REFER file: {error}") from error
    except _PICKLE_ERRORS as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path} is no readable REFER file: {reason}; fetch it again") from error


def _load_json(file: BinaryIO, path: Path, **options: Any) -> Any:
    try:
        return json.load(file, **options)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON file: {error}; fetch it again") from error
