"""Stand-in weights for released checkpoints: a name and a shape give the same tensor everywhere.

Released checkpoints are too large to ship, so parity is shown on numbers that anybody can make
again: ``etris_vitb16.npz`` holds what the released ETRIS code computed (float32, CPU, eval mode)
with the weights that :func:`state_dict` makes, for ``example_image{0,1}.png`` and the sentences
"man in red shirt on the left" and "the second giraffe from the right behind the fence".
``keys/MODEL.tsv`` lists name, shape and dtype of every entry that the released code saves.
"""

import csv
import zlib
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
OUTPUT_SCALE = 0.2  # keeps the logits of the stand-in models in a readable range
SMALL = ("positional_embedding", "class_embedding", "query_embed")


def keys(model: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every entry of a released checkpoint, e.g. of ``etris_vitb16``."""
    with open(HERE / "keys" / f"{model}.tsv", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return {
        name: (tuple(int(n) for n in shape.split("x") if n), getattr(torch, dtype))
        for name, shape, dtype in rows
    }


def fill(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers scaled by what the tensor is, from a generator seeded by its name."""
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = torch.from_numpy(np.asarray(random.standard_normal(shape), dtype=np.float32))
    last = name.rpartition(".")[2]
    if last == "running_var":
        values = 0.5 + values.abs()
    elif last == "running_mean":
        values = 0.1 * values
    elif last == "logit_scale":
        values = torch.ones(shape)
    elif last in SMALL or "token_embedding" in name:
        values = 0.1 * values
    elif len(shape) >= 2:
        fan_in = shape[0] if last in ("proj", "text_projection") else int(np.prod(shape[1:]))
        values = values / fan_in**0.5
    elif last == "weight":
        values = 1 + 0.1 * values
    else:
        values = 0.05 * values
    if name.startswith("proj.txt."):
        values = OUTPUT_SCALE * values
    return values.to(dtype)


def state_dict(model: str) -> dict[str, torch.Tensor]:
    """A whole stand-in checkpoint with the released names."""
    return {name: fill(name, shape, dtype) for name, (shape, dtype) in keys(model).items()}


def empty_state_dict(model: str) -> dict[str, torch.Tensor]:
    """The same names and shapes filled with zeros that take no memory."""
    return {
        name: torch.zeros((), dtype=dtype).expand(shape)
        for name, (shape, dtype) in keys(model).items()
    }
