"""Decode the masks of records, compressed COCO RLE, and count their pixels."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def decode_mask(record: dict[str, Any]) -> np.ndarray:
    """Decode the mask of a record: bool (H, W)."""
    # pycocotools stores it by columns, which every reader of rows would pay for
    return np.ascontiguousarray(coco_mask.decode(_rle(record)).view(bool))


def mask_areas(records: Iterable[dict[str, Any]]) -> list[int]:
    """Count the pixels of every record's mask."""
    # one by one: given 256 or more, pycocotools overflows a byte that should hold their number
    return [int(coco_mask.area(_rle(record))) for record in records]


def _rle(record: dict[str, Any]) -> dict[str, Any]:
    return {"size": [record["height"], record["width"]], "counts": record["rle"].encode("ascii")}
