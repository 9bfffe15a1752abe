"""Global shortcut tuning (BarLeRIa, ICLR 2024, section 2.4).

A small transformer beside the frozen towers, which the sentence as a whole regulates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.blocks import STEPS, Block, Features, to_map, to_tokens
from model.backbones.clip import CLIP

BOTTLENECK = 32  # between the joint space and the side network, as in the intertwining


class GlobalShortcut(nn.Module):
    """Reads the towers at ``modules`` depths; returns what is added to the decoder's query.

    The paper leaves sizes and several tensors open.  In this reading every module acts, and the
    number of parameters is the published one: 1,822,832 on a ViT-B/16 at 416 x 416 with a decoder
    of width 512, and 2,213,488 ("2.21 M") with the local intertwined module.

    ``t = [q, F_l', I]``: learnable queries, the words through a bottleneck, and positions to which
    the image tokens come: before module ``i`` = 0, 1, ... of ``M`` the image map after ``12 i / M``
    steps of the tower, through a Linear of its own.  Eq. 8 adds the output of a module to the image
    map of its depth, ``F_out = I_i + F_v``; here that sum is what the next module reads, so that it
    is of use to something, and the last one is made in the decoder, whose query holds the last
    block already (appendix C).  All these maps have one grid, so that nothing is interpolated.

    ``p = cos([F_l', F_v'], f) [F_l', F_v']`` (eq. 4): the image in the joint space goes through the
    same bottleneck as the words, which needs a joint space as wide as the text tower.  A cosine
    with all words at once is no single number, so ``f`` is the mean of the words; it is clamped to
    [0, 1], as in the released code, since a negative weight would turn a feature around rather than
    leave it out.  Queries have no ``F`` and so no prior.

    ``t = module_i(t, A_i p)``: eq. 6 and 7, see :class:`Module`.

    All that is read from the towers enters detached: the paper detaches ``F_v^i`` of eq. 8 and
    calls the whole network detached from the backbone, so that it does not pull at the local
    modules.  Padding is neither attended to nor part of ``f``.  Nothing is normalised over the
    batch, unlike in the released code, whose masks depend on the other images.

    Args:
        clip: the towers that are read; sizes are read off it.
        grid: cells per side of their image maps.
        out_width: channels of the decoder's query.
        dim: width of the network.
        modules: its depth, a divisor of 12.
        queries: number of learnable tokens.
        heads: of its attention.

    Raises:
        ValueError: if the backbone is a ResNet or its widths differ, or a number does not fit.
    """

    def __init__(
        self,
        clip: CLIP,
        grid: int,
        out_width: int,
        *,
        dim: int = 144,
        modules: int = 4,
        queries: int = 128,
        heads: int = 3,
    ):
        super().__init__()
        check(clip, dim=dim, modules=modules, queries=queries, heads=heads)
        self.taps = tuple(STEPS * module // modules - 1 for module in range(modules))
        self.queries = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(grid**2, dim))
        self.narrow = nn.Sequential(
            nn.Linear(clip.visual.embed_dim, BOTTLENECK), nn.ReLU(), nn.Linear(BOTTLENECK, dim)
        )
        self.image_in = nn.ModuleList(nn.Linear(clip.visual.widths[0], dim) for _ in range(modules))
        self.stack = nn.ModuleList(Module(dim, heads) for _ in range(modules))
        self.image_out = nn.Linear(dim, out_width)
        # small: training starts near the model without this network
        nn.init.normal_(self.image_out.weight, std=1e-3)
        nn.init.zeros_(self.image_out.bias)

    def forward(self, features: Features, ids: Tensor) -> Tensor:
        """Features and tokens ``(B, L)``, padded with 0 -> ``(B, out_width, H, W)``."""
        is_word = ids != 0
        words = self.narrow(features.words.detach())  # (B, L, dim)
        joint = self.narrow(to_tokens(features.joint.detach()))  # (B, HW, dim)
        num_queries, num_cells = len(self.queries), len(self.positions)
        prior = F.pad(global_prior(words, joint, is_word), (0, 0, num_queries, 0))
        keep = F.pad(is_word, (0, num_cells), value=True)  # (B, L + HW)
        queries, image = (x.expand(len(ids), -1, -1) for x in (self.queries, self.positions))
        others = torch.cat([queries, words], dim=1)  # (B, Q + L, dim)
        for module, enter, x in zip(self.stack, self.image_in, features.trail, strict=True):
            image = image + enter(to_tokens(x))
            tokens = module(torch.cat([others, image], dim=1), prior, keep)  # (B, Q + L + HW, dim)
            others, image = tokens[:, :-num_cells], tokens[:, -num_cells:]
        return to_map(self.image_out(image), features.joint.shape[2:])

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Its state from a model for images of another size, positions resized to this grid.

        Bicubic, as CLIP's own positions are when they are loaded.
        """
        positions = state.get("positions", self.positions)
        native, grid = (math.isqrt(len(x)) for x in (positions, self.positions))
        if native == grid or positions.shape != (native**2, self.positions.shape[1]):
            return state  # fits, or is of another kind, which loading tells
        square = to_map(positions[None], (native, native))
        square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
        return state | {"positions": to_tokens(square)[0]}


class Module(nn.Module):
    """``block(t, A p)``, its attention ``softmax(Q K^T / sqrt(C / heads)) (V + A p W_p)`` (eq. 6).

    The block is one of CLIP's: pre-norm, an MLP four times as wide.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.block = Block(dim, heads, 4 * dim)
        self.adapt = nn.Linear(dim, dim, bias=False)  # A
        self.prior_proj = nn.Linear(dim, dim, bias=False)  # W_p

    def forward(self, tokens: Tensor, prior: Tensor, keep: Tensor) -> Tensor:
        """Tokens and prior ``(B, N, dim)``, ``keep`` as for an attention -> tokens."""
        change = self.prior_proj(self.adapt(prior))
        tokens = self.block.attention(tokens, keep=keep, value_change=change)
        return self.block.mlp(tokens)


def global_prior(words: Tensor, joint: Tensor, is_word: Tensor) -> Tensor:
    """Eq. 4: ``clamp(cos(x, f), 0, 1) x`` for ``x`` in ``[words, joint]``, ``f`` the mean word.

    In single precision: words ``(B, L, C)``, image ``(B, HW, C)``, ``is_word`` (B, L) bool ->
    ``(B, L + HW, C)``.
    """
    share = is_word / is_word.sum(dim=1, keepdim=True)  # (B, L)
    mean = (share[..., None] * words.float()).sum(dim=1, keepdim=True)  # (B, 1, C)
    tokens = torch.cat([words, joint], dim=1).float()
    return F.cosine_similarity(tokens, mean, dim=2).clamp(0, 1)[..., None] * tokens


def check(clip: CLIP, *, dim: int, modules: int, queries: int, heads: int) -> None:
    visual = clip.visual
    if len(set(visual.strides)) > 1:
        raise ValueError(
            "gst: reads image maps of one size, and those of a ResNet shrink (BarLeRIa does not "
            "fit convolutional networks, says its paper): choose a ViT as model.backbone or set "
            "model.side to null"
        )
    if clip.text.width != visual.embed_dim:
        raise ValueError(
            f"gst: words and image share a projection, but this text tower has width "
            f"{clip.text.width} and the joint space {visual.embed_dim}: choose another "
            "model.backbone or set model.side to null"
        )
    if modules < 1 or STEPS % modules:
        raise ValueError(f"gst: modules {modules} must divide the {STEPS} steps of the towers")
    if queries < 1 or dim < 1 or heads < 1 or dim % heads:
        raise ValueError(
            f"gst: needs a query or more ({queries}) and a dim ({dim}) that heads ({heads}) divide"
        )
