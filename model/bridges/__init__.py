"""Bridges, which train between the two towers: one file per method, and their registry."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from model.backbones.state import TowerState

from .bridger import Bridger
from .coop import Context
from .intertwine import Intertwine

BRIDGES: dict[str, Callable[..., nn.Module]] = {
    "bridger": Bridger,
    "coop": Context,
    "intertwine": Intertwine,
}


class Bridge(Protocol):
    """An ``nn.Module`` built as ``Name(clip, *, options)``, with these members.

    Attributes:
        image_step: the first step after which it reads or changes the image tower; -1: before the
            first block; ``STEPS``: never. All sentences about an image share what its tower
            computes up to this step.
    """

    image_step: int

    def before_blocks(self, image: TowerState, text: TowerState) -> tuple[TowerState, TowerState]:
        """Change the towers' states before the first block."""

    def after_step(
        self, step: int, image: TowerState, text: TowerState, carry: Any
    ) -> tuple[TowerState, TowerState, Any]:
        """Change the towers' states after each of the twelve steps.

        ``carry`` is None in the first call, then what the last call returned: a bridge stores
        nothing on itself.
        """
