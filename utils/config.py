"""Define the keys of a run with types and defaults, and read them from YAML files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from utils.data.datasets import default_max_words
from utils.flat_options import SECTIONS, refuse_flat_options
from utils.yaml_files import dump_yaml, parse_yaml

TEST_SPLITS = ("test", "testA", "testB")

Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=16384)]  # more fits no memory
Amount = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Place = tuple[str, ...]  # of a key: ("train", "lr")


def _check_module(options: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(options.get("name"), str):
        raise ValueError("needs a 'name' beside its options, such as {name: bridger, dim: 64}")
    scale = options.get("lr_scale", 1.0)
    if (
        isinstance(scale, bool)
        or not isinstance(scale, int | float)
        or not 0 < scale < float("inf")
    ):
        raise ValueError(f"lr_scale {scale!r} should be a number above 0")
    return options


Module = Annotated[dict[str, Any], AfterValidator(_check_module)]


def _read_names(value: Any) -> Any:
    """Accept a name or a list of names; a list of one becomes the name."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("should be a name or a list of names, such as [refcoco, refcoco+]")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"duplicate {', '.join(repeated)}; name each data set once")
    return names[0] if len(names) == 1 else names


# Before: a union's own errors would come once for each of its types.
Names = Annotated[str | list[str], BeforeValidator(_read_names)]


class Section(BaseModel):
    """Group keys, frozen: unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class DataConfig(Section):
    """Choose the expressions and pictures, and how the model gets them."""

    dataset: Names = "refcoco"
    allow_leakage: bool = False
    root: str = "datasets"
    image_size: Annotated[int, Field(ge=16, le=4096)] = 416
    max_words: Annotated[int, Field(ge=3, le=77)] | None = None
    workers: Annotated[int, Field(ge=0)] = 4

    @property
    def datasets(self) -> tuple[str, ...]:
        """Return the names in ``dataset``."""
        return (self.dataset,) if isinstance(self.dataset, str) else tuple(self.dataset)

    @property
    def longest_sentence(self) -> int:
        """Return how many tokens a sentence has: ``max_words``, or the data sets' largest."""
        return self.max_words or default_max_words(self.datasets)


class BackboneConfig(Section):
    """Choose the CLIP, and whether it is frozen or trains."""

    name: str | None = None
    weights: str | None = None
    tuning: Literal["frozen", "full"] = "frozen"


class DecoderConfig(Section):
    """Set up the segmentation head; the keys are the options of its constructor."""

    neck: Literal["aligned", "fpn", "plain"] = "aligned"
    dim: Width = 512
    layers: Annotated[int, Field(ge=0, le=256)] = 3
    heads: Count = 8
    feedforward: Width = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    project_sentence: bool = False
    train_connect: bool = True
    initial_kernel: Literal["small", "default"] = "small"

    @field_validator("heads")
    @classmethod
    def _check_heads(cls, heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim", heads)
        if dim % heads:
            raise ValueError(f"model.decoder.dim ({dim}) must be a multiple of the heads")
        return heads

    @field_validator("project_sentence")
    @classmethod
    def _check_projection(cls, project_sentence: bool, info: ValidationInfo) -> bool:
        neck = info.data.get("neck", "aligned")
        if project_sentence and neck != "aligned":
            raise ValueError(f"is an option of the aligned neck; remove it for neck: {neck}")
        return project_sentence


class ModelConfig(Section):
    """Choose the CLIP, what is attached to it, and the decoder."""

    backbone: BackboneConfig = BackboneConfig()
    adapters: list[Module] = []
    bridges: list[Module] = []
    side: Module | None = None
    decoder: DecoderConfig = DecoderConfig()
    train_positions: bool = False
    backbone_norm: Literal["frozen", "batch"] = "frozen"


class TrainConfig(Section):
    """Set length, rates and precision of training."""

    epochs: Count = 50
    max_steps: Count | None = None
    max_minutes: Rate | None = None
    batch_size: Count = 32
    micro_batch: Count | None = None
    recompute_towers: bool = False
    compile: bool = False
    lr: Rate = 1e-4
    encoder_lr_scale: Rate = 1.0
    backbone_lr_scale: Rate = 0.1
    weight_decay: Amount = 0.0
    schedule: Literal["step", "cosine"] = "step"
    milestones: list[Count] = [35]
    gamma: Rate = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "auto"
    max_norm: Amount = 0.0
    target: Literal["majority", "nearest"] = "majority"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("micro_batch")
    @classmethod
    def _check_micro_batch(cls, micro_batch: int | None, info: ValidationInfo) -> int | None:
        batch_size = info.data.get("batch_size")
        if micro_batch and batch_size and batch_size % micro_batch:
            raise ValueError(f"train.batch_size ({batch_size}) must be a multiple of it")
        return micro_batch

    @field_validator("milestones")
    @classmethod
    def _check_milestones(cls, milestones: list[int]) -> list[int]:
        if any(b <= a for a, b in pairwise(milestones)):
            raise ValueError("epochs must ascend, each once, such as [35, 45]")
        return milestones

    @field_validator("warmup_steps")
    @classmethod
    def _check_warmup(cls, warmup_steps: int, info: ValidationInfo) -> int:
        max_steps = info.data.get("max_steps")
        if max_steps is not None and warmup_steps >= max_steps:
            raise ValueError(f"must be less than train.max_steps ({max_steps})")
        return warmup_steps


class EvalConfig(Section):
    """Set up evaluation during training, which chooses the best checkpoint."""

    protocol: Literal["native", "released"] = "native"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.35
    precision: Precision | None = None
    batch_size: Count = 32
    allow_test_split: bool = False
    split: Literal["train", "val", "test", "testA", "testB"] = "val"
    metric: Literal["oIoU", "mIoU"] = "oIoU"
    first_sentences: bool = False
    every_steps: Count | None = None

    @field_validator("split")
    @classmethod
    def _check_split(cls, split: str, info: ValidationInfo) -> str:
        if split in TEST_SPLITS and info.data.get("allow_test_split") is False:
            raise ValueError(
                "a test split must not choose the checkpoint; "
                "use 'val', or set eval.allow_test_split: true, which is recorded"
            )
        return split


class RunConfig(Section):
    """Choose where a run writes and how it logs."""

    folder: str | None = None
    log_interval: Count = 20
    wandb: Literal["off", "offline", "online"] = "off"

    @field_validator("wandb", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare `off` as false.
        return "off" if value is False else value


class Config(Section):
    """Hold all keys of a run; ``config/base.yaml`` explains each."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return all keys as plain dicts, lists, numbers and text."""
        return self.model_dump()

    def to_yaml(self) -> str:
        """Write all keys as YAML text, which ``load_config`` reads back to an equal Config."""
        return dump_yaml(self.to_dict())

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, source: str = "config", overrides: Sequence[str] = ()
    ) -> Self:
        """Check ``values``; one ``ValueError`` lists all mistakes, each with its source.

        That is the one of ``overrides``, which are in ``values`` already, or ``source``.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError("\n".join(explain(error, cls, source, overrides))) from None


def run_folder(config: Config, path: Path) -> Path:
    """Return where ``train.py --config path`` writes: ``run.folder``, or ``runs/<file's name>``."""
    return Path(config.run.folder or Path("runs") / path.stem)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` over its bases over the defaults, then apply ``overrides``.

    The key ``base:`` names a file relative to the folder of its own; that file may have a base too.
    Sections merge key by key, other values are replaced. An override is ``section.key=value``,
    its value YAML, list entries counted from 0: ``model.bridges.0.dim=32``.

    Raises:
        ValueError: with a line for every mistake: the file, the key, the value, the way out.
    """
    defaults = Config().to_dict()
    values = _merge(defaults, read_yaml_file(Path(path), defaults), defaults)
    values = apply_overrides(values, overrides, defaults)
    return Config.from_dict(values, source=str(path), overrides=overrides)


def override_config(config: Config, overrides: Sequence[str], *, source: str) -> Config:
    """Return ``config`` with ``overrides`` applied; errors name ``source`` or the override."""
    values = apply_overrides(config.to_dict(), overrides, Config().to_dict())
    return Config.from_dict(values, source=source, overrides=overrides)


def apply_overrides(
    values: dict[str, Any], overrides: Sequence[str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``values`` with each ``section.key=value`` applied; ``ValueError`` lists the wrong."""
    refuse_flat_options(overrides)
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        place = key.strip().split(".")
        try:
            if not equals or not all(place):
                raise ValueError("should be section.key=value")
            values = _replace(values, place, parse_yaml(text), defaults)
        except ValueError as error:
            problems += [f"--opts {override}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ValueError("\n".join(problems))
    return values


def read_yaml_file(path: Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``path`` merged over its bases; ``defaults`` tell which keys are sections."""
    values = _read_tree(path)
    read = {path.resolve()}
    while "base" in values:
        base = values.pop("base")
        if not isinstance(base, str):
            raise ValueError(f"{path}: base: {base!r}: should be the path of one YAML file")
        path = path.parent / base
        if path.resolve() in read:
            raise ValueError(f"{path}: base: {base!r}: the bases form a circle; name another file")
        read.add(path.resolve())
        values = _merge(_read_tree(path), values, defaults)
    return values


def explain(
    error: ValidationError, schema: type[BaseModel], source: str, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Write one line for each mistake: its source, the key, the value and the way out."""
    sections = dict(_known_keys(schema))
    for mistake in error.errors(include_url=False):
        place = tuple(str(part) for part in mistake["loc"])
        written_by = _find_override(place, overrides) or source
        where, value = f"{written_by}: {'.'.join(place)}", mistake["input"]
        if mistake["type"] == "extra_forbidden":
            section = ".".join(place[:-1]) or "top level"
            hint = _find_near_key(place, sections)
            yield f"{written_by}: {section}: no key {place[-1]!r} (value {value!r}); {hint}"
        elif mistake["type"] == "missing":
            yield f"{where}: is missing"
        elif mistake["type"] == "literal_error":
            choices = re.findall("'([^']*)'", mistake["ctx"]["expected"])
            near = get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
            yield f"{where}: {value!r} is not one of its values; {hint}"
        elif mistake["type"] == "model_type":
            keys = ", ".join(sections[place])
            yield f"{where}: {value!r}: should be a section with the keys {keys}"
        else:
            reason = mistake["msg"].removeprefix("Value error, ").replace("Input should", "should")
            yield f"{where}: {value!r}: {reason}"


def _find_override(place: Place, overrides: Sequence[str]) -> str | None:
    """Find the last override that wrote ``place``, a section around it or a key in it."""
    for override in reversed(overrides):
        key = tuple(override.partition("=")[0].strip().split("."))
        if key[: len(place)] == place[: len(key)]:
            return f"--opts {override}"
    return None


def _find_near_key(place: Place, sections: Mapping[Place, list[str]]) -> str:
    """Hint at the known key that an unknown one at ``place`` may mean."""
    siblings = sections.get(place[:-1], [])
    if near := get_close_matches(place[-1], siblings, n=1):
        return f"did you mean {near[0]!r}?"
    if len(place) == 1 and place[0] in SECTIONS:
        return "a section of CRIS and ETRIS; config/ has their experiments as files of this project"
    for section, keys in sections.items():
        if place[-1] in keys:
            return f"did you mean {'.'.join((*section, place[-1]))!r}?"
    return f"known keys: {', '.join(siblings)}"


def _known_keys(schema: type[BaseModel], place: Place = ()) -> Iterator[tuple[Place, list[str]]]:
    yield place, list(schema.model_fields)
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, (*place, name))


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {hint}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text in UTF-8; name a YAML file") from None
    except ValueError as error:
        lines = [f"{path}: {line}" for line in str(error).splitlines()]
        raise ValueError("\n".join(lines)) from None
    if not isinstance(tree, dict | None):
        raise ValueError(f"{path}: should contain sections such as `train:`, not {tree!r}")
    return tree or {}


def _merge(below: Any, above: Any, default: Any) -> Any:
    """Put ``above`` over ``below``: an empty section changes nothing, null removes a module."""
    is_section = isinstance(default, Mapping)
    if isinstance(below, dict) and isinstance(above, dict):
        defaults = default if is_section else {}
        merged = {key: _merge(below.get(key), above[key], defaults.get(key)) for key in above}
        return below | merged
    return below if above is None and is_section else above


def _replace(tree: Any, place: list[str], value: Any, default: Any) -> Any:
    """Return ``tree`` with ``value`` at ``place``."""
    if not place:
        return _merge(tree, value, default)
    key, *rest = place
    if isinstance(tree, list):
        if not key.isdecimal() or int(key) >= len(tree):
            raise ValueError(f"{key}: the list has {len(tree)} entries, counted from 0")
        entries = list(tree)
        entries[int(key)] = _replace(tree[int(key)], rest, value, None) if rest else value
        return entries
    if not isinstance(tree, dict):
        raise ValueError(f"{tree!r} has no key {key!r}")
    default = default.get(key) if isinstance(default, Mapping) else None
    return tree | {key: _replace(tree.get(key, {}), rest, value, default)}
