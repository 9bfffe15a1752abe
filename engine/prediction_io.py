"""Read the pictures and sentences that ``predict.py`` is given, and write what it finds."""

import csv
import glob
import io
import itertools
import json
import re
import sys
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from tqdm import tqdm

from engine.metrics import threshold_mask
from utils.data.images import READ_FLAGS
from utils.files import atomic_write, write_bytes, write_text
from utils.images import overlay
from utils.logging import progress_bar

if TYPE_CHECKING:
    from engine.prediction import Predictor

INDEX = "predictions.json"
KINDS = ("mask", "overlay", "cutout", "probability")  # of PNG files
ORIENTATION = 0x0112  # of EXIF
MAX_NAME_BYTES = 120  # of a folder's name; file systems take 255
# Of the files in a folder; a file that is named itself is tried whatever its suffix.
SUFFIXES = {".avif", ".bmp", ".dib", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"}
SUFFIXES |= {".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}

Picture = str | Path | np.ndarray | Image.Image


def as_rgb(picture: Picture) -> np.ndarray:
    """Convert a path, an array or a PIL image to RGB: uint8 (H, W, 3).

    Files and PIL images are turned as their EXIF orientation says. Arrays are grey (H, W), RGB or
    RGBA, uint8, uint16 or bool. The upper 8 of 16 bits count, also of PIL's modes ``I`` and
    ``I;16``; transparency is ignored. Raises ``ValueError`` for a file that cannot be read, for
    PIL's mode ``F``, whose range nobody knows, or for an array of another kind.
    """
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        upright = ImageOps.exif_transpose(picture)
        if upright.mode == "F":
            raise ValueError("a PIL image of mode F is not a picture; convert it to 8 bits first")
        # Pillow would clip 16 bits at 255
        is_deep = upright.mode.startswith("I")
        picture = np.asarray(upright if is_deep else upright.convert("RGB"))
        if is_deep:
            if picture.min(initial=0) < 0 or picture.max(initial=0) > 0xFFFF:
                raise ValueError(f"a PIL image of mode {upright.mode} has more than 16 bits")
            picture = picture.astype(np.uint16)
    if not isinstance(picture, np.ndarray):
        kind = type(picture).__name__
        raise ValueError(f"{kind} is not a picture; give a path, a NumPy array or a PIL image")
    channels = picture.shape[2:] or (1,)
    fits = picture.ndim > 1 and channels in ((1,), (3,), (4,)) and picture.size > 0
    if not fits or picture.dtype not in (np.uint8, np.uint16, np.bool_):
        raise ValueError(
            f"an array of {picture.dtype} and shape {picture.shape} is not a picture; give uint8 "
            "from 0 to 255, uint16 or bool, of shape (H, W), (H, W, 3) or (H, W, 4)"
        )
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    elif picture.dtype == np.bool_:
        picture = picture.astype(np.uint8) * 255
    if channels == (1,):
        picture = np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(picture[:, :, :3])


def read_image(path: Path) -> np.ndarray:
    """Read a picture as RGB, uint8 (H, W, 3), turned as its EXIF orientation says.

    Raises:
        ValueError: the file is missing, damaged or no picture.
    """
    if not path.is_file():
        what = "a folder, not a picture; name one in it" if path.is_dir() else "no such picture"
        raise ValueError(f"{path}: {what}")
    try:
        data = path.read_bytes()
        pixels = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(pixels, READ_FLAGS) if data else None
    except (OSError, cv2.error) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if image is None:
        raise ValueError(f"{path}: cannot be decoded as a picture; give a JPEG or PNG file")
    orientation = 1
    # OpenCV fills a missing end with grey, and reads the orientation of few formats
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as file:
                file.draft("L", (1, 1))  # decodes a JPEG at an eighth, but reads all its bytes
                file.load()
                orientation = file.getexif().get(ORIENTATION, 1)
    except Exception as error:  # any, for formats that Pillow does not read but OpenCV has read
        if "truncated" in str(error):
            raise ValueError(f"{path}: the file is cut short; copy it again") from None
    return turn(image, orientation)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn or mirror (H, W, 3) as an EXIF orientation of 1 to 8 says; others change nothing."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


@dataclass
class Inputs:
    """What to segment: the sentences about each picture.

    Attributes:
        texts: the sentences, by the path of the picture.
        problems: a line for each input that cannot be used.
        is_single: whether the only input is one picture that was given by its own name.
    """

    texts: dict[Path, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    is_single: bool = False


def find_pictures(words: Sequence[str], texts: Sequence[str]) -> Inputs:
    """Ask all sentences about every picture that ``words`` name: files, folders and globs.

    A folder means the pictures in it, by their suffix and without folders inside; a glob may search
    those with ``**``. A picture named twice counts once. An empty sentence is a ``ValueError``.
    """
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"--text number {number} is empty; say what to find")
    inputs = Inputs()
    for word in words:
        path = Path(word)
        if path.is_dir():
            paths = [one for one in path.glob("[!.]*") if one.suffix.lower() in SUFFIXES]
        elif path.exists():  # before globs: a name may contain brackets
            paths = [path]
        else:
            paths = [Path(name) for name in glob.glob(word, recursive=True)]
        paths = sorted(one for one in paths if one.is_file())
        if not paths:
            what = "a folder without pictures" if path.is_dir() else "no such picture"
            inputs.problems.append(f"{word}: {what}")
        inputs.texts |= {one: list(texts) for one in paths}
        inputs.is_single = len(words) == 1 and paths == [path]
    return inputs


def read_pairs(path: Path) -> Inputs:
    """Read a table with the columns ``image`` and ``sentence``: CSV with a header, or JSON lines.

    Names of pictures are relative to the folder of the table. Sentences about one picture come
    together, in their order. Raises ``ValueError`` for a table that is missing or of another kind.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl", ".ndjson"):
        raise ValueError(f"{path}: a table of pairs ends in .csv or .jsonl")
    if not path.is_file():
        raise ValueError(f"{path}: no such table of pairs")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a mark before line 1
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    inputs = Inputs()
    for line, row in _csv_rows(path, text) if kind == ".csv" else _json_rows(text):
        image, sentence = row.get("image"), row.get("sentence")
        if not isinstance(image, str) or not image.strip():
            inputs.problems.append(f"{path}: line {line}: no 'image'; name a picture")
        elif not isinstance(sentence, str) or not sentence.strip():
            inputs.problems.append(f"{path}: line {line}: no 'sentence'; say what to find")
        else:
            inputs.texts.setdefault(path.parent / image.strip(), []).append(sentence)
    return inputs


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    if missing := sorted({"image", "sentence"}.difference(reader.fieldnames)):
        columns = ", ".join(missing)
        raise ValueError(f"{path}: no column {columns}; line 1 should be image,sentence")
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: not CSV: {error}") from None


def _json_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = None
            with suppress(json.JSONDecodeError):
                row = json.loads(line)
            yield number, row if isinstance(row, dict) else {}


@dataclass
class Job:
    """The work of ``predict.py``: segment pictures and write the files for each sentence.

    Attributes:
        kinds: what to write, some of ``KINDS`` and ``rle``.
        logits_path: file for the logits of the last picture, float32 (N, H, W), or None.
    """

    predictor: "Predictor"
    inputs: Inputs
    output: Path
    kinds: Collection[str]
    logits_path: Path | None

    def run(self) -> int:
        """Segment every picture, report those that cannot be read; return how many could be.

        The files of the n-th sentence are ``<n>-mask.png`` and so on: in ``output`` for a single
        picture, otherwise in a folder for each. ``predictions.json`` lists the sentences with their
        files, area and box, and the COCO RLE if ``kinds`` has it.
        """
        texts, num_done = self.inputs.texts, 0
        entries: list[dict[str, Any]] = []
        names = [""] if self.inputs.is_single else folder_names(texts)
        # OpenCV's own messages about broken files say less than ours
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            with progress_bar(total=len(texts), desc="pictures", leave=False) as bar:
                for path, name in zip(texts, names, strict=True):
                    try:
                        entries += self._segment(path, self.output / name)
                        num_done += 1
                    except ValueError as error:
                        report_problem(str(error))
                    bar.update()
        finally:  # also after Ctrl-C
            if entries:
                lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
                write_text(self.output / INDEX, f"[\n{lines}\n]\n")
        return num_done

    def _segment(self, path: Path, folder: Path) -> Iterator[dict[str, Any]]:
        """Write the files for each sentence about a picture, and yield its entry in the index."""
        image, texts = read_image(path), self.inputs.texts[path]
        folder.mkdir(parents=True, exist_ok=True)
        stored = []
        for number, logits in enumerate(self.predictor.each(image, texts), 1):
            mask = threshold_mask(logits, self.predictor.threshold).cpu().numpy()
            probability = logits.sigmoid().cpu().numpy()
            files = {}
            for kind in (kind for kind in KINDS if kind in self.kinds):
                file = folder / f"{number}-{kind}.png"
                pixels = draw(kind, image, mask, probability)
                write_bytes(file, cv2.imencode(".png", pixels)[1].tobytes())
                files[kind] = file.relative_to(self.output).as_posix()
            text, max_words = texts[number - 1], self.predictor.max_words
            is_cut = self.predictor.num_tokens(text) > max_words
            note = f"  (cut to {max_words} tokens)" if is_cut else ""
            shown = self.output / next(iter(files.values())) if files else path
            tqdm.write(f"{shown}  {text!r}: {describe(mask)}{note}")
            yield {
                "image": str(path),
                "sentence": text,
                "number": number,
                "height": mask.shape[0],
                "width": mask.shape[1],
                "threshold": self.predictor.threshold,
                "area": int(mask.sum()),
                "bbox": box_of(mask),
                "files": files,
                **({"segmentation": coco_rle(mask)} if "rle" in self.kinds else {}),
            }
            if self.logits_path is not None:
                stored.append(logits.cpu().numpy())
        if self.logits_path is not None:
            self.logits_path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.logits_path) as part, part.open("wb") as stream:
                np.save(stream, np.stack(stored))


def report_problem(line: str) -> None:
    """Print ``line`` as an error, above the progress bar if there is one."""
    tqdm.write(f"error: {line}", file=sys.stderr)


def draw(kind: str, image: np.ndarray, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Draw the PNG file of a kind, with colours in OpenCV's order.

    ``mask``: 0 and 255. ``overlay``: the picture with the mask outlined and the rest darkened.
    ``cutout``: the picture, transparent and black outside the mask. ``probability``: 16 bits, 65535
    is 1. ``image`` is RGB, uint8 (H, W, 3), ``mask`` bool (H, W), ``probability`` float32 (H, W).
    """
    if kind == "mask":
        return mask.astype(np.uint8) * 255
    if kind == "probability":
        return np.round(probability * 65535).astype(np.uint16)
    if kind == "overlay":
        return cv2.cvtColor(overlay(image, mask), cv2.COLOR_RGB2BGR)
    opaque = mask.astype(np.uint8)[:, :, None]
    return np.dstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR) * opaque, opaque * 255])


def folder_names(paths: Iterable[Path]) -> list[str]:
    """Choose a folder's name for each picture: that of the file, made safe and unique.

    Letters, digits, ``.``, ``_`` and ``-`` stay. Names that are equal or differ only in case, which
    some file systems ignore, get a number from the second on.
    """
    names, taken = [], {INDEX.casefold()}
    for path in paths:
        stem = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", path.stem)).strip(".")
        stem = stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "picture"
        numbered = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
        name = next(name for name in numbered if name.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def coco_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask (H, W) as compressed COCO RLE, its counts as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def box_of(mask: np.ndarray) -> list[int] | None:
    """Find the box around a mask, ``[x, y, width, height]`` as COCO has it; None if it is empty."""
    return list(cv2.boundingRect(mask.astype(np.uint8))) if mask.any() else None


def describe(mask: np.ndarray) -> str:
    """Say how much of the picture ``mask`` covers, and where, in pixels."""
    if not mask.any():
        return "nothing found"
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    place = f"x {left} to {left + width - 1}, y {top} to {top + height - 1}"
    return f"{100 * mask.mean():.1f} % of the picture, {place}"
