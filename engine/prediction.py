"""What ``predict.py`` does: one picture, some sentences, a mask and an overlay for each."""

import os
from pathlib import Path

import cv2
import numpy as np
import torch

from engine.checkpoint import load_segmenter
from engine.evaluator import found, predict_logits
from engine.pictures import overlay, write_image
from engine.precision import resolve_precision
from utils.config import Config
from utils.data.tokenizer import tokenize
from utils.data.transforms import letterbox_image


def find(
    config: Config,
    checkpoint: Path,
    *,
    image_path: Path,
    texts: list[str],
    output: Path,
    logits_path: Path | None = None,
    device: torch.device,
) -> str:
    """Write ``<n>-mask.png`` and ``<n>-overlay.png`` for each text; return a line for each.

    ``logits_path`` gets the logits at the size of the picture, float32 ``(N, H, W)``. Raises
    ``ValueError`` for a picture that cannot be read, an empty text, or a checkpoint that does not
    fit.
    """
    image = read_image(image_path)
    _check_texts(texts)
    max_words = config.data.longest_sentence
    segmenter = load_segmenter(config, checkpoint, max_words).to(device).eval()
    square, letterbox = letterbox_image(image, config.data.image_size)
    pixels = torch.from_numpy(square).permute(2, 0, 1)  # (3, S, S)
    ids, lengths = tokenize(texts, max_words)
    logits = predict_logits(
        segmenter,
        pixels.expand(len(texts), -1, -1, -1),
        ids,
        [letterbox] * len(texts),
        precision=resolve_precision(config.train.precision, device),
        device=device,
    )
    output.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (text, length) in enumerate(zip(texts, lengths, strict=True), 1):
        mask = found(logits[number - 1], config.eval.threshold).cpu().numpy()
        write_image(output / f"{number}-mask.png", mask.astype(np.uint8) * 255)
        write_image(output / f"{number}-overlay.png", overlay(image, mask))
        note = f"  (cut to {max_words} tokens)" if length > max_words else ""
        lines.append(f"{output / f'{number}-mask.png'}  {text!r}: {describe(mask)}{note}")
    if logits_path is not None:
        _write_array(logits_path, torch.stack(logits).cpu().numpy())
    return "\n".join(lines)


def read_image(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) RGB uint8; ``ValueError`` if it is missing or cannot be decoded."""
    if not path.is_file():
        raise ValueError(f"{path}: no such picture")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    if image is None:
        raise ValueError(f"{path}: no picture that can be decoded; give a JPEG or PNG file")
    return image


def describe(mask: np.ndarray) -> str:
    """The share of the picture that ``mask`` covers and the box around it, in pixels."""
    if not mask.any():
        return "nothing found"
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = f"x {columns[0]} to {columns[-1]}, y {rows[0]} to {rows[-1]}"
    return f"{100 * mask.mean():.1f} % of the picture, {box}"


def _check_texts(texts: list[str]) -> None:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"--text number {number} is empty; say what to find")


def _write_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    with aside.open("wb") as file:
        np.save(file, array)
    os.replace(aside, path)
