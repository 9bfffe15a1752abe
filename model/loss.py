"""The text-to-pixel contrastive loss (CRIS; ETRIS, eq. 10-11)."""

import torch.nn.functional as F
from torch import Tensor


def text_to_pixel_loss(logits: Tensor, mask: Tensor, *, target: str = "majority") -> Tensor:
    """Mean over cells of ``-t log s(z) - (1 - t) log(1 - s(z))``; s: sigmoid.

    The logit ``z`` of a cell is the product of its feature with the sentence's, so the loss pulls
    the cells of the target to the sentence and pushes all others away.

    Args:
        logits: (B, 1, h, w).
        mask: (B, H, W), finer than the logits: 0 and 1, with ``nearest`` 0 to 255.
        target: how the mask becomes ``t``, see :func:`make_target`.
    """
    height, width = logits.shape[2:]
    wanted = make_target(mask, (height, width), target)
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)


def make_target(mask: Tensor, size: tuple[int, int], target: str) -> Tensor:
    """The mask (B, H, W) at the size of the logits: float32 (B, 1, h, w).

    ``majority``: 1 where at least half of the pixels that a cell touches are set.  ``nearest``, as
    the released code of CRIS and ETRIS: cell ``(i, j)`` is the grey of pixel
    ``(floor(i H / h), floor(j W / w))``, from 0 to 1, on the border of a mask in between.
    """
    pixels = mask[:, None].float()
    if target == "nearest":
        return F.interpolate(pixels / 255, size, mode="nearest")
    return (F.adaptive_avg_pool2d(pixels, size) >= 0.5).float()
