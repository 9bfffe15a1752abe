"""What trains inside the blocks of the towers: one file per method.

An adapter is a function ``add_name(clip, *, options) -> None`` that edits the towers once, after
they are frozen: it fills the ``shortcut`` or ``after`` slot of their residual sums
(:func:`model.clip.common.fill`) or puts a subclass of ``nn.Linear`` in a Linear's place.
"""

from collections.abc import Callable

from .snf import add_snf

ADAPTERS: dict[str, Callable[..., None]] = {"snf": add_snf}
