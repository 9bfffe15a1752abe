"""Choose the number format of the forward pass, and store weights in it."""

from pathlib import Path

import torch
from torch import nn

from model import Segmenter
from utils.config import Config

CPU_LISTING = Path("/proc/cpuinfo")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# x86 and Arm names of matrix products of bfloat16 in hardware; without them bf16 is slower.
FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}


def resolve_precision(name: str, device: torch.device) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16`` for ``device``; ``ValueError`` for fp16 without a GPU.

    ``auto`` is bf16 where it is fast, fp16 (with a gradient scaler) on older GPUs with fast halves
    (V100, T4, RTX 20), and else fp32.
    """
    if name == "fp16" and device.type != "cuda":
        raise ValueError(
            f"train.precision: fp16 needs a CUDA GPU and this run is on {device.type}; "
            "use auto, bf16 or fp32"
        )
    if name != "auto":
        return name
    if device.type == "cuda":
        generation, _ = torch.cuda.get_device_capability(device)
        return "bf16" if generation >= 8 else "fp16" if generation == 7 else "fp32"
    # Only newer releases of torch.cpu name these flags; the kernel's list is always the same.
    text = CPU_LISTING.read_text("utf-8", errors="replace") if CPU_LISTING.exists() else ""
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return "bf16" if FAST_BF16_FLAGS & {*line.partition(":")[2].split()} else "fp32"
    return "fp32"


def scoring_precision(config: Config, device: torch.device) -> str:
    """Return the precision of masks: ``eval.precision``, or else that of training on ``device``.

    A model trained in fp16 on a GPU is scored elsewhere as with ``auto``.
    """
    if config.eval.precision is not None:
        return resolve_precision(config.eval.precision, device)
    half = config.train.precision == "fp16" and device.type != "cuda"
    return resolve_precision("auto" if half else config.train.precision, device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which matrix products and convolutions run in ``precision``."""
    return torch.autocast(
        device.type, dtype=TYPES.get(precision, torch.bfloat16), enabled=precision in TYPES
    )


def store_frozen(segmenter: Segmenter, precision: str) -> None:
    """Store the frozen weights of products and convolutions in ``precision``: half the memory.

    ``autocast`` would round them so at every use; the results are the same to the last bit. A
    CLIP that has no file stays as it is, since checkpoints must contain it.
    """
    if precision in TYPES and segmenter.backbone["sha256"] is not None:
        _store(segmenter.encoder.clip, TYPES[precision], only_frozen=True)


def store_for_inference(segmenter: Segmenter, precision: str) -> None:
    """Store all weights of products and convolutions in ``precision``, as :func:`store_frozen`.

    The segmenter can be trained or saved no more.
    """
    if precision in TYPES:
        _store(segmenter, TYPES[precision], only_frozen=False)


def _store(module: nn.Module, dtype: torch.dtype, *, only_frozen: bool) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            for parameter in layer.parameters(recurse=False):
                if not (only_frozen and parameter.requires_grad):
                    parameter.data = parameter.data.to(dtype)
