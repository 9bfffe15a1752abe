"""What trains between the two towers: one file per method."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from model.backbones.blocks import Hidden

from .bridger import Bridger
from .coop import Context
from .intertwine import Intertwine

BRIDGES: dict[str, Callable[..., nn.Module]] = {
    "bridger": Bridger,
    "coop": Context,
    "intertwine": Intertwine,
}


class Bridge(Protocol):
    """An ``nn.Module`` built as ``Name(clip, *, options)`` that has these two methods.

    Attributes:
        image_step: the first step after which it reads or changes the image tower: -1 for
            ``enter``, ``STEPS`` for never. Before that it leaves the image alone, so that the
            sentences about an image share what its tower makes of it.
    """

    image_step: int

    def enter(self, image: Hidden, text: Hidden) -> tuple[Hidden, Hidden]:
        """What the towers hold before the first block -> what they go on with."""

    def after(
        self, step: int, image: Hidden, text: Hidden, carry: Any
    ) -> tuple[Hidden, Hidden, Any]:
        """The same after each of the twelve steps.

        ``carry`` is None at first and then what the last call returned, so that nothing is parked
        on the module.
        """
