"""Compacter: adapters of low-rank hypercomplex layers (Karimi Mahabadi et al., NeurIPS 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.blocks import PreNorm
from model.backbones.clip import CLIP
from model.backbones.slots import Residual, fill, replace_layer
from model.backbones.state import to_map, to_tokens

from .common import TunedNorm, bottleneck_width, choose_towers


def add_compacter(
    clip: CLIP,
    *,
    reduction: int = 4,
    divisions: int = 4,
    rank: int = 1,
    norms: bool = True,
    towers: str = "both",
) -> None:
    """Replace ``y = x + f(x)`` by ``y = x + C(f(x))`` with ``C(z) = z + up(GELU(down(z)))``.

    ``down`` and ``up`` are :class:`Hypercomplex` layers. ``f`` is half a block of a transformer,
    whose norm trains too, as in the paper, or a whole bottleneck of a ResNet, whose norms stay
    frozen.

    Args:
        reduction: how many times narrower the middle of ``C`` is than ``z``.
        divisions: ``n``, the number of Kronecker products; it divides both widths.
        rank: of the fast weights.
        norms: also train the norms of a transformer's halves.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range or another adapter is there already.
    """
    if divisions < 1 or rank < 1:
        raise ValueError(f"compacter: divisions {divisions} and rank {rank} must be at least 1")
    slow = SlowWeights(divisions)
    for tower in choose_towers(clip, towers, "compacter"):
        for residual in [module for module in tower.modules() if isinstance(module, Residual)]:
            width = residual.width
            hidden = bottleneck_width(width, reduction, "compacter")
            if width % divisions or hidden % divisions:
                raise ValueError(
                    f"compacter: divisions {divisions} must divide both {width} and {hidden}, the "
                    "widths outside and inside an adapter; change it or reduction"
                )
            kind = Compacter if isinstance(residual, PreNorm) else MapCompacter
            fill(residual, "after", kind(width, hidden, slow, rank))
            if norms and isinstance(residual, PreNorm):
                replace_layer(residual, "norm", TunedNorm(residual.norm))
    clip.add_module("slow_weights", slow)


class SlowWeights(nn.Module):
    """``A_1, ..., A_n``, each n x n, which all layers share."""

    def __init__(self, divisions: int):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(divisions, divisions, divisions))


class Compacter(nn.Module):
    """``x + up(GELU(down(x)))`` of tokens; training starts near the identity."""

    def __init__(self, width: int, hidden: int, slow: SlowWeights, rank: int):
        super().__init__()
        self.down = Hypercomplex(width, hidden, slow, rank)
        self.up = Hypercomplex(hidden, width, slow, rank)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


class MapCompacter(Compacter):
    """The same for a map ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return to_map(super().forward(to_tokens(x)), x.shape[2:])


class Hypercomplex(nn.Module):
    """LPHM layer: ``y = W x + bias``, ``W`` a sum of Kronecker products ``A_i (x) (s_i t_i^T)``.

    ``W`` is never computed. With ``x`` cut into ``n`` pieces ``x_b``, piece ``a`` of the result is
    ``sum_i s_i sum_b A_i[a, b] (t_i^T x_b)``.
    """

    def __init__(self, in_width: int, out_width: int, slow: SlowWeights, rank: int):
        super().__init__()
        n = len(slow.weight)
        self.slow = (slow,)  # in a tuple: only one module, the CLIP, owns and saves it
        self.s = nn.Parameter(torch.empty(n, out_width // n, rank))
        self.t = nn.Parameter(torch.empty(n, in_width // n, rank))
        self.bias = nn.Parameter(torch.zeros(out_width))
        for factor in (*self.s, *self.t):
            nn.init.xavier_uniform_(factor)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_width) -> (..., out_width)``."""
        slow = self.slow[0].weight
        pieces = x.unflatten(-1, (len(slow), -1))  # (..., n, in_width / n)
        y = torch.einsum("...bd,idr,iab,ikr->...ak", pieces, self.t, slow, self.s)
        return y.flatten(-2) + self.bias
