"""The two frozen towers in step, with the bridges between them."""

from typing import NamedTuple

from torch import Tensor, nn

from model.clip.clip import CLIP
from model.clip.common import STAGE_ENDS, STEPS


class Features(NamedTuple):
    """What the decoder reads."""

    maps: tuple[
        Tensor, ...
    ]  # image maps (B, C_i, H_i, W_i) of the stages, the last as the tower left it
    joint: Tensor  # the last map in CLIP's joint space: (B, E, H, W)
    words: Tensor  # (B, L, C)
    sentence: Tensor  # (B, E)


class Encoder(nn.Module):
    """Runs both towers step by step and lets every bridge act after each step."""

    def __init__(self, clip: CLIP, bridges: list[nn.Module]):
        super().__init__()
        self.clip, self.bridges = clip, nn.ModuleList(bridges)

    def forward(self, image: Tensor, ids: Tensor) -> Features:
        """Normalised image ``(B, 3, S, S)`` and token ids ``(B, L)`` -> features."""
        visual, text = self.clip.visual, self.clip.text
        v, t = visual.embed(image), text.embed(ids)
        for bridge in self.bridges:
            v, t = bridge.enter(v, t)
        maps, carry = [], [None] * len(self.bridges)
        for step in range(STEPS):
            v, t = visual.run(step, v), text.run(step, t)
            for i, bridge in enumerate(self.bridges):
                v, t, carry[i] = bridge.after(step, v, t, carry[i])
            if step in STAGE_ENDS:
                maps.append(v.x)
        words, sentence = text.head(t, ids)
        return Features(tuple(maps), visual.head(v), words, sentence)
