"""What trains beside the towers: one file per network."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from model.backbones.blocks import Features

from .gst import GlobalShortcut

SIDES: dict[str, Callable[..., nn.Module]] = {"gst": GlobalShortcut}


class Side(Protocol):
    """An ``nn.Module`` built as ``Name(clip, grid, out_width, *, options)`` that has these two.

    Attributes:
        taps: the steps after which it reads the image map, ascending; -1 is before the first one.
    """

    taps: tuple[int, ...]

    def __call__(self, features: Features, ids: Tensor) -> Tensor:
        """``features.trail`` has the maps at ``taps`` -> ``(B, out_width, grid, grid)``.

        What comes back is added to the decoder's query.
        """

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Its own state from a model for images of another size, made to fit this one's."""
