"""Read the tensors of a TorchScript archive, as OpenAI publishes CLIP, without running its code.

An archive is a zip file. ``data.pkl`` is a pickle of the modules, ``data/N`` the bytes of storage
``N``, and ``code/`` holds programs that ``torch.jit.load`` would run and that are not read here.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]", re.MULTILINE
)


class _Module:
    """Stands for a module; its attributes are the module's.

    Attributes:
        declared: the names of its parameters and buffers; other tensors belong to no state dict.
    """

    declared: tuple[str, ...] = ()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype


class _View(NamedTuple):
    """A tensor of the archive: a view into a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> _View:
    return _View(storage, offset, size, stride)


def _rebuild_parameter(view: Any, *_: object) -> _View:
    return view


class _Unpickler(pickle.Unpickler):
    """Accepts modules, tensors, containers, text and numbers, and nothing else."""

    def __init__(self, content: bytes, declared: dict[str, tuple[str, ...]]) -> None:
        super().__init__(io.BytesIO(content))
        self.declared = declared

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if f"{module}.{name}" in self.declared:
            return type(name, (_Module,), {"declared": self.declared[f"{module}.{name}"]})
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(str(key), dtype)


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive: a zip file with a folder of code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an archive by their names, as ``state_dict()`` would.

    Raises:
        ValueError: the archive is damaged, or has something that no archive of weights needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path.stat().st_size)
    except Exception as error:  # pickle and zipfile raise many types for damaged files
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: not a TorchScript archive that can be read ({reason})"
        ) from error


def _read_archive(archive: zipfile.ZipFile, num_bytes: int) -> dict[str, Tensor]:
    if sum(member.file_size for member in archive.infolist()) > num_bytes:
        raise zipfile.BadZipFile("its members are larger than the file")
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder, content = name.removesuffix(".pkl"), archive.read(name)
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise pickle.UnpicklingError("an index of its memo is too large")
    views = dict(_walk(_Unpickler(content, _read_declarations(archive)).load()))
    storages = {
        storage: torch.frombuffer(
            bytearray(archive.read(f"{folder}/{storage.key}")), dtype=storage.dtype
        )
        for storage in {view.storage for view in views.values() if math.prod(view.size)}
    }
    return {key: _make_tensor(view, storages) for key, view in views.items()}


def _read_declarations(archive: zipfile.ZipFile) -> dict[str, tuple[str, ...]]:
    """Read from the text of the code which parameters and buffers every class of modules has."""
    declared = {}
    for name in archive.namelist():
        if name.endswith(".py"):
            module = name.partition("/code/")[2].removesuffix(".py").replace("/", ".")
            for kind, *names in CLASS.findall(archive.read(name).decode()):
                declared[f"{module}.{kind}"] = tuple(re.findall(r'"([^"]+)"', "".join(names)))
    return declared


def _make_tensor(view: _View, storages: dict[_Storage, Tensor]) -> Tensor:
    if not math.prod(view.size):
        return torch.empty(view.size, dtype=view.storage.dtype)
    storage = storages[view.storage]
    if math.prod(view.size) > len(storage):  # such as a stride of 0
        raise RuntimeError(f"a tensor of size {view.size} on {len(storage)} numbers")
    return storage.as_strided(view.size, view.stride, view.offset)


def _walk(module: object, prefix: str = "") -> Iterator[tuple[str, _View]]:
    """Yield the parameters and buffers of a module and of the modules in it."""
    if not isinstance(module, _Module):
        return
    for name, value in vars(module).items():
        if isinstance(value, _View) and name in module.declared:
            yield f"{prefix}{name}", value
        else:
            yield from _walk(value, f"{prefix}{name}.")
