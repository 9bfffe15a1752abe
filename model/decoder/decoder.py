"""The decoder: neck, cross-modal transformer and projector (ETRIS, section 3.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.attention import Attention
from model.backbones.blocks import sine, sine_grid
from model.backbones.clip import CLIP
from model.backbones.cpu_kernels import Dropout
from model.backbones.state import Features, to_map, to_tokens

from .necks import make_neck, norm_relu

KERNEL = 3  # side of the kernel that is made from a sentence
PRIOR = -2.5  # logit of 8 %, the usual share of an image that a target covers


class Decoder(nn.Module):
    """``projector(transformer(neck(maps, sentence) + residual, words), sentence)``.

    Args:
        clip: the towers that are decoded; they give the sizes.
        grid: cells per side of the middle map.
        max_tokens: longest sentence.
        neck: ``aligned`` (ETRIS), ``fpn`` (CRIS) or ``plain`` (ETRIS, table 6).
        dim: width of neck and transformer.
        layers, heads, feedforward, dropout: of the transformer; with 0 layers there is none (ETRIS,
            table 6, no global alignment).
        project_sentence: project the sentence to ``dim`` in the aligned neck, even if it has that
            width already.
        train_connect: train :class:`Connect` of a ResNet; if not, it stays random, as in the
            released code of ETRIS.
        initial_kernel: start of the projector's kernel: ``small``, or ``default`` for that of
            ``nn.Linear``, as released.

    Raises:
        ValueError: if ``dim`` does not fit or there is no such neck.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        grid: int,
        max_tokens: int,
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
        if dim % 4:  # sine and cosine, of x and y
            raise ValueError(f"model.decoder.dim: {dim} is no multiple of 4")
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
                max_tokens=max_tokens,
                dim=dim,
                layers=layers,
                heads=heads,
                feedforward=feedforward,
                dropout=dropout,
            )
        self.projector = Projector(dim, visual.embed_dim, small=initial_kernel == "small")

    def forward(self, features: Features, ids: Tensor, residual: Tensor | None = None) -> Tensor:
        """Decode to logits ``(B, 1, 4 H, 4 W)``, where the middle map is H x W.

        Args:
            ids: token ids (B, L), padded with 0.
            residual: (B, dim, H, W), added to the neck's result.
        """
        top = features.joint_map
        if self.connect is not None:
            top = torch.relu(top + self.connect(features.maps[-1]))
        x = self.neck((*features.maps[:-1], top), features.sentence)
        x = x if residual is None else x + residual
        if self.transformer is not None:
            x = self.transformer(x, features.word_features, ids != 0)
        return self.projector(x, features.sentence)


class Connect(nn.Sequential):
    """``BatchNorm(conv(x))``: a second way from a ResNet's last map to the joint space.

    From CRIS (Wang et al., 2022). CLIP has no such weights, so they train with the decoder.
    """

    def __init__(self, in_channels: int, out_channels: int):
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out_channels))


class Transformer(nn.Module):
    """Global alignment (ETRIS, eq. 8): image cells attend to each other and to the words.

    The paper's eq. 8 attends to the sentence; the released code, and this one, to the words.
    """

    places: Tensor  # positions of the cells: (HW, dim)
    order: Tensor  # positions of the words: (max_tokens, text_width)

    def __init__(
        self,
        text_width: int,
        *,
        grid: int,
        max_tokens: int,
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
        self.register_buffer("order", sine(max_tokens, text_width), persistent=False)

    def forward(self, x: Tensor, words: Tensor, attention_mask: Tensor) -> Tensor:
        """``x`` (B, dim, H, W), words (B, L, C), mask (B, L) True for words -> (B, dim, H, W)."""
        tokens, grid = to_tokens(x), x.shape[2:]
        keys = words + self.order[: words.shape[1]].to(words.dtype)
        for layer in self.layers:
            tokens = layer(tokens, keys, words, self.places.to(tokens.dtype), attention_mask)
        return to_map(self.norm(tokens), grid)


class Layer(nn.Module):
    """Self-attention, cross-attention to the words, feed-forward; norms before and after."""

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
        self, x: Tensor, keys: Tensor, words: Tensor, places: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Tokens (B, HW, dim), keys and words (B, L, C) -> tokens; ``keys`` hold positions."""
        y = self.norm1(x)
        query = y + places
        x = x + self.dropout(self.self_norm(self.self_attention(query, query, y)))
        y = self.cross_attention(self.norm2(x) + places, keys, words, attention_mask)
        x = x + self.dropout(self.cross_norm(y))
        return x + self.dropout(self.feedforward(self.norm3(x)))


class Projector(nn.Module):
    """Convolve the map, four times as fine, with a kernel made from its own sentence (eq. 9)."""

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
            # PyTorch's default gives first logits of size 20
            nn.init.normal_(self.kernel.weight, std=0.003)
            nn.init.normal_(self.kernel.bias, std=0.003)
            nn.init.constant_(self.kernel.bias[-1:], PRIOR)

    def forward(self, x: Tensor, sentence: Tensor) -> Tensor:
        """``x`` (B, dim, H, W), sentence (B, E) -> logits (B, 1, 4 H, 4 W)."""
        x = self.finer(self.upsample(self.fine(self.upsample(x))))  # (B, C, 4H, 4W)
        kernel = self.kernel(sentence)
        weight, bias = kernel[:, :-1].unflatten(1, (self.channels, KERNEL**2)), kernel[:, -1]
        # weight (mix(x)) = (weight mix)(x): the mixed map is neither computed nor stored
        mixed = self.mix.weight.flatten(1).mT @ weight  # (B, C, K K)
        offset = self.mix.bias @ weight  # (B, K K)
        return convolve(x, mixed, offset, bias)


def convolve(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor) -> Tensor:
    """Convolve each sample with its own kernel: ``(B, C, H, W) -> (B, 1, H, W)``.

    One product per cell and kernel entry, then a sum of shifted maps, since a grouped convolution
    with one output channel per sample has no fast kernel.

    Args:
        weight: (B, C, K K).
        offset: (B, K K), what a kernel entry adds where it lies inside the map.
        bias: (B,).
    """
    size, grid = math.isqrt(weight.shape[2]), x.shape[2:]
    entries = weight.flip(2).mT @ x.flatten(2) + offset.flip(1)[:, :, None]  # (B, K K, HW)
    total = F.fold(entries, grid, size, padding=size // 2)  # (B, 1, H, W)
    return total + bias[:, None, None, None]
