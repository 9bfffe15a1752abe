"""What trains inside the blocks of the towers: one file per method.

An adapter is a function ``add_name(clip, *, options) -> None`` that edits the towers once, after
they are frozen: it fills the ``shortcut`` or ``after`` slot of their residual sums
(:func:`model.backbones.blocks.fill`) or puts a subclass in a plain layer's place
(:func:`model.backbones.blocks.exchange`).
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
