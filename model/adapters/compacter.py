"""Compacter: adapters of low-rank hypercomplex layers (Karimi Mahabadi et al., NeurIPS 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.blocks import PreNorm, Residual, exchange, fill, to_map, to_tokens
from model.backbones.clip import CLIP

from .common import TunedNorm, choose_towers, narrow


def add_compacter(
    clip: CLIP,
    *,
    reduction: int = 4,
    divisions: int = 4,
    rank: int = 1,
    norms: bool = True,
    towers: str = "both",
) -> None:
    """``y = x + C(f(x))`` with ``C(z) = z + up(GELU(down(z)))`` in place of ``y = x + f(x)``.

    ``down`` and ``up`` are :class:`Hypercomplex` layers.  ``f`` is half a block of a transformer,
    whose norm trains too, as the paper's sizes include, or a whole bottleneck of a ResNet, whose
    norms stay frozen.

    ETRIS (table 2) publishes 0.19 M on RN101 with reduction 4 in both towers.  With all else as in
    the Compacter paper (``divisions`` 4, rank 1, slow weights shared by all, biases, norms) it is
    192,640, and without the norms 168,064.  Many other choices give 0.19 M as well.

    Args:
        reduction: the middle of ``C`` is so many times narrower than ``z``.
        divisions: ``n``, the number of Kronecker products; it divides both widths.
        rank: of the fast weights.
        norms: also train the norms of a transformer's halves.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range or another adapter has one of the places already.
    """
    if divisions < 1 or rank < 1:
        raise ValueError(f"compacter: divisions {divisions} and rank {rank} must be at least 1")
    slow = SlowWeights(divisions)
    for tower in choose_towers(clip, towers, "compacter"):
        for residual in [module for module in tower.modules() if isinstance(module, Residual)]:
            width, hidden = residual.width, narrow(residual.width, reduction, "compacter")
            if width % divisions or hidden % divisions:
                raise ValueError(
                    f"compacter: divisions {divisions} must divide both {width} and {hidden}, the "
                    "widths outside and inside an adapter; change it or reduction"
                )
            kind = Compacter if isinstance(residual, PreNorm) else MapCompacter
            fill(residual, "after", kind(width, hidden, slow, rank))
            if norms and isinstance(residual, PreNorm):
                exchange(residual, "norm", TunedNorm(residual.norm))
    clip.add_module("slow_weights", slow)


class SlowWeights(nn.Module):
    """``A_1, ..., A_n``, each n x n: what all layers have in common."""

    def __init__(self, divisions: int):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(divisions, divisions, divisions))


class Compacter(nn.Module):
    """``x + up(GELU(down(x)))`` of tokens, nearly the identity at the start."""

    def __init__(self, width: int, hidden: int, slow: SlowWeights, rank: int):
        super().__init__()
        self.down = Hypercomplex(width, hidden, slow, rank)
        self.up = Hypercomplex(hidden, width, slow, rank)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


class MapCompacter(Compacter):
    """The same of a map ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return to_map(super().forward(to_tokens(x)), x.shape[2:])


class Hypercomplex(nn.Module):
    """LPHM: ``y = W x + bias`` with ``W = sum_i A_i (x) (s_i t_i^T)``, a sum of Kronecker products.

    ``W`` is never formed.  With ``x`` cut into ``n`` pieces ``x_b``, piece ``a`` of the result is
    ``sum_i s_i sum_b A_i[a, b] (t_i^T x_b)``.
    """

    def __init__(self, in_width: int, out_width: int, slow: SlowWeights, rank: int):
        super().__init__()
        n = len(slow.weight)
        self.slow = (slow,)  # in a tuple: one module alone, the CLIP, owns and saves it
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
