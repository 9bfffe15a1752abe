"""Write and read checkpoints: ``best.safetensors`` of a model, ``last.pt`` of a run in progress.

``best.safetensors`` contains what trained (or everything). Its header is JSON: the config, the
backbone's name and SHA-256, and what the writer adds (step, scores, commit, versions, data).
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from engine.precision import scoring_precision, store_for_inference
from model import Segmenter, build_segmenter
from model.backbones import BACKBONES, sha256_of
from model.segmenter import shorten
from utils import files
from utils.config import Config, load_config, override_config
from utils.distributed import Processes

FORMAT = "referring-segmentation-1"
ROOT = Path(__file__).resolve().parents[1]
WEIGHTS_FOLDER = "pretrain"
WEIGHTS_SUFFIXES = {".bin", ".pt", ".pth", ".safetensors"}
# These keys do not change a loaded model: the file's path (its hash counts), and training options.
IRRELEVANT: tuple[str, ...] = ("backbone.weights",)
IRRELEVANT += ("decoder.dropout", "decoder.initial_kernel", "decoder.train_connect")
# These keys change neither a loss nor the choice of the best checkpoint.
KEYS_ALLOWED_TO_CHANGE_ON_RESUME = (
    "run.",
    "data.root",
    "data.workers",
    "eval.batch_size",
    "model.backbone.weights",  # the file may move; its hash is compared
    "train.max_minutes",
    "train.recompute_towers",
    "train.compile",
)
ABSENT = "(none)"
STATE_KEYS = {  # earlier versions lack ``peak_memory``
    *("config", "backbone", "data_fingerprint", "trainable", "optimizer", "scaler", "history"),
    *("step", "total_steps", "scored_step", "elapsed", "best", "random_states"),
}
State = dict[str, Any]  # of last.pt
Differences = dict[str, tuple[Any, Any]]  # dotted key -> our value and theirs


@dataclass(frozen=True)
class Checkpoint:
    """The header of a checkpoint file.

    Attributes:
        config: the one of training; keys newer than the file have their defaults.
        metadata: the header: ``holds`` ("trainable" or "everything"), ``config``,
            ``backbone``, ``hyperparameters`` and what the writer added.
        has_checksum: whether loading can find damage; files of earlier versions have none.
    """

    path: Path
    config: Config
    metadata: Mapping[str, Any]
    has_checksum: bool = False

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return files.sha256_of(self.path)

    def sentence_length(self, config: Config) -> int:
        """Return how many tokens of every sentence the model reads under ``config``, with padding.

        That is the length of training, since modules between the towers read the padding too. A
        longer ``data.max_words`` makes it longer.
        """
        return max(config.data.max_words or 0, self.config.data.longest_sentence)


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode on its device, its weights stored in ``precision``."""

    segmenter: Segmenter
    config: Config
    checkpoint: Checkpoint
    precision: str


def save_checkpoint(
    path: Path,
    segmenter: Segmenter,
    config: Config,
    *,
    everything: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write what ``segmenter`` trained to ``path``, or with ``everything`` the frozen CLIP too.

    The file always contains everything if all of it trained, or if the backbone has no file of
    weights that its hash could find. ``extra`` is added to the header and must be JSON.
    """
    state, trained = segmenter.state_dict(), segmenter.trainable_state()
    everything = everything or segmenter.backbone["sha256"] is None or len(trained) == len(state)
    metadata = {
        "holds": "everything" if everything else "trainable",
        "config": config.to_dict(),
        "backbone": {key: segmenter.backbone[key] for key in ("name", "sha256")},
        "hyperparameters": segmenter.hyperparameters(),
        **(extra or {}),
    }
    # Clones: safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in (state if everything else trained).items()
    }
    # safetensors' own save_file would make a file that only its owner may read
    story = json.dumps(metadata)
    header = {"format": FORMAT, "story": story, "sha256": compute_checksum(story, tensors)}
    files.write_bytes(path, save(tensors, metadata=header))


def compute_checksum(story: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256 over the metadata and over name, type, shape and bytes of all tensors."""
    digest = hashlib.sha256(story.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the header of a checkpoint.

    Raises:
        ValueError: ``path`` is missing or not a checkpoint of this project.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the best.safetensors in it")
    if not path.is_file():
        raise ValueError(
            f"{path}: no such checkpoint; train.py writes best.safetensors to its folder"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError:
        header = {}
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a checkpoint of this project (a safetensors file with the format "
            f"{FORMAT}); give the best.safetensors that train.py wrote, set model.backbone.weights "
            "to CLIP weights, or convert released ETRIS and CRIS checkpoints with "
            "tools/convert_checkpoint.py"
        )
    try:
        metadata = json.loads(header["story"])
        values = metadata["config"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: its header is damaged; copy the file again") from None
    config = Config.from_dict(values, source=str(path))
    return Checkpoint(path, config, metadata, has_checksum="sha256" in header)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint and check them; earlier versions wrote no checksum."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    if header.get("sha256", found := compute_checksum(header["story"], tensors)) != found:
        raise ValueError("its checksum is not that of its content; copy the file again")
    return tensors


def choose_config(checkpoint: Checkpoint, path: Path | None, overrides: Sequence[str]) -> Config:
    """Read the YAML file ``path``, or take the checkpoint's own config, and apply ``overrides``."""
    if path is not None:
        return load_config(path, overrides)
    return override_config(checkpoint.config, overrides, source=str(checkpoint.path))


def load_for_inference(
    checkpoint: Checkpoint, config: Config | None = None, device: torch.device | None = None
) -> TrainedModel:
    """Load the model of a checkpoint for scoring and prediction; it cannot be trained any more.

    ``config`` replaces the checkpoint's own; the device is the CPU by default. Raises as
    :func:`load_segmenter`.
    """
    config, device = config or checkpoint.config, device or torch.device("cpu")
    segmenter = load_segmenter(checkpoint, config).to(device).eval()
    precision = scoring_precision(config, device)
    store_for_inference(segmenter, precision)
    return TrainedModel(segmenter, config, checkpoint, precision)


def load_segmenter(checkpoint: Checkpoint, config: Config | None = None) -> Segmenter:
    """Build the model of ``config``, or of the checkpoint's own, and load the weights into it.

    Raises:
        ValueError: the checkpoint has another architecture (the message names the keys), or no
            file has the SHA-256 of its CLIP, see :func:`find_backbone`.
    """
    config = config or checkpoint.config
    _check_architecture(config, checkpoint)
    everything = checkpoint.metadata["holds"] == "everything"
    segmenter = build_segmenter(
        find_backbone(config, checkpoint).model,
        image_size=config.data.image_size,
        max_tokens=checkpoint.sentence_length(config),
        load_weights=not everything,
    )
    _check_hyperparameters(segmenter, checkpoint)
    load = segmenter.load_whole_state if everything else segmenter.load_trainable_state
    try:
        load(_load_tensors(checkpoint.path))
    except ValueError as error:
        # weights over positions belong to the image size of training
        ours, theirs = config.data.image_size, checkpoint.config.data.image_size
        hint = (
            f" It was trained on images of {theirs} pixels and this model takes {ours}; "
            f"set data.image_size={theirs}"
        )
        raise ValueError(f"{checkpoint.path}: {error}{hint * (ours != theirs)}") from None
    return segmenter


def _check_architecture(config: Config, checkpoint: Checkpoint) -> None:
    ours, trained = config.model.model_dump(), checkpoint.config.model.model_dump()
    listed = [
        f"model.{key} is {then!r} in it and {now!r} in the config"
        for key, (now, then) in find_differences(ours, trained, ignored=IRRELEVANT).items()
        if not key.endswith(".lr_scale")
    ]
    if listed:
        raise ValueError(
            f"{checkpoint.path}: has another architecture: {'; '.join(listed)}; "
            "omit --config to use the checkpoint's own"
        )


def _check_hyperparameters(segmenter: Segmenter, checkpoint: Checkpoint) -> None:
    """Compare heads and strides, which no shape shows; old files lack them."""
    ours = segmenter.hyperparameters()
    listed = [
        f"{name} has {kind} {value} in it and {ours[kind][name]} in the model"
        for kind, values in checkpoint.metadata.get("hyperparameters", {}).items()
        for name, value in values.items()
        if ours[kind].get(name, value) != value
    ]
    if listed:
        raise ValueError(
            f"{checkpoint.path}: was trained with other heads or strides: {shorten(listed)}; set "
            "them in the config as they were"
        )


def find_backbone(config: Config, checkpoint: Checkpoint) -> Config:
    """Return ``config`` with ``model.backbone.weights`` set to the CLIP file of the training.

    That is the file that the config names, or else any file in ``pretrain/``, of the working folder
    or of the project, with the right SHA-256. A checkpoint of everything needs no file if the name
    of its backbone gives the sizes.

    Raises:
        ValueError: no file has that SHA-256; the message says how to get it.
    """
    backbone, metadata = config.model.backbone, checkpoint.metadata
    name, sha256 = metadata["backbone"]["name"], metadata["backbone"]["sha256"]
    is_complete = metadata["holds"] == "everything" and backbone.name is not None
    if sha256 is None or is_complete:
        return config
    folders = (Path.cwd(), ROOT)
    paths = [folder / backbone.weights for folder in folders if backbone.weights]
    for folder in folders:
        found = (folder / WEIGHTS_FOLDER).glob("*")
        paths += sorted(path for path in found if path.suffix in WEIGHTS_SUFFIXES)
    for path in dict.fromkeys(paths):
        if path.is_file() and sha256_of(path) == sha256:
            backbone = backbone.model_copy(update={"weights": str(path)})
            model = config.model.model_copy(update={"backbone": backbone})
            return config.model_copy(update={"model": model})
    ways = f"put that file into {WEIGHTS_FOLDER}/ or set model.backbone.weights to it"
    if name in BACKBONES:
        ways = f"get it with `python tools/download_weights.py {name}`, {ways}"
        if name.startswith("demo-"):
            ways = f"it belongs to the project: git restore {WEIGHTS_FOLDER}/{name}.pt"
    searched = f"neither {backbone.weights} nor any" if backbone.weights else "no"
    raise ValueError(
        f"{checkpoint.path}: was trained on the {name or 'CLIP'} with SHA-256 {sha256}, and "
        f"{searched} file in {WEIGHTS_FOLDER}/ has it; {ways}"
    )


def save_state(path: Path, state: State) -> None:
    """Write ``state``, tensors and plain types only, to ``path`` whole or not at all."""
    with files.atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(path: Path) -> State:
    """Read the state in ``path`` on the CPU, without running code; ``ValueError`` if it cannot."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch does not compare the checksums of members
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive makes torch raise many types
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}); start a new run with --fresh, "
            "which renames the folder"
        ) from error


def is_finished(state: State, config: Config) -> bool:
    """Return whether the run of ``state`` ended, by steps or time, and was scored at its end."""
    minutes = config.train.max_minutes
    is_out_of_time = minutes is not None and state["elapsed"] >= 60 * minutes
    is_over = state["step"] >= state["total_steps"] or is_out_of_time
    return is_over and state["scored_step"] == state["step"]


def open_run(config: Config, folder: Path, fresh: bool) -> State | None:
    """Make the folder of a run ready; return the state to continue from, or None.

    ``fresh`` renames an old folder. Raises ``ValueError`` if the run in it has another config.
    """
    if fresh and folder.exists():
        names = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
        folder.rename(next(name for name in names if not name.exists()))
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pt"
    if not last.exists():
        if (folder / "best.safetensors").exists():
            raise ValueError(
                f"{folder}: has best.safetensors but no last.pt to continue from; --fresh renames "
                "the folder and starts a new run, run.folder names another folder"
            )
        return None
    state = load_state(last)
    if not isinstance(state, dict) or STATE_KEYS - state.keys():
        raise ValueError(
            f"{last}: is not the state of a run; start a new run with --fresh, which renames the "
            "folder"
        )
    # Config gives keys that are newer than the run their defaults.
    before = Config.from_dict(state["config"], source=str(last)).to_dict()
    allowed = KEYS_ALLOWED_TO_CHANGE_ON_RESUME
    if changed := find_differences(config.to_dict(), before, ignored=allowed):
        raise ValueError(
            f"{folder}: has a run with another config: {describe_differences(changed)}; --fresh "
            "renames the folder and starts a new run, run.folder names another folder"
        )
    return state


def check_backbone(state: State, segmenter: Segmenter, path: Path) -> None:
    """Raise ``ValueError`` if the run of ``state``, read from ``path``, has another CLIP."""
    backbone = segmenter.backbone
    if state["backbone"] != backbone["sha256"]:
        raise ValueError(
            f"{path}: was trained on CLIP weights with SHA-256 {state['backbone']}, but "
            f"{backbone['weights']} has {backbone['sha256']}; name the right file or use --fresh"
        )


def seed_process(seed: int, rank: int) -> None:
    """Seed torch so that each process draws other numbers for its dropout."""
    torch.manual_seed(int(np.random.SeedSequence((seed, rank)).generate_state(1)[0]))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators in this process."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def restore_random_state(
    states: Sequence[Mapping[str, Tensor]], processes: Processes, *, seed: int
) -> None:
    """Restore what ``random_state`` gave, or seed again for another number of processes."""
    if len(states) != processes.world_size:
        seed_process(seed, processes.rank)
        logger.warning(
            f"saved by {len(states)} processes, continued by {processes.world_size}: "
            "same samples, other dropout"
        )
        return
    state, device = states[processes.rank], processes.device
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def find_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], *, ignored: tuple[str, ...] = ()
) -> Differences:
    """Find the dotted keys whose values differ; return our value and theirs for each.

    Keys that begin as one of ``ignored`` may differ. A list of sections counts as a section with
    the keys 0, 1, ...; a list of plain values is a value.
    """
    mine, other = flatten(ours), flatten(theirs)
    pairs = {key: (mine.get(key, ABSENT), other.get(key, ABSENT)) for key in [*mine, *other]}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and not key.startswith(ignored)}


def describe_differences(unequal: Differences) -> str:
    """Write differences out: ``train.lr is 0.1, was 0.2; train.seed is 1, was 0``."""
    return "; ".join(f"{key} is {now!r}, was {before!r}" for key, (now, before) in unequal.items())


def flatten(tree: Any, place: str = "") -> dict[str, Any]:
    """Return the values of ``tree`` by their dotted keys, all below ``place``."""
    if isinstance(tree, list) and any(isinstance(value, list | Mapping) for value in tree):
        tree = {str(position): value for position, value in enumerate(tree)}
    if not isinstance(tree, Mapping) or not tree:
        return {place: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{place}.{key}" if place else key)
    return flat
