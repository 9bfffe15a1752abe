"""CLIP with what is attached to it, and the decoder: image and sentence in, logits out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from model.backbones.resnet import ModifiedResNet
from model.decoder import Decoder
from model.encoder import Encoder, Seen
from model.side import Side


class Segmenter(nn.Module):
    """``decoder(features, ids, side(features, ids))`` of ``features = encoder(image, ids)``.

    Attributes:
        side: the network beside the towers, or None.
        backbone: ``name``, ``weights`` and ``sha256`` of the CLIP inside; all may be None.
        lr_scales: of the parameters, by name, of modules that have an ``lr_scale`` of their own.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        backbone: dict[str, str | None],
        side: nn.Module | None = None,
        lr_scales: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.encoder, self.decoder, self.side, self.backbone = encoder, decoder, side, backbone
        self.lr_scales = dict(lr_scales or {})

    def forward(self, image: Tensor | Sequence[Seen], ids: Tensor) -> Tensor:
        """Segment what each sentence names in its image.

        Args:
            image: (B, 3, S, S) RGB, 0 to 255, of any dtype; or, for sentences that share images,
                what :meth:`encode_image` made of each one's, B times one image.
            ids: (B, L) tokens, padded with 0.

        Returns:
            Logits (B, 1, h, w), four times as fine as the middle map: stride 4 for CLIP's patches
            of 16 and its ResNets.
        """
        if isinstance(image, Tensor):
            image = self.encoder.clip.normalize(image)
        features = self.encoder(image, ids)
        residual = self.side(features, ids) if self.side is not None else None
        return self.decoder(features, ids, residual)

    def encode_image(self, image: Tensor) -> Seen:
        """What all sentences about images (B, 3, S, S) have in common, to be computed once.

        ``segmenter([segmenter.encode_image(image)], ids)`` is ``segmenter(image, ids)``.
        """
        return self.encoder.encode_image(self.encoder.clip.normalize(image))

    def trainable_state(self) -> dict[str, Tensor]:
        """All that a run can change: the parameters that train and the statistics that move."""
        frozen = {f"encoder.clip.{key}" for key in self.encoder.clip.frozen}
        return {key: value for key, value in self.state_dict().items() if key not in frozen}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`trainable_state` gave.

        Raises:
            ValueError: naming the first keys that are missing, left over or of another shape.
        """
        self._load(state, self.trainable_state())

    def load_whole_state(self, state: dict[str, Tensor]) -> None:
        """Put back a whole ``state_dict``, the frozen CLIP included; raises as above."""
        self._load(state, self.state_dict())

    def _load(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
        if self.side is not None:
            own = {k.removeprefix("side."): v for k, v in state.items() if k.startswith("side.")}
            fitted = cast(Side, self.side).fit(own)
            state = state | {f"side.{key}": value for key, value in fitted.items()}
        self._fit_pool_positions(state, wanted)
        missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        shapes = [
            f"{key} {tuple(state[key].shape)} not {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in state and state[key].shape != value.shape
        ]
        problems = {"missing": missing, "unexpected": extra, "of another shape": shapes}
        told = [f"{len(keys)} {what} ({shorten(keys)})" for what, keys in problems.items() if keys]
        if told:
            raise ValueError(
                f"the weights don't fit this model: {'; '.join(told)}; "
                "was it built with another configuration?"
            )
        self.load_state_dict(state, strict=False)

    def _fit_pool_positions(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
        """Take the attention pool's positions at the grid that the checkpoint has them for.

        Older checkpoints hold them resized to the image; every forward pass resizes them anyway.
        """
        key, visual = "encoder.clip.visual.positions", self.encoder.clip.visual
        stored = state.get(key)
        if key in wanted and stored is not None and isinstance(visual, ModifiedResNet):
            is_square = math.isqrt(len(stored) - 1) ** 2 == len(stored) - 1
            if is_square and stored.shape[1:] == visual.positions.shape[1:]:
                visual.positions.data = visual.positions.new_empty(stored.shape)
                wanted[key] = visual.positions.data

    def parameter_groups(
        self, *, lr: float, encoder_lr_scale: float, backbone_lr_scale: float = 0.1
    ) -> list[dict[str, Any]]:
        """What trains, as an optimizer's groups, each with its rate; empty groups are left out.

        ``backbone`` is a CLIP that is tuned itself, ``encoder`` what is attached inside and between
        its towers. The side network trains at the rate of ``encoder``. A module with an
        ``lr_scale`` of its own trains at ``lr * lr_scale``, in a group of its part and that rate.
        """
        attached = lr * encoder_lr_scale
        rates = {
            "backbone": lr * backbone_lr_scale,
            "encoder": attached,
            "side": attached,
            "decoder": lr,
        }
        groups: dict[str, dict[float, list[nn.Parameter]]] = {part: {} for part in rates}
        tuned = {f"encoder.clip.{name}" for name in self.encoder.clip.tuned}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = "backbone" if name in tuned else name.partition(".")[0]
                rate = lr * self.lr_scales[name] if name in self.lr_scales else rates[part]
                groups[part].setdefault(rate, []).append(parameter)
        return [
            {"name": part, "params": parameters, "lr": rate}
            for part, by_rate in groups.items()
            for rate, parameters in by_rate.items()
        ]

    def hyperparameters(self) -> dict[str, dict[str, Any]]:
        """By module name what no shape of a weight shows: ``heads`` and strides above 1."""
        convolutions = (nn.Conv2d, nn.ConvTranspose2d)
        return {
            "heads": {
                name: module.heads
                for name, module in self.named_modules()
                if isinstance(getattr(module, "heads", None), int)
            },
            "stride": {
                name: module.stride[0]
                for name, module in self.named_modules()
                if isinstance(module, convolutions) and module.stride[0] > 1
            },
        }


def shorten(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (", …" if len(keys) > most else "")
