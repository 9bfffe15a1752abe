"""Both towers of a CLIP in step, with the bridges between them.

``encoder(image, ids) = finish([begin(image)], ids)``: ``begin`` computes what depends on the image
alone, ``finish`` the rest. So several sentences about one image share the work of ``begin``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from model.backbones.clip import CLIP
from model.backbones.state import STAGE_ENDS, STEPS, Features, TowerState
from model.bridges import Bridge


class ImageState(NamedTuple):
    """What the image tower has computed from B images before any sentence acts on it."""

    tower: TowerState  # after `step`, where the first bridge acts that reads or changes it
    step: int  # -1: before the first block; STEPS: the tower has finished
    maps: tuple[Tensor, ...] = ()  # as in Features, of the steps before `step`
    tap_maps: tuple[Tensor, ...] = ()  # the same
    joint_map: Tensor | None = None  # (B, E, H, W), where the tower has finished

    def add_maps(self, step: int, tower: TowerState, tap_steps: Sequence[int]) -> "ImageState":
        """Add the maps after ``step`` that the decoder or a side network reads."""
        maps = (*self.maps, tower.x) if step in STAGE_ENDS else self.maps
        taps = (*self.tap_maps, tower.x.detach()) if step in tap_steps else self.tap_maps
        return self._replace(maps=maps, tap_maps=taps)


class Encoder(nn.Module):
    """Runs both towers step by step and lets every bridge act after each step.

    Args:
        tap_steps: the steps after which a side network reads the image map; -1: before the first.

    Attributes:
        checkpoint_activations: store only the towers' states between steps for the backward pass,
            and compute again what lies within a step. Less memory, more time.
    """

    checkpoint_activations = False

    def __init__(self, clip: CLIP, bridges: list[nn.Module], *, tap_steps: Sequence[int] = ()):
        super().__init__()
        self.clip, self.bridges, self.tap_steps = clip, nn.ModuleList(bridges), tuple(tap_steps)

    def forward(self, image: Tensor, ids: Tensor) -> Features:
        """Normalized images ``(B, 3, S, S)`` and token ids ``(B, L)`` -> features.

        The result is that of :meth:`begin` and :meth:`finish`. The towers run step by step, since
        the order of the steps is that in which gradients of shared parameters are added.
        """
        return self.finish([ImageState(self.clip.visual.embed(image), step=-1)], ids)

    def begin(self, image: Tensor) -> ImageState:
        """Compute from normalized images ``(B, 3, S, S)`` what depends on no sentence.

        That is the image tower up to the first step after which a bridge reads or changes it, and
        the whole tower where no bridge does.
        """
        visual = self.clip.visual
        image_steps = [cast(Bridge, bridge).image_step for bridge in self.bridges]
        state = ImageState(visual.embed(image), min(image_steps, default=STEPS))
        if state.step >= 0:
            state = state.add_maps(-1, state.tower, self.tap_steps)
        for step in range(min(state.step + 1, STEPS)):
            state = state._replace(tower=self._run(visual, step, state.tower))
            if step < state.step:
                state = state.add_maps(step, state.tower, self.tap_steps)
        if state.step == STEPS:
            state = state._replace(joint_map=visual.head(state.tower))
        return state

    def finish(self, states: Sequence[ImageState], ids: Tensor) -> Features:
        """Compute the features of B sentences, token ids ``(B, L)`` padded with 0.

        Args:
            states: what :meth:`begin` returned: of the B images at once, or one image's per
                sentence, which may be the same one several times.
        """
        visual, text = self.clip.visual, self.clip.text
        state = concatenate(states)
        image, words = state.tower, text.embed(ids)
        bridges = [cast(Bridge, bridge) for bridge in self.bridges]
        for bridge in bridges:
            image, words = bridge.before_blocks(image, words)
        if state.step < 0:
            state = state.add_maps(-1, image, self.tap_steps)
        carry: list[Any] = [None] * len(bridges)
        for step in range(STEPS):
            if step > state.step:
                image = self._run(visual, step, image)
            words = self._run(text, step, words)
            for i, bridge in enumerate(bridges):
                image, words, carry[i] = bridge.after_step(step, image, words, carry[i])
            if step >= state.step:
                state = state.add_maps(step, image, self.tap_steps)
        word_features, sentence = text.head(words, ids)
        joint_map = visual.head(image) if state.joint_map is None else state.joint_map
        return Features(state.maps, joint_map, word_features, sentence, state.tap_maps)

    def _run(self, tower: nn.Module, step: int, state: TowerState) -> TowerState:
        """Run one step of a tower, with :attr:`checkpoint_activations` if that is on."""
        run = cast(Callable[[int, TowerState], TowerState], tower.run)
        if not self.checkpoint_activations or not torch.is_grad_enabled():
            return run(step, state)
        norms = [m for m in tower.modules() if isinstance(m, _BatchNorm) and m.training]
        if not norms or torch.compiler.is_compiling():  # compiled, statistics move once anyway
            return checkpoint(run, step, state, use_reentrant=False)
        return checkpoint(
            run,
            step,
            state,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), keep_statistics(norms)),
        )


@contextmanager
def keep_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Keep the running statistics of norms in training mode, which the first pass has moved."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def concatenate(states: Sequence[ImageState]) -> ImageState:
    """Join states of the same encoder along the batch."""
    if len(states) == 1:
        return states[0]
    prefixes = [one.tower.prefix for one in states if one.tower.prefix is not None]
    joint_maps = [one.joint_map for one in states if one.joint_map is not None]
    return ImageState(
        TowerState(
            torch.cat([one.tower.x for one in states]), torch.cat(prefixes) if prefixes else None
        ),
        states[0].step,
        tuple(torch.cat(maps) for maps in zip(*(one.maps for one in states), strict=True)),
        tuple(torch.cat(maps) for maps in zip(*(one.tap_maps for one in states), strict=True)),
        torch.cat(joint_maps) if joint_maps else None,
    )
