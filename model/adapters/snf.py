"""SNF: normalizing flows on shortcuts (Wang et al., CVPR 2023; BarLeRIa, section 2.1)."""

import torch
from torch import Tensor, nn

from model.backbones.blocks import PreNorm
from model.backbones.clip import CLIP
from model.backbones.slots import fill

from .common import choose_towers


def add_snf(clip: CLIP, *, length: int = 4, towers: str = "both") -> None:
    """Replace ``y = x + f(x)`` by ``y = flow(x) + f(x)`` in both halves of every block.

    Args:
        length: number of planar flows on each shortcut.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range, a chosen tower is a ResNet or another adapter is
            there already.
    """
    if length < 1:
        raise ValueError(f"snf: length {length} must be at least 1")
    for tower in choose_towers(clip, towers, "snf"):
        halves = [module for module in tower.modules() if isinstance(module, PreNorm)]
        if not halves:
            raise ValueError(
                f"snf: towers {towers!r} includes the image tower of a ResNet, which has no "
                "transformer blocks; choose a ViT, or towers 'text'"
            )
        for half in halves:
            fill(half, "shortcut", Flow(half.width, length))


class Flow(nn.Module):
    """``z_0 = shift + exp(log_scale) x``, then ``z_k+1 = z_k + u_k tanh(w_k . z_k + b_k)``.

    These are the planar flows of the released code, with scalars ``w . z`` and ``b``, which give
    the published sizes and the start near the identity. Eq. 1 of the paper can be read as a product
    per channel. Neither uses the log-determinant.

    It is computed without the ``z_k``. The arguments of all tanh, ``length`` numbers per token, are
    ``W z_0 + b`` plus, for each earlier flow, an entry of ``W U^T`` times its tanh (``W`` and ``U``
    have the rows ``w_k`` and ``u_k``). So the tokens are read and written as often as by one flow.
    """

    def __init__(self, width: int, length: int):
        super().__init__()
        self.length = length
        self.shift = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.zeros(width))
        # not zero: u and w get their gradients through each other
        self.u, self.w, self.b = (
            nn.Parameter(torch.empty(shape).uniform_(-0.01, 0.01))
            for shape in ((length, width), (length, width), (length,))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` -> tokens."""
        # in autocast a product would round what all later blocks read
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(self.shift.dtype).flatten(0, 1)  # (B N, C)
            return self.transform(tokens).unflatten(0, x.shape[:2])

    def transform(self, x: Tensor) -> Tensor:
        """Apply all flows to ``(B N, C)``."""
        scale = self.log_scale.exp()
        bias = torch.addmv(self.b, self.w, self.shift)
        logits = torch.addmm(bias[:, None], self.w * scale, x.mT)  # (length, B N)
        gram = self.w @ self.u.mT  # (length, length)
        bends = [logits[0].tanh()]
        for k in range(1, self.length):
            logits = torch.addr(logits[1:], gram[k:, k - 1], bends[-1])
            bends.append(logits[0].tanh())
        start = torch.addcmul(self.shift, scale, x)
        return start.addmm_(torch.stack(bends).mT, self.u)
