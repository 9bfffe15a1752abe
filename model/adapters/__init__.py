"""Adapters, which train inside the blocks of the towers: one file per method, and their registry.

An adapter is a function ``add_name(clip, *, options) -> None``. It changes the towers once, after
they are frozen: it fills the ``shortcut`` or ``after`` slot of their residual sums
(:func:`model.backbones.slots.fill`) or replaces a plain layer by an adapted one
(:func:`model.backbones.slots.replace_layer`).
"""

from collections.abc import Callable

from .adapter import add_adapter
from .compacter import add_compacter
from .conv_adapter import add_conv_adapter
from .lora import add_lora
from .snf import add_snf

ADAPTERS: dict[str, Callable[..., None]] = {
    "adapter": add_adapter,
    "compacter": add_compacter,
    "conv_adapter": add_conv_adapter,
    "lora": add_lora,
    "snf": add_snf,
}
