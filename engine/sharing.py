"""One frozen CLIP in memory for all segmenters on it, however many adapters are loaded."""

from collections.abc import Iterable, Iterator
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from model import Segmenter
from model.backbones import CLIP

Key = tuple[str, str, str, torch.dtype, torch.Size]  # SHA-256 of the file, device, name, kind

# Weak: what no segmenter uses any more is freed.
_SHARED: WeakValueDictionary[Key, Tensor] = WeakValueDictionary()


def place(segmenter: Segmenter, device: torch.device) -> None:
    """Move ``segmenter`` to ``device``, its frozen CLIP onto the tensors that are there already.

    Two segmenters share a frozen tensor if their backbones come from one file and it holds the
    same values: positions, which depend on the size of images and the length of sentences, are
    shared where these are equal. What trained is never shared.
    """
    sha256, clip = segmenter.backbone["sha256"], segmenter.encoder.clip
    if sha256 is None:
        segmenter.to(device)
        return
    device = torch.empty(0, device=device).device  # with its index: cuda is cuda:0
    for module, leaf, key in _frozen(clip, sha256, device):
        shared = _SHARED.get(key)
        if shared is not None and shared.equal(getattr(module, leaf).to(device)):
            setattr(module, leaf, shared)
    segmenter.to(device)
    for module, leaf, key in _frozen(clip, sha256, device):
        _SHARED.setdefault(key, getattr(module, leaf))


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that ``tensors`` take, memory that several of them share counted once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _frozen(clip: CLIP, sha256: str, device: torch.device) -> Iterator[tuple[nn.Module, str, Key]]:
    for name in sorted(clip.frozen):
        owner, _, leaf = name.rpartition(".")
        module = clip.get_submodule(owner)
        tensor = getattr(module, leaf)
        yield module, leaf, (sha256, str(device), name, tensor.dtype, tensor.shape)
