"""Use a trained model as a Python call: picture and sentence in, mask out.

from engine.prediction import load

segmenter = load("best.safetensors")
mask = segmenter("photo.jpg", "the small red star")  # bool (H, W)
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import load_segmenter, read_checkpoint
from engine.evaluator import predict_logits
from engine.metrics import threshold_mask
from engine.precision import scoring_precision, store_for_inference
from engine.prediction_io import Picture, as_rgb
from model import Segmenter
from utils.config import Config
from utils.data.tokenizer import tokenize
from utils.data.transforms import letterbox_image, restore_logits

# Frozen tensors in use, by SHA-256 of their file, device, name, type and shape. Weak, so that a
# tensor is freed with the last model that uses it.
_SHARED: WeakValueDictionary[tuple, Tensor] = WeakValueDictionary()


def load(
    checkpoint: str | Path,
    *,
    device: str | torch.device | None = None,
    config: Config | None = None,
) -> "Predictor":
    """Load the model of ``checkpoint``, ready to be called; no other file need be named.

    The CLIP it was trained on is recognised by its SHA-256: in the file that the config names, or
    among those of ``pretrain/``. Checkpoints on one frozen CLIP share its weights in memory.

    Args:
        checkpoint: ``best.safetensors`` of a run.
        device: ``cpu``, ``cuda`` or ``cuda:1``; by default a GPU if there is one.
        config: replaces the checkpoint's own config.

    Raises:
        ValueError: a missing file, CLIP or device (with the way to get it), or a config of another
            architecture.
    """
    target, saved = choose_device(device), read_checkpoint(Path(checkpoint))
    config = config or saved.config
    return Predictor(load_segmenter(saved, config), config, name=saved.path.name, device=target)


class Predictor:
    """Segment what a sentence names in a picture, exactly as ``test.py`` by ``native``.

    Pictures are paths, arrays (grey, RGB or RGBA; uint8 or uint16) or PIL images; their EXIF
    orientation is applied. Results have the size of the picture: (H, W) for a sentence, (N, H, W)
    for a list of N. A sentence longer than ``max_words`` tokens is cut; ``num_tokens`` counts them.
    Every sentence is padded to the length that the model was trained with.

    Attributes:
        threshold: a pixel belongs to the mask above this probability; first ``eval.threshold``.
    """

    def __init__(
        self, segmenter: Segmenter, config: Config, *, name: str, device: torch.device
    ) -> None:
        self.segmenter, self.config, self.name, self.device = segmenter.eval(), config, name, device
        self.threshold = config.eval.threshold
        self.sentence_length = len(segmenter.encoder.clip.text.positions)
        self.max_words = config.data.max_words or self.sentence_length
        self.precision = scoring_precision(config, device)
        store_for_inference(segmenter, self.precision)
        move_to_device_shared(segmenter, device)

    def __repr__(self) -> str:
        """Name the model and its size in memory: its own weights, and those it may share."""
        weights = self.segmenter.state_dict()
        frozen = [
            weights.pop(f"encoder.clip.{name}") for name in self.segmenter.encoder.clip.frozen
        ]
        shared, own = count_bytes(frozen), count_bytes(weights.values())
        backbone = self.segmenter.backbone["name"] or "CLIP"
        return (
            f"Predictor({self.name} on {self.device}: {own / 1e6:.1f} MB trained, "
            f"{shared / 1e6:.1f} MB of a frozen {backbone})"
        )

    def __call__(self, image: Picture, text: str | Sequence[str]) -> np.ndarray:
        """Find the mask, bool: where the probability is above ``threshold``.

        Raises ``ValueError`` for a picture that cannot be read or a sentence without words.
        """
        masks = [threshold_mask(one, self.threshold) for one in self.logits(image, text)]
        return self._to_array(masks, text)

    def probability(self, image: Picture, text: str | Sequence[str]) -> np.ndarray:
        """Compute the probability of every pixel, float32 from 0 to 1; raises as a call does."""
        return self._to_array([one.sigmoid() for one in self.logits(image, text)], text)

    def logits(self, image: Picture, text: str | Sequence[str]) -> Tensor:
        """Compute logits of one or all sentences, float32 (N, H, W) on ``device``.

        The logits of a sentence do not depend on the other sentences. Raises as a call does.
        """
        return torch.stack(list(self.each(image, [text] if isinstance(text, str) else text)))

    def each(self, image: Picture, texts: Sequence[str]) -> Iterator[Tensor]:
        """Yield the logits (H, W) of one sentence after the other; only one is in memory at a time.

        The part of the model that no sentence enters runs once. Raises as a call does.
        """
        if not texts:
            raise ValueError("no sentence; say what to find")
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise ValueError(f"sentence {number} is empty; say what to find")
        square, letterbox = letterbox_image(as_rgb(image), self.config.data.image_size)
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None]  # (1, 3, S, S)
        ids, _ = tokenize(list(texts), self.max_words, self.sentence_length)
        logits = predict_logits(
            self.segmenter, pixels, [ids], precision=self.precision, device=self.device
        )[0]
        return (restore_logits(one, letterbox) for one in logits)

    def num_tokens(self, text: str) -> int:
        """Count the tokens of a sentence, start and end included, before it is cut."""
        return tokenize(text, self.max_words)[1][0]

    @staticmethod
    def _to_array(values: list[Tensor], text: str | Sequence[str]) -> np.ndarray:
        return (values[0] if isinstance(text, str) else torch.stack(values)).cpu().numpy()


def choose_device(name: str | torch.device | None) -> torch.device:
    """Return the device ``name``, by default a GPU if there is one; ``ValueError`` if missing."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"no device {str(name)!r} ({reason}); use cpu, cuda or cuda:1") from None
    return device


def move_to_device_shared(segmenter: Segmenter, device: torch.device) -> None:
    """Move ``segmenter`` to ``device``; reuse the frozen CLIP tensors that are there already.

    Two segmenters share a frozen tensor if their backbones come from one file and the values are
    equal: position embeddings only where image size and sentence length agree.
    """
    sha256, clip = segmenter.backbone["sha256"], segmenter.encoder.clip
    device = torch.empty(0, device=device).device  # with its index: cuda is cuda:0
    for name in clip.frozen if sha256 is not None else ():
        owner, _, leaf = name.rpartition(".")
        module = clip.get_submodule(owner)
        tensor = getattr(module, leaf)
        tensor.data = tensor.data.to(device)
        key = (sha256, str(device), name, tensor.dtype, tensor.shape)
        shared = _SHARED.setdefault(key, tensor)
        if shared.equal(tensor):
            setattr(module, leaf, shared)
    segmenter.to(device)


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of ``tensors``; memory that several of them share counts once."""
    storages = {one.data_ptr(): one for one in (tensor.untyped_storage() for tensor in tensors)}
    return sum(one.nbytes() for one in storages.values())
