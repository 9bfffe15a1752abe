"""The decoder of all methods: neck, cross-modal transformer, projector (ETRIS, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clip.clip import CLIP
from model.clip.common import Attention, Features, sine, sine_grid, to_map, to_tokens, zoom

KERNEL = 3  # side of the kernel that a sentence becomes


class Decoder(nn.Module):
    """Features of both towers -> one logit per pixel, four times as fine as the middle map.

    Args:
        clip: the towers that are decoded; sizes are read off it.
        grid: cells per side of the middle map.
        max_words: longest sentence.
        dim: width of the neck and the transformer.
        layers, heads, feedforward, dropout: of the transformer.
        project_sentence: project the sentence to ``dim`` in the neck even if it has that width.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        grid: int,
        max_words: int,
        dim: int = 512,
        layers: int = 3,
        heads: int = 8,
        feedforward: int = 512,
        dropout: float = 0.1,
        project_sentence: bool = False,
    ):
        super().__init__()
        visual = clip.visual
        if dim % 4 or dim % heads:
            raise ValueError(
                f"model.decoder: dim {dim} must be a multiple of 4 and of heads ({heads})"
            )
        self.connect = Connect(visual.last_width, visual.embed_dim) if visual.last_width else None
        self.neck = Neck(clip, grid=grid, dim=dim, project_sentence=project_sentence)
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
        self.projector = Projector(dim, visual.embed_dim)

    def forward(self, features: Features, ids: Tensor, residual: Tensor | None = None) -> Tensor:
        """-> logits ``(B, 1, 4 H, 4 W)``; ``residual`` (B, dim, H, W) is added to the query."""
        top = features.joint
        if self.connect is not None:
            top = torch.relu(top + self.connect(features.maps[-1]))
        x = self.neck((*features.maps[:-1], top), features.sentence)
        x = x if residual is None else x + residual
        x = self.transformer(x, features.words, ids != 0)
        return self.projector(x, features.sentence)


class Connect(nn.Sequential):
    """``BatchNorm(conv(x))`` from a ResNet's last map to the joint space, beside attention pool.

    From CRIS (Wang et al., 2022); CLIP does not have it, so it trains with the decoder.
    """

    def __init__(self, in_channels: int, out_channels: int):
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out_channels))


class Neck(nn.Module):
    """Hierarchical alignment (eq. 6-7): gated by the sentence, brought to one grid, and fused.

    The published module attends from every cell to the one sentence token; a softmax over one key
    is 1, so that its query and key weights never act.  What is left is the gate
    ``x * out(value(sentence))``, and that is what stands here.
    """

    coordinates: Tensor  # (1, 2, grid, grid)

    def __init__(self, clip: CLIP, *, grid: int, dim: int, project_sentence: bool):
        super().__init__()
        visual = clip.visual
        widths = (*visual.widths[:-1], visual.embed_dim)
        ratios = [stride / visual.strides[1] for stride in visual.strides]
        self.project: nn.Module = nn.Identity()
        if project_sentence or visual.embed_dim != dim:
            self.project = nn.Linear(visual.embed_dim, dim)
        self.levels = nn.ModuleList(
            norm_relu(zoom(width, dim, ratio), dim)
            for width, ratio in zip(widths, ratios, strict=True)
        )
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.Linear(dim, dim)) for _ in widths
        )
        self.fuse = norm_relu(nn.Conv2d(len(widths) * dim, dim, 1, bias=False), dim)
        self.locate = norm_relu(nn.Conv2d(dim + 2, dim, 3, padding=1, bias=False), dim)
        self.refine = norm_relu(nn.Conv2d(dim, dim, 3, padding=1, bias=False), dim)
        self.register_buffer("coordinates", coordinates(grid), persistent=False)

    def forward(self, maps: tuple[Tensor, ...], sentence: Tensor) -> Tensor:
        """Three maps and the sentence ``(B, E)`` -> ``(B, dim, H, W)``."""
        sentence = self.project(sentence)
        gated = [
            level(x) * gate(sentence)[:, :, None, None]
            for level, gate, x in zip(self.levels, self.gates, maps, strict=True)
        ]
        x = self.fuse(torch.cat(gated, dim=1))
        place = self.coordinates.to(x.dtype).expand(len(x), -1, -1, -1)
        return self.refine(self.locate(torch.cat([x, place], dim=1)))


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
            nn.Dropout(dropout),
            nn.LayerNorm(feedforward),
            nn.Linear(feedforward, dim),
        )
        self.dropout = nn.Dropout(dropout)

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

    def __init__(self, dim: int, sentence_width: int):
        super().__init__()
        self.channels = dim // 2
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.fine = norm_relu(nn.Conv2d(dim, dim, 3, padding=1, bias=False), dim)
        self.finer = norm_relu(
            nn.Conv2d(dim, self.channels, 3, padding=1, bias=False), self.channels
        )
        self.mix = nn.Conv2d(self.channels, self.channels, 1)
        self.kernel = nn.Linear(sentence_width, self.channels * KERNEL**2 + 1)
        # PyTorch's default makes first logits of size 20; small ones start at the share of a target
        nn.init.normal_(self.kernel.weight, std=0.003)
        nn.init.normal_(self.kernel.bias, std=0.003)
        nn.init.constant_(self.kernel.bias[-1:], PRIOR)

    def forward(self, x: Tensor, sentence: Tensor) -> Tensor:
        """``x`` (B, dim, H, W), ``sentence`` (B, E) -> logits (B, 1, 4 H, 4 W)."""
        x = self.finer(self.upsample(self.fine(self.upsample(x))))
        x = self.mix(x)  # (B, C, 4H, 4W)
        kernel = self.kernel(sentence)
        weight, bias = kernel[:, :-1], kernel[:, -1]
        return convolve(x, weight.unflatten(1, (self.channels, KERNEL, KERNEL)), bias)


PRIOR = -2.5  # logit of a target's usual share of an image, 8 %


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each sample with a kernel of its own: ``(B, C, H, W), (B, C, K, K), (B,) -> (B, 1, H, W)``.

    One product per cell and kernel entry, then a sum of shifted maps: a grouped convolution of one
    output channel per sample has no fast kernel.
    """
    size, grid = weight.shape[-1], x.shape[2:]
    entries = weight.flip(2, 3).flatten(2).mT @ x.flatten(2)  # (B, K K, HW)
    total = F.fold(entries, grid, size, padding=size // 2)  # (B, 1, H, W)
    return total + bias[:, None, None, None]


def norm_relu(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def coordinates(grid: int) -> Tensor:
    """x and y of every cell from -1 to 1: ``(1, 2, grid, grid)``."""
    line = torch.linspace(-1, 1, grid)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y])[None]
