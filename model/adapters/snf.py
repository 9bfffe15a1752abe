"""SNF: shortcuts adapted by normalizing flows (Wang et al., CVPR 2023; BarLeRIa, section 2.1)."""

import torch
from torch import Tensor, nn

from model.backbones.blocks import PreNorm, fill
from model.backbones.clip import CLIP

from .common import choose_towers


def add_snf(clip: CLIP, *, length: int = 4, towers: str = "both") -> None:
    """``y = flow(x) + f(x)`` in place of ``y = x + f(x)``, in both halves of every block.

    Args:
        length: number of planar flows of each shortcut.
        towers: ``both``, ``image`` or ``text``.

    Raises:
        ValueError: if an option is out of range, a chosen tower is a ResNet or another adapter has
            a shortcut already.
    """
    if length < 1:
        raise ValueError(f"snf: length {length} must be at least 1")
    for tower in choose_towers(clip, towers, "snf"):
        halves = [module for module in tower.modules() if isinstance(module, PreNorm)]
        if not halves:
            raise ValueError(
                f"snf: towers {towers!r} includes the image tower of a ResNet, which has no "
                "transformer blocks (BarLeRIa does not fit convolutional networks); choose a ViT, "
                "or towers 'text'"
            )
        for half in halves:
            fill(half, "shortcut", Flow(half.width, length))


class Flow(nn.Module):
    """``z_0 = shift + exp(log_scale) x``, then ``z_k+1 = z_k + u_k tanh(w_k . z_k + b_k)``.

    The planar flows are those of the released code, with a scalar ``w . z`` and ``b``, to which the
    published sizes belong; the paper's eq. 1 can be read as a product per channel.  Neither uses
    the log-determinant.  The start is the released one, near the identity.

    With ``W`` the rows ``w_k`` and ``U`` the rows ``u_k``, the arguments of all tanh are
    ``W z_0 + b`` and, for each flow before, an entry of ``W U^T`` times its tanh: ``length``
    numbers per token.  So the recursion runs on these alone, and the tokens are read and written as
    often as by a single flow.
    """

    def __init__(self, width: int, length: int):
        super().__init__()
        self.length = length
        self.shift, self.log_scale = (
            nn.Parameter(torch.zeros(width)),
            nn.Parameter(torch.zeros(width)),
        )
        # not zero: u and w get their gradients through each other
        self.u, self.w, self.b = (
            nn.Parameter(torch.empty(shape).uniform_(-0.01, 0.01))
            for shape in ((length, width), (length, width), (length,))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` in, the same out."""
        # a product under autocast would round what all later blocks read
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(self.shift.dtype).flatten(0, 1)  # (B N, C)
            return self.transform(tokens).unflatten(0, x.shape[:2])

    def transform(self, x: Tensor) -> Tensor:
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
