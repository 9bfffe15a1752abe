"""Networks that train beside the towers: one file per network, and their registry."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from model.backbones.state import Features

from .gst import GlobalShortcut

SIDES: dict[str, Callable[..., nn.Module]] = {"gst": GlobalShortcut}


class Side(Protocol):
    """An ``nn.Module`` built as ``Name(clip, grid, out_width, *, options)``, with these members.

    Attributes:
        tap_steps: the steps after which it reads the image map, ascending; -1: before the first.
    """

    tap_steps: tuple[int, ...]

    def __call__(self, features: Features, ids: Tensor) -> Tensor:
        """Return what is added to the decoder's query: ``(B, out_width, grid, grid)``.

        ``features.tap_maps`` are the image maps at ``tap_steps``.
        """

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make its own state, from a model for images of another size, fit this one."""
