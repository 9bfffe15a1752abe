"""The two towers of a CLIP in step, with the bridges between them."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from model.bridges import Bridge
from model.clip.clip import CLIP
from model.clip.common import STAGE_ENDS, STEPS, Features


class Encoder(nn.Module):
    """Runs both towers step by step and lets every bridge act after each step.

    ``taps`` are the steps after which a side network reads the image map; -1: before the first.
    """

    def __init__(self, clip: CLIP, bridges: list[nn.Module], *, taps: Sequence[int] = ()):
        super().__init__()
        self.clip, self.bridges, self.taps = clip, nn.ModuleList(bridges), tuple(taps)

    def forward(self, image: Tensor, ids: Tensor) -> Features:
        """Normalised image ``(B, 3, S, S)`` and token ids ``(B, L)`` -> features."""
        visual, text = self.clip.visual, self.clip.text
        v, t = visual.embed(image), text.embed(ids)
        bridges = [cast(Bridge, bridge) for bridge in self.bridges]
        for bridge in bridges:
            v, t = bridge.enter(v, t)
        maps: list[Tensor] = []
        trail = [v.x.detach()] if -1 in self.taps else []
        carry: list[Any] = [None] * len(bridges)
        for step in range(STEPS):
            v, t = visual.run(step, v), text.run(step, t)
            for i, bridge in enumerate(bridges):
                v, t, carry[i] = bridge.after(step, v, t, carry[i])
            if step in STAGE_ENDS:
                maps.append(v.x)
            if step in self.taps:
                trail.append(v.x.detach())
        words, sentence = text.head(t, ids)
        return Features(tuple(maps), visual.head(v), words, sentence, tuple(trail))
