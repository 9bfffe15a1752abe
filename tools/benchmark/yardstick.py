"""What the released code of ETRIS and BarLeRIa takes for the same work, and what is to be reached.

It was measured in float32 with 2 threads on a quiet machine, batch 4 at 416 x 416.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tools.benchmark.cases import KINDS, Case

MACHINE = {"threads": 2, "fp32": 158.0, "bf16": 926.0}  # GFLOP/s of a 2048 x 2048 matrix product
MODELS = ("etris_rn101", "etris_vitb16", "barleria_vitb16")
RELEASED: dict[str, tuple[float, ...]] = {  # seconds or bytes, in the order of MODELS
    "train": (8.45, 9.80, 11.49),
    "memory": (5.3e9, 5.9e9, 11.2e9),
    "predict-1": (0.67, 0.89, 1.00),
    "predict-8": (6.87, 8.06, 9.55),
    # the released code takes sentences one by one
    "sentences-8": (8 * 0.67, 8 * 0.89, 8 * 1.00),
}
LOADER = 6.75e-3  # 6.5 to 7.0 ms
RELEASED_SAMPLE = {"loader": LOADER, "loader-pixels": LOADER, "postprocess": 4.6e-3}
TIMES_BETTER = {
    "train/fp32": 1.3,
    "train/bf16": 4.0,
    "memory/bf16": 2.0,
    "predict-1/bf16": 4.0,
    "predict-8/bf16": 4.0,
    "sentences-8/bf16": 6.0,
    "loader": 4.0,
    "loader-pixels": 4.0,
    "postprocess": 8.0,
}
MOST_SECONDS = {"startup": 2.0}


class Verdict(NamedTuple):
    """A figure beside the released code's.

    Attributes:
        released: the released code's figure.
        plain: how many times better, as both were measured.
        corrected: the same, had the released code run on this machine as loaded as it was.
        by_bf16: the same, had ours run on its machine; None for what does not compute in bf16.
        target: the least ``corrected`` to reach.
    """

    released: float
    plain: float
    corrected: float
    by_bf16: float | None
    target: float | None


def released_figure(case: Case) -> float | None:
    """Seconds or bytes of the released code; None for what was not measured."""
    if case.kind in RELEASED_SAMPLE:
        return RELEASED_SAMPLE[case.kind]
    figures = dict(zip(MODELS, RELEASED.get(case.kind, ()), strict=False))
    return figures.get(case.model)


def judge(case: Case, summary: Mapping[str, Any], *, device: str) -> Verdict | None:
    """``summary`` of a case beside the yardstick; None where there is none, as on a GPU.

    The released code computes in float32, so that its time on this machine is predicted from the
    rates of float32 here and there, whatever ``case`` computes in:
    ``corrected = released * (rate there / rate here) / measured``. Our time there is predicted from
    the rates of bf16 where the case computes in it. Bytes do not depend on the machine's speed.
    What runs on one core is compared with half of the rate of two threads.
    """
    released, figure = released_figure(case), KINDS[case.kind].figure
    if released is None or (device != "cpu" and KINDS[case.kind].on_device):
        return None
    plain = released / summary["figures"][figure]
    corrected, by_bf16, rates = plain, None, summary["calibration"]
    if figure == "seconds":
        share = 1.0 if KINDS[case.kind].on_device else 1 / MACHINE["threads"]
        corrected *= share * MACHINE["fp32"] / rates["fp32"]
        if case.precision == "bf16":
            by_bf16 = plain * share * MACHINE["bf16"] / rates["bf16"]
    key = f"{case.kind}/{case.precision}" if KINDS[case.kind].by_model else case.kind
    return Verdict(released, plain, corrected, by_bf16, TIMES_BETTER.get(key))


def is_reached(case: Case, summary: Mapping[str, Any], *, device: str) -> bool | None:
    """Whether the target of a case is reached; None where there is none."""
    if case.kind in MOST_SECONDS:
        return summary["figures"]["seconds"] <= MOST_SECONDS[case.kind]
    verdict = judge(case, summary, device=device)
    if verdict is None or verdict.target is None:
        return None
    return verdict.corrected >= verdict.target
