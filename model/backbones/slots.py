"""Places where an adapter acts: two slots in every residual sum, and layers it may replace."""

from torch import Tensor, nn


class Residual(nn.Module):
    """A sum of two paths with a slot in each: ``join(x, y) = shortcut(x) + after(y)``.

    Both slots hold the identity until :func:`fill` puts an adapter there.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.shortcut: nn.Module = nn.Identity()
        self.after: nn.Module = nn.Identity()

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return self.shortcut(x) + self.after(y)


def fill(residual: Residual, slot: str, module: nn.Module) -> None:
    """Put an adapter into the ``shortcut`` or ``after`` slot of a residual sum.

    Raises:
        ValueError: if another adapter is there already.
    """
    taken = getattr(residual, slot)
    if not isinstance(taken, nn.Identity):
        raise ValueError(
            f"{adapter_name(module)} and {adapter_name(taken)} both want the {slot!r} slot of "
            f"the same {type(residual).__name__}; drop one of the two adapters"
        )
    setattr(residual, slot, module)


def replace_layer(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the plain layer ``parent.name`` by an adapted one that holds its parameters.

    The class of ``layer`` is a subclass of the plain layer's, so frozen tensors keep their names.

    Raises:
        ValueError: if another adapter is there already.
    """
    taken = getattr(parent, name)
    if type(taken) not in (nn.Linear, nn.Conv2d, nn.LayerNorm):
        raise ValueError(
            f"{adapter_name(layer)} and {adapter_name(taken)} both want the place of {name!r} in "
            f"the same {type(parent).__name__}; drop one of the two adapters"
        )
    setattr(parent, name, layer)


def adapter_name(layer: nn.Module) -> str:
    """Return the name of the adapter that a layer belongs to: the name of its file."""
    return type(layer).__module__.rpartition(".")[2]
