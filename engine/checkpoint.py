"""Checkpoints: what trained (or everything), with the story of how it came about beside it.

One safetensors file, readable without running code. Its metadata is JSON: the config, the name and
SHA-256 of the backbone, and whatever the writer adds (step, scores, commit, versions, data).
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from engine.differences import differences
from model import Segmenter, build_segmenter
from model.segmenter import shorten
from utils.config import Config, load_config

FORMAT = "referring-segmentation-1"
# Without effect on a loaded model: the file's place (its hash counts), and what training reads.
_IRRELEVANT = (
    "backbone.weights",
    "decoder.dropout",
    "decoder.initial_kernel",
    "decoder.train_connect",
)


def save_checkpoint(
    path: Path,
    segmenter: Segmenter,
    config: Config,
    *,
    everything: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write what ``segmenter`` trained to ``path``, or with ``everything`` the frozen CLIP too.

    It holds everything unasked where all of it trained, and where the backbone has no file of
    weights, so that it could not be found again by its hash. ``extra`` is added to the metadata and
    must be JSON.
    """
    state, trained = segmenter.state_dict(), segmenter.trainable_state()
    everything = everything or segmenter.backbone["sha256"] is None or len(trained) == len(state)
    state = state if everything else trained
    story = {
        "holds": "everything" if everything else "trainable",
        "config": config.to_dict(),
        "backbone": {key: segmenter.backbone[key] for key in ("name", "sha256")},
        "hyperparameters": segmenter.hyperparameters(),
        **(extra or {}),
    }
    # Clones: safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    # save_file would make a file that nobody but its owner may read
    aside.write_bytes(save(tensors, metadata={"format": FORMAT, "story": json.dumps(story)}))
    os.replace(aside, path)


def read_metadata(path: Path) -> dict[str, Any]:
    """``holds`` ("trainable" or "everything"), ``config``, ``backbone`` and what else was saved.

    Raises ``ValueError`` if ``path`` is missing or not a checkpoint of this project.
    """
    if path.is_dir():
        raise ValueError(
            f"{path}: no such checkpoint, but a folder; give the best.safetensors in it"
        )
    if not path.is_file():
        raise ValueError(
            f"{path}: no such checkpoint; train.py writes best.safetensors to its folder"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        raise ValueError(f"{path}: {_what_else(path)}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: a safetensors file, but no checkpoint of this project (its metadata lacks "
            f"format {FORMAT}); give the best.safetensors that train.py wrote"
        )
    return json.loads(metadata["story"])


def read_config(path: Path) -> Config:
    """The config a checkpoint was trained with."""
    return Config.from_dict(read_metadata(path)["config"], source=str(path))


def choose_config(checkpoint: Path, path: Path | None, overrides: Sequence[str]) -> Config:
    """The config of the YAML file ``path``, or else the checkpoint's own, with ``overrides``."""
    if path is not None:
        return load_config(path, overrides)
    config = read_config(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / f"{checkpoint.name}.yaml"
        own.write_text(config.to_yaml(), encoding="utf-8")
        return load_config(own, overrides)


def sentence_length(config: Config, trained: Config) -> int:
    """Tokens that a model trained with ``trained`` reads of every sentence, padding included.

    That is the length it was trained with, whatever it is scored on, since modules between the
    towers read the padding too; a longer ``data.max_words`` of ``config`` makes it longer.
    """
    return max(config.data.max_words or 0, trained.data.longest_sentence)


def load_segmenter(config: Config, path: Path) -> Segmenter:
    """Build the model of ``config`` and load checkpoint ``path`` into it.

    Raises ``ValueError`` for a file that is missing or not ours, another architecture (naming what
    differs) and another backbone (its SHA-256 differs).
    """
    metadata = read_metadata(path)
    # Through Config, so that keys younger than the checkpoint stand at their defaults.
    trained = Config.from_dict(metadata["config"], source=str(path))
    _check_architecture(config, trained, path)
    everything = metadata["holds"] == "everything"
    segmenter = build_segmenter(
        config.model,
        image_size=config.data.image_size,
        max_words=sentence_length(config, trained),
        load_weights=not everything,
    )
    _check_hyperparameters(segmenter, metadata.get("hyperparameters", {}), path)
    if not everything:
        _check_backbone(segmenter.backbone, metadata["backbone"], path)
    state = load_file(path)
    try:
        if everything:
            segmenter.load_whole_state(state)
        else:
            segmenter.load_trainable_state(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}{_way_back(config, trained)}") from None
    return segmenter


def _check_architecture(config: Config, trained: Config, path: Path) -> None:
    unequal = differences(
        config.model.model_dump(), trained.model.model_dump(), apart_from=_IRRELEVANT
    )
    listed = [
        f"model.{key} is {trained_with!r} in it and {asked!r} in the config"
        for key, (asked, trained_with) in unequal.items()
        if not key.endswith(".lr_scale")
    ]
    if listed:
        raise ValueError(
            f"{path}: holds another architecture: {'; '.join(listed)}; "
            "leave out --config to use the checkpoint's own"
        )


def _way_back(config: Config, trained: Config) -> str:
    """What to add to a misfit: weights over positions belong to the size they were trained at."""
    ours, theirs = config.data.image_size, trained.data.image_size
    if ours == theirs:
        return ""
    return (
        f" It was trained on images of {theirs} pixels and this model takes {ours}; "
        f"set data.image_size={theirs}"
    )


def _check_hyperparameters(
    segmenter: Segmenter, trained: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """``ValueError`` if heads or strides are not those of training; older files don't hold them."""
    ours = segmenter.hyperparameters()
    listed = [
        f"{name} has {kind} {value} in it and {ours[kind][name]} in the model"
        for kind, values in trained.items()
        for name, value in values.items()
        if ours[kind].get(name, value) != value
    ]
    if listed:
        raise ValueError(
            f"{path}: was trained with other heads or strides: {shorten(listed)}; set them in the "
            "configuration as they were"
        )


def _check_backbone(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    if ours["sha256"] == theirs["sha256"]:
        return
    given = (
        f"{ours['weights']} has SHA-256 {ours['sha256']}"
        if ours["sha256"]
        else "model.backbone.weights names none"
    )
    raise ValueError(
        f"{path}: was trained on the {theirs['name']} with SHA-256 {theirs['sha256']}, "
        f"but {given}; set model.backbone.weights to the CLIP it was trained on"
    )


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":
        return (
            "a PyTorch file, no checkpoint of this project; CLIP weights belong in "
            "model.backbone.weights, released ETRIS or CRIS checkpoints go through "
            "tools/convert_checkpoint.py"
        )
    return "not a checkpoint (no safetensors file); give the best.safetensors that train.py wrote"
