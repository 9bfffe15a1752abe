"""What can be measured: every case by its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

CONFIGS = (
    "config/etris_rn101.yaml",
    "config/etris_vitb16.yaml",
    "config/barleria_vitb16.yaml",
)
PRECISIONS = ("fp32", "bf16")


class Kind(NamedTuple):
    """What the cases of a kind have in common.

    Attributes:
        work: what one figure is of.
        figure: the one that is compared; smaller is better.
        by_model: whether there is a case for every configuration and precision.
        on_device: whether it runs on the chosen device, and with the chosen threads; the others
            run on one core.
        fresh: whether a repetition needs a process that has not done it before; one is enough.
    """

    work: str
    figure: str = "seconds"
    by_model: bool = True
    on_device: bool = True
    fresh: bool = False


KINDS = {
    "train": Kind("a training step on 4 samples: forward, backward, optimizer"),
    "memory": Kind("the most memory that a process holds over two such steps", "bytes", fresh=True),
    "predict-1": Kind("1 picture of 640 x 480 and 1 sentence, from pixels to logits"),
    "predict-8": Kind("8 pictures with a sentence each, from letterboxed pixels to logits"),
    "sentences-8": Kind("1 picture and 8 sentences"),
    "loader": Kind("a training sample from a JPEG of 640 x 480, on one core", by_model=False,
                   on_device=False),
    "loader-pixels": Kind("the same where resized images are kept (prepare_datasets.py --pixels)",
                          by_model=False, on_device=False),
    "postprocess": Kind("from a sentence's logits to its intersection and union at 640 x 480, on "
                        "one core", by_model=False, on_device=False),
    "startup": Kind("a new process, until it ends", by_model=False, on_device=False),
    "end-to-end": Kind("a training step on 32 samples from the loader, then an evaluation"),
}  # fmt: skip
PROFILED = ("train", "predict-1", "predict-8", "sentences-8")  # what torch's operations take
STARTUPS = ("train-help", "import-model")


@dataclass(frozen=True)
class Case:
    """One thing to measure; ``config`` is a path inside the checkout, or an absolute one."""

    name: str
    kind: str
    config: str = ""
    precision: str = "fp32"

    @property
    def model(self) -> str:
        """The name of the configuration."""
        return Path(self.config).stem


def list_cases(configs: Sequence[str] = CONFIGS) -> list[Case]:
    """All cases of all kinds; ``ValueError`` if two configurations have one name."""
    names = [Path(config).stem for config in configs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--config: {repeated[0]} stands twice, and cases go by that name")
    cases = []
    for kind, facts in KINDS.items():
        if facts.by_model:
            cases += [
                Case(f"{kind}/{Path(config).stem}/{precision}", kind, config, precision)
                for config in configs
                for precision in PRECISIONS
            ]
        elif kind == "startup":
            cases += [Case(f"startup/{name}", kind) for name in STARTUPS]
        else:
            cases.append(Case(kind, kind, configs[0]))
    return cases


def describe_cases() -> str:
    """The names and what they measure, a line for each kind, for people."""
    lines = []
    for kind, facts in KINDS.items():
        names = f"{kind}/MODEL/PRECISION" if facts.by_model else kind
        names = f"startup/{{{','.join(STARTUPS)}}}" if kind == "startup" else names
        lines += [f"  {names}", f"      {facts.work}"]
    models = ", ".join(Path(config).stem for config in CONFIGS)
    return "\n".join([*lines, f"MODEL: {models}; PRECISION: {', '.join(PRECISIONS)}"])


def choose(
    cases: Sequence[Case], patterns: Sequence[str], *, device: str, profiles: bool = False
) -> list[Case]:
    """The cases that any of ``patterns`` names, none: all that suit the device.

    Where torch ``profiles``, they are those of :data:`PROFILED`.

    A pattern is a name, its beginning up to a slash, or has wildcards: ``*/bf16``.

    Raises:
        ValueError: a pattern names none.
    """
    if profiles:
        cases = [case for case in cases if case.kind in PROFILED]
    if not patterns:
        # a batch of 32 takes minutes on a CPU and says nothing of waiting for data there
        return [case for case in cases if device != "cpu" or case.kind != "end-to-end"]
    names = [case.name for case in cases]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if _is_named(name, pattern)}
        if not found:
            kinds = dict.fromkeys(case.kind for case in cases)
            beginnings = [*names, *(name.rpartition("/")[0] for name in names), *kinds]
            near = get_close_matches(pattern, beginnings, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(kinds)}"
            whose = " that --profile is for" if profiles else ""
            raise ValueError(f"--case {pattern!r} names no case{whose}; {hint}")
        chosen |= found
    return [case for case in cases if case.name in chosen]


def _is_named(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}/") or fnmatchcase(name, pattern)
