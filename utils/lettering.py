"""Text in pictures, whatever script it is written in."""

from collections.abc import Sequence

import cv2
import numpy as np

SIZE = 15  # height of the letters, in pixels
ROW = 1.3  # height of a row over that of its letters
BLACK, GREY = (0, 0, 0), (110, 110, 110)
WEIGHT = 400  # as a browser's normal weight
CUT = "…"


def wrap(text: str, width: int, *, size: int = SIZE, most_rows: int | None = None) -> list[str]:
    """``text`` in rows of at most ``width`` pixels, broken between words where that is possible.

    Beyond ``most_rows`` the text is cut, and the last row ends in an ellipsis.
    """
    rows, words = [""], text.split()
    while words:
        word = words.pop(0)
        longer = f"{rows[-1]} {word}".strip()
        if _width(longer, size) <= width:
            rows[-1] = longer
        elif rows[-1]:
            rows.append("")
            words.insert(0, word)
        else:
            head = _fitting(word, width, size)
            rows[-1] = word[:head]
            words[:0] = [word[head:]] if word[head:] else []
    if most_rows is None or len(rows) <= most_rows:
        return rows
    last = f"{rows[most_rows - 1]} {rows[most_rows]}"
    room = width - _width(CUT, size)
    return [*rows[: most_rows - 1], last[: _fitting(last, room, size)].rstrip() + CUT]


def lettering(
    rows: Sequence[str], width: int, *, size: int = SIZE, colour: tuple[int, int, int] = BLACK
) -> np.ndarray:
    """``rows`` below each other on white: uint8 (H, ``width``, 3), RGB."""
    height = round(size * ROW)
    strip = np.full((height * len(rows), width, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        cv2.putText(strip, row, (0, height * number + size), colour, _font(), size, WEIGHT)
    return strip


def _font() -> "cv2.FontFace":
    return cv2.FontFace("sans")  # OpenCV keeps it, and brings one that has Latin to Chinese


def _width(text: str, size: int) -> int:
    left, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, WEIGHT)
    return left + width


def _fitting(text: str, width: int, size: int) -> int:
    """How many characters of ``text`` fit, at least one."""
    number = len(text)
    while number > 1 and _width(text[:number], size) > width:
        number -= 1
    return number
