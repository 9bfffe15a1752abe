"""Global shortcut tuning (BarLeRIa, ICLR 2024, section 2.4).

A small transformer beside the frozen towers, which the sentence as a whole regulates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.blocks import Block
from model.backbones.clip import CLIP
from model.backbones.state import STEPS, Features, to_map, to_tokens

BOTTLENECK = 32  # width between the joint space and the side network, as in the intertwining


class GlobalShortcut(nn.Module):
    """Read the towers at ``modules`` depths, and return what is added to the decoder's query.

    The paper leaves sizes and several tensors open. In this reading every module acts, and the
    parameters on a ViT-B/16 are as many as published: 1,822,832, with the intertwining 2.21 M.

    The tokens are ``t = [q, F_l', I]``: learnable queries, the words through a bottleneck, and
    learnable positions ``I`` of the cells. Before module ``i`` = 0, 1, ... of ``M``, a Linear of
    the image map after ``12 i / M`` steps of the tower is added to ``I``. This is the sum of eq. 8,
    ``F_out = I_i + F_v``, which the paper gives no reader: here the next module reads it, and the
    decoder's query is the last one, since it holds the last map (appendix C).

    Eq. 4, ``p = cos([F_l', F_v'], f) [F_l', F_v']``: the image in the joint space goes through the
    same bottleneck as the words, so the joint space must be as wide as the text tower. ``f`` is the
    mean of the words, since the cosine with all words at once is no single number. The cosine is
    clamped to [0, 1], as in the released code: a negative factor would reverse a feature, not
    remove it. Queries have no prior.

    Eq. 6 and 7, ``t = module_i(t, A_i p)``: see :class:`Module`.

    All inputs are detached, as in the paper. Padding is neither attended to nor part of ``f``. A
    mask does not depend on the other images of its batch, as it does in the released code.

    Args:
        clip: the towers that are read; they give the sizes.
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
        check_options(clip, dim=dim, modules=modules, queries=queries, heads=heads)
        self.tap_steps = tuple(STEPS * module // modules - 1 for module in range(modules))
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
        """Features and token ids ``(B, L)``, padded with 0 -> ``(B, out_width, H, W)``."""
        is_word = ids != 0
        words = self.narrow(features.word_features.detach())  # (B, L, dim)
        cells = self.narrow(to_tokens(features.joint_map.detach()))  # (B, HW, dim)
        num_queries, num_cells = len(self.queries), len(self.positions)
        prior = F.pad(global_prior(words, cells, is_word), (0, 0, num_queries, 0))
        attention_mask = F.pad(is_word, (0, num_cells), value=True)  # (B, L + HW)
        queries, image = (x.expand(len(ids), -1, -1) for x in (self.queries, self.positions))
        others = torch.cat([queries, words], dim=1)  # (B, Q + L, dim)
        for module, image_in, x in zip(self.stack, self.image_in, features.tap_maps, strict=True):
            image = image + image_in(to_tokens(x))
            tokens = torch.cat([others, image], dim=1)  # (B, Q + L + HW, dim)
            tokens = module(tokens, prior, attention_mask)
            others, image = tokens[:, :-num_cells], tokens[:, -num_cells:]
        return to_map(self.image_out(image), features.joint_map.shape[2:])

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resize the positions in a state from a model for images of another size: bicubic."""
        positions = state.get("positions", self.positions)
        native, grid = (math.isqrt(len(x)) for x in (positions, self.positions))
        if native == grid or positions.shape != (native**2, self.positions.shape[1]):
            return state  # fits, or has another kind of shape, which is an error in loading
        square = to_map(positions[None], (native, native))
        square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
        return state | {"positions": to_tokens(square)[0]}


class Module(nn.Module):
    """``block(t, A p)`` with the attention ``softmax(Q K^T / sqrt(D)) (V + A p W_p)`` (eq. 6).

    The block is one of CLIP's: pre-norm, with an MLP four times as wide.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.block = Block(dim, heads, 4 * dim)
        self.adapt = nn.Linear(dim, dim, bias=False)  # A
        self.prior_proj = nn.Linear(dim, dim, bias=False)  # W_p

    def forward(self, tokens: Tensor, prior: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens and prior ``(B, N, dim)``, mask ``(B, K)`` as in an attention -> tokens."""
        change = self.prior_proj(self.adapt(prior))
        tokens = self.block.attention(tokens, attention_mask=attention_mask, value_change=change)
        return self.block.mlp(tokens)


def global_prior(words: Tensor, cells: Tensor, is_word: Tensor) -> Tensor:
    """Compute eq. 4 in float32: ``clamp(cos(x, f), 0, 1) x`` for each ``x`` in ``[words, cells]``.

    Args:
        words: (B, L, C); ``f`` is their mean.
        cells: (B, HW, C).
        is_word: (B, L) bool, False for padding.

    Returns:
        (B, L + HW, C).
    """
    share = is_word / is_word.sum(dim=1, keepdim=True)  # (B, L)
    mean = (share[..., None] * words.float()).sum(dim=1, keepdim=True)  # (B, 1, C)
    tokens = torch.cat([words, cells], dim=1).float()
    return F.cosine_similarity(tokens, mean, dim=2).clamp(0, 1)[..., None] * tokens


def check_options(clip: CLIP, *, dim: int, modules: int, queries: int, heads: int) -> None:
    """Check the backbone and the numbers; see the errors of :class:`GlobalShortcut`."""
    visual = clip.visual
    if len(set(visual.strides)) > 1:
        raise ValueError(
            "gst: needs image maps of one size, and those of a ResNet get smaller (BarLeRIa does "
            "not support convolutional networks): choose a ViT as model.backbone or set model.side "
            "to null"
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
            f"gst: queries {queries} must be at least 1, and heads {heads} must divide dim {dim}"
        )
