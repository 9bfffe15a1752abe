"""The two towers of a CLIP in step, with the bridges between them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from model.backbones.blocks import STAGE_ENDS, STEPS, Features, Hidden
from model.backbones.clip import CLIP
from model.bridges import Bridge


class Seen(NamedTuple):
    """What the towers make of images before a sentence has any part in it.

    ``maps`` and ``trail`` are those of :class:`Features` before ``step``; at ``step`` itself, after
    which a bridge acts first, the image tower has run.
    """

    hidden: Hidden  # of the image tower
    step: int  # -1: before the first block; STEPS: the tower has run to its end
    maps: tuple[Tensor, ...] = ()
    trail: tuple[Tensor, ...] = ()
    joint: Tensor | None = None  # (B, E, H, W) where the tower has run to its end


class Encoder(nn.Module):
    """Runs both towers step by step and lets every bridge act after each step.

    ``taps`` are the steps after which a side network reads the image map; -1: before the first.

    Attributes:
        recomputes: keep for the backward pass what the towers hold between two steps, and compute
            what lies within a step again.
    """

    recomputes = False

    def __init__(self, clip: CLIP, bridges: list[nn.Module], *, taps: Sequence[int] = ()):
        super().__init__()
        self.clip, self.bridges, self.taps = clip, nn.ModuleList(bridges), tuple(taps)

    def forward(self, image: Tensor | Sequence[Seen], ids: Tensor) -> Features:
        """Normalised image ``(B, 3, S, S)`` and token ids ``(B, L)`` -> features.

        In place of the images what :meth:`encode_image` made of each, one for every sentence.
        """
        visual, text = self.clip.visual, self.clip.text
        seen = Seen(visual.embed(image), -1) if isinstance(image, Tensor) else concatenate(image)
        v, t = seen.hidden, text.embed(ids)
        bridges = [cast(Bridge, bridge) for bridge in self.bridges]
        for bridge in bridges:
            v, t = bridge.enter(v, t)
        if seen.step < 0:
            seen = self._keep(seen, -1, v)
        carry: list[Any] = [None] * len(bridges)
        for step in range(STEPS):
            v, t = self._run(visual, step, v) if step > seen.step else v, self._run(text, step, t)
            for i, bridge in enumerate(bridges):
                v, t, carry[i] = bridge.after(step, v, t, carry[i])
            if step >= seen.step:
                seen = self._keep(seen, step, v)
        words, sentence = text.head(t, ids)
        joint = visual.head(v) if seen.joint is None else seen.joint
        return Features(seen.maps, joint, words, sentence, seen.trail)

    def encode_image(self, image: Tensor) -> Seen:
        """Normalised images ``(B, 3, S, S)`` -> all that depends on no sentence.

        ``forward([encode_image(image)], ids)`` is ``forward(image, ids)``. Several sentences about
        one image share this: the image tower up to the first step after which a bridge reads or
        changes it, the whole tower where none does.
        """
        visual = self.clip.visual
        steps = [cast(Bridge, bridge).image_step for bridge in self.bridges]
        seen = Seen(visual.embed(image), min(steps, default=STEPS))
        if seen.step > -1:
            seen = self._keep(seen, -1, seen.hidden)
        for step in range(min(seen.step + 1, STEPS)):
            seen = seen._replace(hidden=visual.run(step, seen.hidden))
            if step < seen.step:
                seen = self._keep(seen, step, seen.hidden)
        return seen._replace(joint=visual.head(seen.hidden)) if seen.step == STEPS else seen

    def _run(self, tower: nn.Module, step: int, hidden: Hidden) -> Hidden:
        run = cast(Callable[[int, Hidden], Hidden], tower.run)
        if not self.recomputes or not torch.is_grad_enabled():
            return run(step, hidden)
        norms = [m for m in tower.modules() if isinstance(m, _BatchNorm) and m.training]
        if not norms or torch.compiler.is_compiling():  # compiled, they move once anyway
            return checkpoint(run, step, hidden, use_reentrant=False)
        return checkpoint(
            run,
            step,
            hidden,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), still_statistics(norms)),
        )

    def _keep(self, seen: Seen, step: int, hidden: Hidden) -> Seen:
        """Add what the decoder and a side network read of the image tower after ``step``."""
        maps = (*seen.maps, hidden.x) if step in STAGE_ENDS else seen.maps
        trail = (*seen.trail, hidden.x.detach()) if step in self.taps else seen.trail
        return seen._replace(maps=maps, trail=trail)


@contextmanager
def still_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Normalise by the batch and move no running statistics: they moved in the first pass."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def concatenate(seen: Sequence[Seen]) -> Seen:
    """One after the other along the batch, all of the same encoder."""
    if len(seen) == 1:
        return seen[0]
    prefixes = [one.hidden.prefix for one in seen if one.hidden.prefix is not None]
    joints = [one.joint for one in seen if one.joint is not None]
    return Seen(
        Hidden(
            torch.cat([one.hidden.x for one in seen]), torch.cat(prefixes) if prefixes else None
        ),
        seen[0].step,
        tuple(torch.cat(maps) for maps in zip(*(one.maps for one in seen), strict=True)),
        tuple(torch.cat(maps) for maps in zip(*(one.trail for one in seen), strict=True)),
        torch.cat(joints) if joints else None,
    )
