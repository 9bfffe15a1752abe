"""The file of the CLIP that a checkpoint was trained on, recognised by its SHA-256."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from model.backbones import BACKBONES, sha256_of
from utils.config import Config

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "pretrain"
SUFFIXES = {".bin", ".pt", ".pth", ".safetensors"}


def with_backbone(config: Config, metadata: Mapping[str, Any], checkpoint: Path) -> Config:
    """``config`` with ``model.backbone.weights`` naming the file that ``checkpoint`` needs.

    That is the file the config names, or else any in ``pretrain/``, of the working folder or of
    the project, whose SHA-256 is the one in ``metadata``. A checkpoint that holds everything
    needs none where the name of its backbone tells the sizes.

    Raises:
        ValueError: no file has that SHA-256, with the way to get it.
    """
    named, sha256 = config.model.backbone.weights, metadata["backbone"]["sha256"]
    complete = metadata["holds"] == "everything" and config.model.backbone.name is not None
    if sha256 is None or complete:
        return config
    for path in _candidates(named):
        if _hash(path) == sha256:
            return _with_weights(config, path)
    name = metadata["backbone"]["name"]
    looked = f"neither {named} nor" if named else "no"
    raise ValueError(
        f"{checkpoint}: was trained on the {name or 'CLIP'} with SHA-256 {sha256}, and {looked} "
        f"file in {FOLDER}/ has it; {_way_out(name)}"
    )


def _candidates(named: str | None) -> Iterator[Path]:
    """The file as the config names it, from here and from the project, then those of pretrain/."""
    seen = set()
    folders = [Path.cwd(), ROOT]
    paths = [folder / named for folder in folders if named]
    for folder in folders:
        files = (folder / FOLDER).glob("*")
        paths += sorted(path for path in files if path.suffix in SUFFIXES)
    for path in paths:
        if path.is_file() and path.resolve() not in seen:
            seen.add(path.resolve())
            yield path


def _hash(path: Path) -> str:
    state = path.stat()
    return _hash_of_version(path.resolve(), state.st_size, state.st_mtime_ns)


@cache
def _hash_of_version(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, read once for each version of it; weights take a second or more."""
    return sha256_of(path)


def _with_weights(config: Config, path: Path) -> Config:
    backbone = config.model.backbone.model_copy(update={"weights": str(path)})
    model = config.model.model_copy(update={"backbone": backbone})
    return config.model_copy(update={"model": model})


def _way_out(name: str | None) -> str:
    if name is None or name not in BACKBONES:
        return f"put that file into {FOLDER}/ or set model.backbone.weights to it"
    if name.startswith("demo-"):
        return f"it belongs to the project: git restore {FOLDER}/{name}.pt"
    return (
        f"get it with `python tools/download_weights.py {name}`, put it into {FOLDER}/ or set "
        "model.backbone.weights to it"
    )
