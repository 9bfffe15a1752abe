"""The text-to-pixel contrastive loss (CRIS; ETRIS, eq. 10-11)."""

import torch.nn.functional as F
from torch import Tensor


def text_to_pixel_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over pixels of ``-log s(z)`` in the target, ``-log(1 - s(z))`` outside; s: sigmoid.

    The logit ``z`` of a pixel is the product of its feature with the sentence's, so the loss pulls
    the pixels of the target to the sentence and pushes all others away.

    Args:
        logits: (B, 1, h, w).
        mask: (B, H, W) of 0 and 1, finer than the logits; a cell of the logits belongs to the
            target if at least half of the pixels that it touches do.
    """
    height, width = logits.shape[2:]
    target = F.adaptive_avg_pool2d(mask[:, None].float(), (height, width)) >= 0.5
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())
