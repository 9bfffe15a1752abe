"""The typed configuration of a run: what the keys are, and reading them from YAML files."""

import math
from collections.abc import Mapping, Sequence
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
    field_validator,
)
from pydantic import ValidationInfo as Info

from utils.config_layers import Layer, explain, merge_layers, read_files
from utils.data.datasets import default_max_words
from utils.yaml_files import dump_yaml

TEST_SPLITS = ("test", "testA", "testB")

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _named(options: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(options.get("name"), str):
        raise ValueError("needs a 'name' beside its options, such as {name: bridger, dim: 64}")
    scale = options.get("lr_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"lr_scale {scale!r} should be a number above 0")
    return options


Module = Annotated[dict[str, Any], AfterValidator(_named)]


def _names(value: Any) -> Any:
    """A name or several; a list of one name is the name."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("should be a name or a list of names, such as [refcoco, refcoco+]")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(repeated)} stands twice; name each data set once")
    return names[0] if len(names) == 1 else names


# Before: a union's own errors would come once for each of its types.
Names = Annotated[str | list[str], BeforeValidator(_names)]


class Section(BaseModel):
    """A frozen group of keys: unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class DataConfig(Section):
    """Which expressions and pictures, and how they reach the model."""

    dataset: Names = "refcoco"
    allow_leakage: bool = False
    root: str = "datasets"
    image_size: Count = 416
    max_words: Annotated[int, Field(ge=3, le=77)] | None = None
    workers: Annotated[int, Field(ge=0)] = 4

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names in ``dataset``; whether they are packed is seen where they are opened."""
        return (self.dataset,) if isinstance(self.dataset, str) else tuple(self.dataset)

    @property
    def longest_sentence(self) -> int:
        """Tokens that a model for this data takes: ``max_words``, or the data sets' largest."""
        return self.max_words or default_max_words(self.datasets)


class BackboneConfig(Section):
    """The CLIP under everything, and whether it is frozen or trains as a whole."""

    name: str | None = None
    weights: str | None = None
    tuning: Literal["frozen", "full"] = "frozen"


class DecoderConfig(Section):
    """The segmentation head; its keys are the options of its constructor."""

    neck: Literal["aligned", "fpn", "plain"] = "aligned"
    dim: Count = 512
    layers: Annotated[int, Field(ge=0)] = 3
    heads: Count = 8
    feedforward: Count = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    project_sentence: bool = False
    train_connect: bool = True
    initial_kernel: Literal["small", "default"] = "small"

    @field_validator("heads")
    @classmethod
    def _heads_divide_dim(cls, heads: int, info: Info) -> int:
        dim = info.data.get("dim", heads)
        if dim % heads:
            raise ValueError(f"model.decoder.dim ({dim}) must be a multiple of the heads")
        return heads

    @field_validator("project_sentence")
    @classmethod
    def _projection_is_of_the_aligned_neck(cls, project_sentence: bool, info: Info) -> bool:
        neck = info.data.get("neck", "aligned")
        if project_sentence and neck != "aligned":
            raise ValueError(f"is an option of the aligned neck; leave it out with neck: {neck}")
        return project_sentence


class ModelConfig(Section):
    """The CLIP, what is attached to it, and the decoder."""

    backbone: BackboneConfig = BackboneConfig()
    adapters: list[Module] = []
    bridges: list[Module] = []
    side: Module | None = None
    decoder: DecoderConfig = DecoderConfig()
    train_positions: bool = False
    backbone_norm: Literal["frozen", "batch"] = "frozen"


class TrainConfig(Section):
    """Length, rates and precision of training."""

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
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("micro_batch")
    @classmethod
    def _micro_batch_divides(cls, micro_batch: int | None, info: Info) -> int | None:
        batch_size = info.data.get("batch_size")
        if micro_batch and batch_size and batch_size % micro_batch:
            raise ValueError(f"train.batch_size ({batch_size}) must be a multiple of it")
        return micro_batch

    @field_validator("milestones")
    @classmethod
    def _milestones_ascend(cls, milestones: list[int]) -> list[int]:
        if any(b <= a for a, b in pairwise(milestones)):
            raise ValueError("epochs must ascend, each once, such as [35, 45]")
        return milestones

    @field_validator("warmup_steps")
    @classmethod
    def _warmup_ends(cls, warmup_steps: int, info: Info) -> int:
        max_steps = info.data.get("max_steps")
        if max_steps is not None and warmup_steps >= max_steps:
            raise ValueError(f"must be less than train.max_steps ({max_steps})")
        return warmup_steps


class EvalConfig(Section):
    """Evaluation during training, which chooses the best checkpoint."""

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
    def _no_test_split(cls, split: str, info: Info) -> str:
        if split in TEST_SPLITS and info.data.get("allow_test_split") is False:
            raise ValueError(
                "a test split must not choose the checkpoint; "
                "use 'val', or set eval.allow_test_split: true, which is recorded"
            )
        return split


class RunConfig(Section):
    """Where a run writes, and how it logs."""

    folder: str | None = None
    log_interval: Count = 20
    wandb: Literal["off", "offline", "online"] = "off"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare `off` as false.
        return "off" if value is False else value


class Config(Section):
    """All keys of a run; ``config/base.yaml`` explains each."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain dicts, lists, numbers and text."""
        return self.model_dump()

    def to_yaml(self) -> str:
        """All keys as YAML text, which ``load_config`` reads back to an equal configuration."""
        return dump_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> Self:
        """Check ``values``; ``ValueError`` lists all mistakes, each naming ``source``."""
        return cls._check(values, [Layer(source, (), values)])

    @classmethod
    def _check(cls, values: Mapping[str, Any], layers: Sequence[Layer]) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError("\n".join(explain(error, cls, layers))) from None


def run_folder(config: Config, path: Path) -> Path:
    """Where ``train.py --config path`` writes: ``run.folder``, or ``runs/`` and the file's name."""
    return Path(config.run.folder or Path("runs") / path.stem)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` over its bases over the defaults, then ``overrides``.

    A base is the file that ``base:`` names, from its own folder; it may have one itself.
    Sections merge key by key, anything else is replaced. An override is ``section.key=value``,
    its value YAML, list entries counted from 0: ``model.bridges.0.dim=32``. Raises one
    ``ValueError`` with a line for every mistake: the file, the place, the value, the way out.
    """
    values, layers = merge_layers(read_files(Path(path)), overrides, Config().to_dict())
    return Config._check(values, layers)


def override_config(config: Config, overrides: Sequence[str], *, source: str) -> Config:
    """Return ``config`` with ``overrides`` applied; errors name ``source`` or the override."""
    trees = [(source, config.to_dict())]
    return Config._check(*merge_layers(trees, overrides, Config().to_dict()))
