"""The whole model, from image and sentence to logits: encoder, side network, decoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from model.backbones.resnet import ModifiedResNet
from model.backbones.state import Features
from model.decoder import Decoder
from model.encoder import Encoder, ImageState
from model.side import Side


class Segmenter(nn.Module):
    """``decoder(features, ids, side(features, ids))`` with ``features = encoder(image, ids)``.

    Attributes:
        side: the network beside the towers, or None.
        backbone: ``name``, ``weights`` and ``sha256`` of the CLIP inside; each may be None.
        lr_scales: by the name of a parameter, the ``lr_scale`` of its module, if that has one.
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

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Segment what each sentence names in its image.

        Args:
            image: (B, 3, S, S) RGB, 0 to 255, of any type.
            ids: (B, L) token ids, padded with 0.

        Returns:
            Logits (B, 1, h, w), four times as fine as the middle map: stride 4 for CLIP's patches
            of 16 and its ResNets.
        """
        features = self.encoder(self.encoder.clip.normalize(image), ids)
        return self._decode(features, ids)

    def begin(self, image: Tensor) -> ImageState:
        """Compute from images (B, 3, S, S) what all sentences about them share."""
        return self.encoder.begin(self.encoder.clip.normalize(image))

    def finish(self, states: Sequence[ImageState], ids: Tensor) -> Tensor:
        """Segment what each of B sentences names: states as in :meth:`Encoder.finish` -> logits."""
        return self._decode(self.encoder.finish(states, ids), ids)

    def _decode(self, features: Features, ids: Tensor) -> Tensor:
        residual = self.side(features, ids) if self.side is not None else None
        return self.decoder(features, ids, residual)

    def trainable_state(self) -> dict[str, Tensor]:
        """Return all that training can change: parameters that train, and moving statistics."""
        frozen = {f"encoder.clip.{key}" for key in self.encoder.clip.frozen}
        return {key: value for key, value in self.state_dict().items() if key not in frozen}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load what :meth:`trainable_state` returned.

        Raises:
            ValueError: if keys are missing, unexpected or of another shape; the first are named.
        """
        self._load(state, self.trainable_state())

    def load_whole_state(self, state: dict[str, Tensor]) -> None:
        """Load a whole ``state_dict``, the frozen CLIP included; errors as above."""
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
        found = [f"{len(keys)} {what} ({shorten(keys)})" for what, keys in problems.items() if keys]
        if found:
            raise ValueError(
                f"the weights don't fit this model: {'; '.join(found)}; "
                "was it built with another configuration?"
            )
        self.load_state_dict(state, strict=False)

    def _fit_pool_positions(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
        """Resize this model's positions of a ResNet's attention pool to those of the checkpoint.

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
        """Return the parameters that train as an optimizer's groups, with a learning rate each.

        ``backbone`` is a tuned CLIP, ``encoder`` what is attached inside and between its towers. A
        module with its own ``lr_scale`` trains at ``lr * lr_scale``, in one more group of its part.
        """
        rates = {
            "backbone": lr * backbone_lr_scale,
            "encoder": lr * encoder_lr_scale,
            "side": lr * encoder_lr_scale,
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
        """Return what no shape of a weight shows, by module: ``heads``, and ``stride`` above 1."""
        convolutions = (nn.Conv2d, nn.ConvTranspose2d)
        modules = dict(self.named_modules())
        heads = {name: getattr(module, "heads", None) for name, module in modules.items()}
        return {
            "heads": {name: number for name, number in heads.items() if isinstance(number, int)},
            "stride": {
                name: module.stride[0]
                for name, module in modules.items()
                if isinstance(module, convolutions) and module.stride[0] > 1
            },
        }


def shorten(keys: list[str], most: int = 4) -> str:
    """Join the first ``most`` keys for a message."""
    return ", ".join(keys[:most]) + (", …" if len(keys) > most else "")
