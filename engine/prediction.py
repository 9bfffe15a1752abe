"""A trained model as a Python call: picture and sentence in, mask out.

from engine.prediction import load

segmenter = load("best.safetensors")
mask = segmenter("photo.jpg", "the small red star")  # bool (H, W)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.backbone_files import with_backbone
from engine.checkpoint import load_segmenter, read_config, read_metadata
from engine.evaluator import predict_logits
from engine.picture_files import Picture, as_rgb
from engine.precision import scoring_precision, store_for_inference
from engine.sharing import num_bytes, place
from engine.threshold import found
from model import Segmenter
from utils.config import Config
from utils.data.tokenizer import tokenize
from utils.data.transforms import letterbox_image, restore_logits


def load(
    checkpoint: str | Path,
    *,
    device: str | torch.device | None = None,
    config: Config | None = None,
) -> "Predictor":
    """The model of ``checkpoint``, ready to be called; the file alone is enough.

    The CLIP it was trained on is recognised by its SHA-256: in the file the config names, or among
    those of ``pretrain/``. Checkpoints on one frozen CLIP share its weights in memory.

    Args:
        checkpoint: ``best.safetensors`` of a run.
        device: ``cpu``, ``cuda`` or ``cuda:1``; a GPU if there is one.
        config: what holds in place of the checkpoint's own config.

    Raises:
        ValueError: a checkpoint that is missing or not ours, a CLIP that is nowhere (with the way
            to get it), a config of another architecture, or a device that is not there.
    """
    path, target = Path(checkpoint), choose_device(device)
    config = with_backbone(config or read_config(path), read_metadata(path), path)
    segmenter = load_segmenter(config, path).eval()
    return Predictor(segmenter, config, name=path.name, device=target)


class Predictor:
    """A model that segments what a sentence names in a picture, as ``test.py`` by ``native``.

    Pictures are paths, arrays (grey, RGB or RGBA; uint8 or uint16) or PIL images, and come out the
    right way up. Results have the size of the picture: (H, W) for a sentence, (N, H, W) for a list
    of N. A sentence that is longer than ``max_words`` tokens is cut; ``num_tokens`` counts them.
    All are padded to the length that the model was trained with.

    Attributes:
        threshold: a pixel belongs to the mask above this probability; that of ``eval.threshold``.
    """

    def __init__(
        self, segmenter: Segmenter, config: Config, *, name: str, device: torch.device
    ) -> None:
        self.segmenter, self.config, self.name, self.device = segmenter, config, name, device
        self.threshold = config.eval.threshold
        self.sentence_length = len(segmenter.encoder.clip.text.positions)
        self.max_words = config.data.max_words or self.sentence_length
        self.precision = scoring_precision(config, device)
        store_for_inference(segmenter, self.precision)
        place(segmenter, device)

    def __repr__(self) -> str:
        """With its size in memory: its own weights, and those it may share."""
        frozen = {f"encoder.clip.{name}" for name in self.segmenter.encoder.clip.frozen}
        weights = self.segmenter.state_dict()
        shared = num_bytes(weights[name] for name in weights if name in frozen)
        own = num_bytes(weights[name] for name in weights if name not in frozen)
        backbone = self.segmenter.backbone["name"] or "CLIP"
        return (
            f"Predictor({self.name} on {self.device}: {own / 1e6:.1f} MB trained, "
            f"{shared / 1e6:.1f} MB of a frozen {backbone})"
        )

    def __call__(self, image: Picture, text: str | Sequence[str]) -> np.ndarray:
        """Masks, bool: where the probability is above ``threshold``.

        Raises:
            ValueError: a picture that cannot be read, or a sentence without words.
        """
        masks = [found(one, self.threshold) for one in self.logits(image, text)]
        return self._answer(masks, text)

    def probability(self, image: Picture, text: str | Sequence[str]) -> np.ndarray:
        """The probability of every pixel, float32 from 0 to 1; raises as a call does."""
        return self._answer([one.sigmoid() for one in self.logits(image, text)], text)

    def logits(self, image: Picture, text: str | Sequence[str]) -> Tensor:
        """Logits of one or all sentences, float32 (N, H, W) on ``device``; raises as a call does.

        Neither the other sentences nor their number changes a sentence's logits.
        """
        return torch.stack(list(self.each(image, [text] if isinstance(text, str) else text)))

    def each(self, image: Picture, texts: Sequence[str]) -> Iterator[Tensor]:
        """Logits (H, W) of one sentence after the other, of which only one is held at a time.

        What the sentences have in common is computed once; raises as a call does.
        """
        _check_texts(texts)
        square, letterbox = letterbox_image(as_rgb(image), self.config.data.image_size)
        pixels = torch.from_numpy(square).permute(2, 0, 1)  # (3, S, S)
        ids, _ = tokenize(list(texts), self.max_words, self.sentence_length)
        logits = predict_logits(
            self.segmenter,
            pixels[None],
            [ids],
            precision=self.precision,
            device=self.device,
        )[0]
        return (restore_logits(one, letterbox) for one in logits)

    def num_tokens(self, text: str) -> int:
        """Tokens of a sentence, start and end included; those beyond ``max_words`` are cut."""
        return tokenize(text, self.max_words)[1][0]

    @staticmethod
    def _answer(values: list[Tensor], text: str | Sequence[str]) -> np.ndarray:
        return (values[0] if isinstance(text, str) else torch.stack(values)).cpu().numpy()


def _check_texts(texts: Sequence[str]) -> None:
    """``ValueError`` if there is no sentence, or one without words."""
    if not texts:
        raise ValueError("no sentence; say what to find")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"sentence {number} is empty; say what to find")


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device called ``name``, or a GPU if there is one; ``ValueError`` if it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"no device {str(name)!r} ({reason}); use cpu, cuda or cuda:1") from None
    return device
