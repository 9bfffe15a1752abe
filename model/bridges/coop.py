"""CoOp: a learned context before the words (Zhou et al., IJCV 2022; a row of ETRIS's table 2)."""

import torch
from torch import nn

from model.backbones.blocks import STEPS, Hidden
from model.backbones.clip import CLIP


class Context(nn.Module):
    """The text tower reads ``[start, V_1, ..., V_M, word, ..., end]`` with learned ``V`` (eq. 2).

    One context serves all sentences ("unified").  It runs through every block of the text tower in
    ``Hidden.context``; other bridges and the decoder see the sentence's own tokens alone.

    In the released CoOp the whole sequence is counted through: ``V_i`` gets position ``i``, every
    word moves ``M`` places on.  Here the words keep the positions that they have without a context,
    for the positions of CLIP are cut to the longest sentence when they are loaded, and so a context
    takes no room from a sentence.  ``V_i`` gets none: ``V_i + p_i`` learns no more than ``V_i``.

    Args:
        clip: the towers; the width is read off it.
        tokens: number ``M`` of learned tokens; 8 in ETRIS's table 2.

    Raises:
        ValueError: if there is no token.
    """

    image_step = STEPS

    def __init__(self, clip: CLIP, *, tokens: int = 8):
        super().__init__()
        if tokens < 1:
            raise ValueError(f"coop: tokens {tokens} must be at least 1")
        self.context = nn.Parameter(0.02 * torch.randn(tokens, clip.text.width))

    def enter(self, image: Hidden, text: Hidden) -> tuple[Hidden, Hidden]:
        if text.context is not None:
            raise ValueError(
                "coop: another coop has put a context before the words already; drop one of the "
                "two and give the other more tokens"
            )
        context = self.context.to(text.x.dtype).expand(len(text.x), -1, -1)  # (B, M, C)
        return image, text._replace(context=context)

    def after(
        self, step: int, image: Hidden, text: Hidden, carry: None
    ) -> tuple[Hidden, Hidden, None]:
        return image, text, carry
