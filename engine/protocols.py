"""The ways to score a mask: from logits of the square to a mask of the picture.

``native`` is this project's, ``released`` that of the released code of CRIS and ETRIS, which the
papers' figures were made with.  A change of what one computes gives it another number.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.threshold import largest_outside
from utils.data.transforms import Letterbox, restore_logits, warp_to_image


@dataclass(frozen=True)
class Protocol:
    """How logits become masks.

    Attributes:
        number: of its version.
        resize, comparison: what it does, for results files.
        masks: logits ``(N, h, w)`` of the square, its letterbox and the threshold -> masks of 0 and
            1 at the size of the picture, float32 ``(N, H, W)``, on the logits' device.
    """

    name: str
    number: int
    resize: str
    comparison: str
    masks: Callable[[Tensor, Letterbox, float], Tensor]


def native_masks(logits: Tensor, letterbox: Letterbox, threshold: float) -> Tensor:
    """``sigmoid(logit) > threshold``, the logits sampled once, bilinearly, at every pixel."""
    outside = largest_outside(threshold, logits.device)
    return restore_logits(logits, letterbox).gt_(outside)


def released_masks(logits: Tensor, letterbox: Letterbox, threshold: float) -> Tensor:
    """``warp(resize(sigmoid(logit))) > threshold``: probabilities resampled twice, as released.

    See :func:`released_probability`.
    """
    masks = torch.from_numpy(released_probability(logits, letterbox) > threshold)
    return masks.to(logits.device, torch.float32)


def released_probability(logits: Tensor, letterbox: Letterbox) -> np.ndarray:
    """Probabilities at the size of the picture, float32 (N, H, W), on the CPU, as OpenCV needs.

    First at the square, bicubic with ``align_corners=True``, then at the picture, bicubic by the
    inverse matrix of the letterbox, 0 beyond the square.
    """
    size = (letterbox.size, letterbox.size)
    probability = logits.float().sigmoid()[:, None]
    square = F.interpolate(probability, size, mode="bicubic", align_corners=True)[:, 0]
    return np.stack([warp_to_image(one, letterbox) for one in square.cpu().numpy()])


PROTOCOLS = {
    "native": Protocol(
        "native",
        1,
        "letterbox to a square; logits to the original pixels by one bilinear resampling",
        "sigmoid(logit) > threshold, at the original size",
        native_masks,
    ),
    "released": Protocol(
        "released",
        1,
        "letterbox to a square; probabilities to the square, bicubic with align_corners, then to "
        f"the original pixels by warpAffine, bicubic (OpenCV {cv2.__version__.split('.')[0]})",
        "probability > threshold, at the original size",
        released_masks,
    ),
}
