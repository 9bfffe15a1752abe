"""List what the bench can measure: every case by its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

CONFIGS = (
    "config/etris_rn101.yaml",
    "config/etris_vitb16.yaml",
    "config/barleria_vitb16.yaml",
)
PRECISIONS = ("fp32", "bf16")
PROFILED = ("train", "predict-1", "predict-8", "sentences-8")  # kinds of --profile

MODEL_KINDS = {  # a case for each configuration and precision, on the chosen device and threads
    "train": "a training step on 4 samples: forward, backward, optimizer",
    "memory": "the most memory that a process uses in two such steps",
    "predict-1": "1 picture of 640 x 480 and 1 sentence, from pixels to logits",
    "predict-8": "8 pictures with a sentence each, from letterboxed pixels to logits",
    "sentences-8": "1 picture and 8 sentences",
    "end-to-end": "a training step on 32 samples from the loader, then an evaluation",
}
CORE_KINDS = {  # one case each, on one core
    "loader": "a training sample from a JPEG of 640 x 480",
    "loader-pixels": "the same from resized images (prepare_datasets.py --pixels)",
    "postprocess": "from a sentence's logits to its intersection and union at 640 x 480",
    "startup/train-help": "a new process that runs train.py --help",
    "startup/import-model": "a new process that imports the model",
}


@dataclass(frozen=True)
class Case:
    """One thing to measure, and how.

    Attributes:
        config: path of the YAML file.
        clock: ``wall`` or ``processor``.
        opts: keys that override the file's.
        profile: whether to measure which operations take the time.
    """

    name: str
    kind: str
    config: str = ""
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    rounds: int = 5
    clock: str = "wall"
    opts: Sequence[str] = ()
    profile: bool = False

    @property
    def is_of_memory(self) -> bool:
        """Whether the figure is bytes, measured once in a process that has done nothing before."""
        return self.kind == "memory"

    @property
    def figure(self) -> str:
        """The name of the figure that is compared; smaller is better."""
        return "bytes" if self.is_of_memory else "seconds"


def list_cases(configs: Sequence[str] = CONFIGS) -> list[Case]:
    """List the cases of all kinds; ``ValueError`` if two configurations have the same name."""
    names = [Path(config).stem for config in configs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--config: duplicate name {repeated[0]}; cases are named after the files")
    by_model = [
        Case(f"{kind}/{Path(config).stem}/{precision}", kind, config, precision)
        for kind in MODEL_KINDS
        for config in configs
        for precision in PRECISIONS
    ]
    return by_model + [Case(name, name.partition("/")[0], configs[0]) for name in CORE_KINDS]


def choose_cases(
    cases: Sequence[Case], patterns: Sequence[str], *, device: str, profile: bool = False
) -> list[Case]:
    """Choose the cases that any of ``patterns`` names; without one, all that suit the device.

    A pattern is a name, its beginning up to a slash, or has wildcards: ``*/bf16``. With
    ``profile`` only cases of :data:`PROFILED` are chosen. ``ValueError`` for an unknown name.
    """
    cases = [case for case in cases if not profile or case.kind in PROFILED]
    if not patterns:
        # a batch of 32 takes minutes on a CPU, where nobody waits for data
        return [case for case in cases if device != "cpu" or case.kind != "end-to-end"]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {
            case.name
            for case in cases
            if fnmatchcase(case.name, pattern) or case.name.startswith(f"{pattern}/")
        }
        if not found:
            kinds = list(dict.fromkeys(case.kind for case in cases))
            near = get_close_matches(pattern, [*kinds, *(case.name for case in cases)], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(kinds)}"
            raise ValueError(f"--case {pattern!r}: no such case{' to profile' * profile}; {hint}")
        chosen |= found
    return [case for case in cases if case.name in chosen]
