"""CoOp: a learned context before the words (Zhou et al., IJCV 2022; ETRIS, table 2)."""

import torch
from torch import nn

from model.backbones.clip import CLIP
from model.backbones.state import STEPS, TowerState


class Context(nn.Module):
    """Let the text tower read ``[start, V_1, ..., V_M, words, end]`` with learned ``V`` (eq. 2).

    All sentences share one context. It runs through every block of the text tower as
    ``TowerState.context``; other bridges and the decoder see only the sentence's own tokens.

    In the released CoOp ``V_i`` gets position ``i``, and every word moves by ``M`` positions. Here
    the words keep their positions, since only those of the longest sentence are loaded from CLIP,
    and ``V_i`` gets none: ``V_i + p_i`` can learn no more than ``V_i``.

    Args:
        clip: the towers; they give the width.
        tokens: number ``M`` of learned tokens; 8 in ETRIS, table 2.

    Raises:
        ValueError: if ``tokens`` is below 1.
    """

    image_step = STEPS

    def __init__(self, clip: CLIP, *, tokens: int = 8):
        super().__init__()
        if tokens < 1:
            raise ValueError(f"coop: tokens {tokens} must be at least 1")
        self.context = nn.Parameter(0.02 * torch.randn(tokens, clip.text.width))

    def before_blocks(self, image: TowerState, text: TowerState) -> tuple[TowerState, TowerState]:
        """Add the context.

        Raises:
            ValueError: if another CoOp has added one.
        """
        if text.context is not None:
            raise ValueError(
                "coop: another coop has already put a context before the words; drop one and give "
                "the other more tokens"
            )
        context = self.context.to(text.x.dtype).expand(len(text.x), -1, -1)  # (B, M, C)
        return image, text._replace(context=context)

    def after_step(
        self, step: int, image: TowerState, text: TowerState, carry: None
    ) -> tuple[TowerState, TowerState, None]:
        """Change nothing: the tower itself runs the context through its blocks."""
        return image, text, carry
