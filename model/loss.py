"""The text-to-pixel contrastive loss (CRIS; ETRIS, eq. 10-11)."""

import torch.nn.functional as F
from torch import Tensor


def text_to_pixel_loss(logits: Tensor, mask: Tensor, *, target: str = "majority") -> Tensor:
    """Compute the mean over cells of ``-t log s(z) - (1 - t) log(1 - s(z))``; s: sigmoid.

    The logit ``z`` of a cell is the product of its feature and the sentence's. So the loss pulls
    the cells of the target towards the sentence and pushes all others away.

    Args:
        logits: (B, 1, h, w).
        mask: (B, H, W), finer than the logits, of 0 and 1; with ``nearest`` of 0 to 255.
        target: how ``t`` is made from the mask, see :func:`make_target`.
    """
    height, width = logits.shape[2:]
    wanted = make_target(mask, (height, width), target)
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)


def make_target(mask: Tensor, size: tuple[int, int], target: str) -> Tensor:
    """Reduce a mask (B, H, W) to the size of the logits: float32 (B, 1, h, w).

    ``majority``: 1 where at least half of the pixels that a cell touches are set. ``nearest``, as
    in the released code of CRIS and ETRIS: cell ``(i, j)`` takes the grey value of pixel
    ``(floor(i H / h), floor(j W / w))``, from 0 to 1; it is between them on the border of a mask.
    """
    pixels = mask[:, None].float()
    if target == "nearest":
        return F.interpolate(pixels / 255, size, mode="nearest")
    return (F.adaptive_avg_pool2d(pixels, size) >= 0.5).float()
