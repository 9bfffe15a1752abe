"""The decoder of all methods: neck, cross-modal transformer, projector (ETRIS, section 3.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.attention import Attention, Dropout
from model.backbones.blocks import Features, sine, sine_grid, to_map, to_tokens
from model.backbones.clip import CLIP

from .necks import make_neck, norm_relu

KERNEL = 3  # side of the kernel that a sentence becomes


class Decoder(nn.Module):
    """Features of both towers -> one logit per pixel, four times as fine as the middle map.

    Args:
        clip: the towers that are decoded; sizes are read off it.
        grid: cells per side of the middle map.
        max_words: longest sentence.
        neck: ``aligned`` (ETRIS), ``fpn`` (CRIS) or ``plain`` (table 6 of ETRIS).
        dim: width of the neck and the transformer.
        layers, heads, feedforward, dropout: of the transformer; with 0 layers there is none, so
            that the projector reads the neck (no global alignment, table 6 of ETRIS).
        project_sentence: project the sentence to ``dim`` in the aligned neck even if it has that
            width.
        train_connect: a ResNet's :class:`Connect` trains; if not, its random weights stay, as in
            the released ETRIS.
        initial_kernel: of the projector: ``small``, or ``default`` as PyTorch starts a Linear, as
            released.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        grid: int,
        max_words: int,
        neck: str = "aligned",
        dim: int = 512,
        layers: int = 3,
        heads: int = 8,
        feedforward: int = 512,
        dropout: float = 0.1,
        project_sentence: bool = False,
        train_connect: bool = True,
        initial_kernel: str = "small",
    ):
        super().__init__()
        visual = clip.visual
        if dim % 4 or dim % heads:
            raise ValueError(
                f"model.decoder: dim {dim} must be a multiple of 4 and of heads ({heads})"
            )
        self.connect: Connect | None = None
        if visual.last_width:
            self.connect = Connect(visual.last_width, visual.embed_dim)
            self.connect.requires_grad_(train_connect)
        self.neck = make_neck(neck, clip, grid=grid, dim=dim, project_sentence=project_sentence)
        self.transformer: Transformer | None = None
        if layers:
            self.transformer = Transformer(
                clip.text.width,
                grid=grid,
                max_words=max_words,
                dim=dim,
                layers=layers,
                heads=heads,
                feedforward=feedforward,
                dropout=dropout,
            )
        self.projector = Projector(dim, visual.embed_dim, small=initial_kernel == "small")

    def forward(self, features: Features, ids: Tensor, residual: Tensor | None = None) -> Tensor:
        """-> logits ``(B, 1, 4 H, 4 W)``; ``residual`` (B, dim, H, W) is added to the query."""
        top = features.joint
        if self.connect is not None:
            top = torch.relu(top + self.connect(features.maps[-1]))
        x = self.neck((*features.maps[:-1], top), features.sentence)
        x = x if residual is None else x + residual
        if self.transformer is not None:
            x = self.transformer(x, features.words, ids != 0)
        return self.projector(x, features.sentence)


class Connect(nn.Sequential):
    """``BatchNorm(conv(x))`` from a ResNet's last map to the joint space, beside attention pool.

    From CRIS (Wang et al., 2022); CLIP does not have it, so it trains with the decoder.
    """

    def __init__(self, in_channels: int, out_channels: int):
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out_channels))


class Transformer(nn.Module):
    """Global alignment (eq. 8): image cells attend to each other and to the words.

    As released, the words are attended to, not the sentence as eq. 8 says.
    """

    places: Tensor  # (HW, dim)
    order: Tensor  # (max_words, text_width)

    def __init__(
        self,
        text_width: int,
        *,
        grid: int,
        max_words: int,
        dim: int,
        layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(dim, heads, feedforward, dropout, text_width) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("places", sine_grid(grid, dim), persistent=False)
        self.register_buffer("order", sine(max_words, text_width), persistent=False)

    def forward(self, x: Tensor, words: Tensor, keep: Tensor) -> Tensor:
        """``x`` (B, dim, H, W), ``words`` (B, L, C), ``keep`` (B, L) True where a word is."""
        tokens, grid = to_tokens(x), x.shape[2:]
        keys = words + self.order[: words.shape[1]].to(words.dtype)
        for layer in self.layers:
            tokens = layer(tokens, keys, words, self.places.to(tokens.dtype), keep)
        return to_map(self.norm(tokens), grid)


class Layer(nn.Module):
    """Self-attention, attention to the words, feed-forward; all pre-norm, attention also post."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, text_width: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = Attention(dim, heads, dropout=dropout)
        self.cross_attention = Attention(dim, heads, memory_width=text_width, dropout=dropout)
        self.self_norm, self.cross_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, feedforward),
            nn.ReLU(),
            Dropout(dropout),
            nn.LayerNorm(feedforward),
            nn.Linear(feedforward, dim),
        )
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, keys: Tensor, words: Tensor, places: Tensor, keep: Tensor
    ) -> Tensor:
        y = self.norm1(x)
        query = y + places
        x = x + self.dropout(self.self_norm(self.self_attention(query, query, y)))
        y = self.cross_attention(self.norm2(x) + places, keys, words, keep)
        x = x + self.dropout(self.cross_norm(y))
        return x + self.dropout(self.feedforward(self.norm3(x)))


class Projector(nn.Module):
    """Eq. 9: the map, four times as fine, convolved with the kernel its own sentence becomes."""

    def __init__(self, dim: int, sentence_width: int, *, small: bool = True):
        super().__init__()
        self.channels = dim // 2
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.fine = norm_relu(nn.Conv2d(dim, dim, 3, padding=1, bias=False), dim)
        self.finer = norm_relu(
            nn.Conv2d(dim, self.channels, 3, padding=1, bias=False), self.channels
        )
        self.mix = nn.Conv2d(self.channels, self.channels, 1)
        self.kernel = nn.Linear(sentence_width, self.channels * KERNEL**2 + 1)
        if small:
            # PyTorch's default makes first logits of size 20; small ones start at the share of a
            # target
            nn.init.normal_(self.kernel.weight, std=0.003)
            nn.init.normal_(self.kernel.bias, std=0.003)
            nn.init.constant_(self.kernel.bias[-1:], PRIOR)

    def forward(self, x: Tensor, sentence: Tensor) -> Tensor:
        """``x`` (B, dim, H, W), ``sentence`` (B, E) -> logits (B, 1, 4 H, 4 W)."""
        x = self.finer(self.upsample(self.fine(self.upsample(x))))  # (B, C, 4H, 4W)
        kernel = self.kernel(sentence)
        weight, bias = kernel[:, :-1].unflatten(1, (self.channels, KERNEL**2)), kernel[:, -1]
        # weight (mix(x)) = (weight mix)(x): of the mixed map nothing is computed or kept
        mixed = self.mix.weight.flatten(1).mT @ weight  # (B, C, K K)
        offset = self.mix.bias @ weight  # (B, K K)
        return convolve(x, mixed, offset, bias)


PRIOR = -2.5  # logit of a target's usual share of an image, 8 %


def convolve(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor) -> Tensor:
    """Each sample with a kernel of its own: ``(B, C, H, W) -> (B, 1, H, W)``.

    ``weight`` (B, C, K K), ``offset`` (B, K K) what an entry adds wherever it lies in the map, and
    ``bias`` (B,).  One product per cell and kernel entry, then a sum of shifted maps: a grouped
    convolution of one output channel per sample has no fast kernel.
    """
    size, grid = math.isqrt(weight.shape[2]), x.shape[2:]
    entries = weight.flip(2).mT @ x.flatten(2) + offset.flip(1)[:, :, None]  # (B, K K, HW)
    total = F.fold(entries, grid, size, padding=size // 2)  # (B, 1, H, W)
    return total + bias[:, None, None, None]
