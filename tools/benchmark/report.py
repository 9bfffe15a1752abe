"""Turn measurements into tables, beside the figures of the released code and the targets.

The released code of ETRIS and BarLeRIa was measured in float32 with 2 threads on a quiet machine,
batch 4 at 416 x 416.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tabulate import tabulate

from tools.benchmark.cases import CORE_KINDS, Case

FORMAT = 1
MACHINE = {"threads": 2, "fp32": 158.0, "bf16": 926.0}  # GFLOP/s of a 2048 x 2048 matrix product
MODELS = ("etris_rn101", "etris_vitb16", "barleria_vitb16")
RELEASED: dict[str, tuple[float, ...]] = {  # seconds or bytes, in the order of MODELS
    "train": (8.45, 9.80, 11.49),
    "memory": (5.3e9, 5.9e9, 11.2e9),
    "predict-1": (0.67, 0.89, 1.00),
    "predict-8": (6.87, 8.06, 9.55),
    "sentences-8": (8 * 0.67, 8 * 0.89, 8 * 1.00),  # it takes sentences one by one
}
RELEASED_SAMPLE = {"loader": 6.75e-3, "loader-pixels": 6.75e-3, "postprocess": 4.6e-3}
TARGETS = {  # how many times better than the released code
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
MAX_SECONDS = 2.0  # of a start
SIDE = "this"  # the name of this code in results files
Results = Mapping[str, Any]


class Verdict(NamedTuple):
    """A figure beside the released code's; None where there is nothing to compare.

    Attributes:
        released: the released code's figure.
        plain: how many times better ours is, as both were measured.
        corrected: the same, if the released code had run on this machine during the measurement.
        by_bf16: the same, if ours had run on its machine; None unless ours computes in bf16.
        target: the least ``corrected`` to reach, or the most seconds of a start, in words.
        reached: whether the target is reached.
    """

    released: float | None = None
    plain: float | None = None
    corrected: float | None = None
    by_bf16: float | None = None
    target: str | None = None
    reached: bool | None = None


def judge(case: Case, summary: Results, *, device: str) -> Verdict:
    """Compare a case with the released code and its target; on a GPU only what uses no model.

    The released code computes in float32, so its time here follows from the rates of float32:
    ``corrected = released * (its rate / rate here) / measured``. Our time there follows from the
    rates of bf16 if the case computes in it. Bytes do not depend on the machine. A case on one core
    is compared with half of the rate of two threads.
    """
    measured, rates = summary["figures"][case.figure], summary["calibration"]
    if case.kind == "startup":
        return Verdict(target=f"{MAX_SECONDS:g} s", reached=measured <= MAX_SECONDS)
    is_on_core = case.kind in CORE_KINDS
    by_model = dict(zip(MODELS, RELEASED.get(case.kind, ()), strict=False))
    released = RELEASED_SAMPLE.get(case.kind) or by_model.get(Path(case.config).stem)
    if released is None or (device != "cpu" and not is_on_core):
        return Verdict()
    plain = released / measured
    corrected, by_bf16 = plain, None
    if case.figure == "seconds":
        share = 1 / MACHINE["threads"] if is_on_core else 1.0
        corrected *= share * MACHINE["fp32"] / rates["fp32"]
        if case.precision == "bf16":
            by_bf16 = plain * share * MACHINE["bf16"] / rates["bf16"]
    target = TARGETS.get(case.kind if is_on_core else f"{case.kind}/{case.precision}")
    if target is None:
        return Verdict(released, plain, corrected, by_bf16)
    return Verdict(released, plain, corrected, by_bf16, f"{target:g}", corrected >= target)


def summarise(rows: Sequence[Results]) -> dict[str, Any]:
    """Return medians of figures and rates, ranges of figures, and the mean load of others."""
    figures, rates = (
        {name: [row[part][name] for row in rows] for name in rows[0][part]}
        for part in ("figures", "calibration")
    )
    others = [row["others"] for row in rows if row["others"] is not None]
    return {
        "figures": {name: median(values) for name, values in figures.items()},
        "range": {name: [min(values), max(values)] for name, values in figures.items()},
        "calibration": {name: median(values) for name, values in rates.items()},
        "others": sum(others) / len(others) if others else None,
        "repetitions": list(rows),
    }


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of ``tools/bench.py --json``; ``ValueError`` if it is not one."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        version = results["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of tools/bench.py --json ({error!r})") from None
    if version != FORMAT:
        raise ValueError(f"{path}: has format {version}, not {FORMAT}; measure it again")
    return results


def case_of(name: str, entry: Results) -> Case:
    return Case(name, entry["kind"], entry["config"], entry["precision"])


def format_results(results: Results) -> str:
    """Format a row for each case, notes with its other figures, and a last line of totals."""
    header = ["case", SIDE, "released", "plain", "corrected", "by bf16", "target"]
    rows, notes, verdicts, loads = [], [], [], []
    for name, entry in results["cases"].items():
        notes += [f"{name}: FAILED: {why}" for why in entry["failures"].values()]
        if (summary := entry["sides"].get(SIDE)) is None:
            continue
        case = case_of(name, entry)
        verdict = judge(case, summary, device=results["device"])
        ratios = [x and f"{x:.2f}" for x in (verdict.plain, verdict.corrected, verdict.by_bf16)]
        target = verdict.target
        if verdict.reached is not None:
            verdicts.append(verdict.reached)
            target = f"{target} {'reached' if verdict.reached else 'missed'}"
        figures = [format_figure(case, x) for x in (summary["figures"][case.figure], verdict[0])]
        rows.append([name, *figures, *ratios, target, *_machine(summary)])
        if summary["others"] is not None:
            loads.append(summary["others"])
        if parts := _format_parts(summary, case.figure):
            notes.append(f"{name}: {parts}")
    totals = [
        f"cases: {len(rows)} on {results['device']}, threads: {results['threads']}, "
        f"{results['clock']} time, medians of {results['rounds']}",
        f"targets reached: {sum(verdicts)} of {len(verdicts)}",
    ]
    if loads:
        totals.append(f"other processes took up to {100 * max(loads):.0f} % of the processors")
    if failed := sum(bool(entry["failures"]) for entry in results["cases"].values()):
        totals.append(f"FAILED: {failed}")
    if results["interrupted"]:
        totals.append("stopped before the end")
    table = _align([*header, "fp32", "bf16", "others"], rows)
    return "\n".join([table, *([""] if notes else []), *notes, "", "; ".join(totals)])


def format_figure(case: Case, value: float | None) -> str | None:
    """Format a figure of a case with its unit: ``8.45 s``, ``6.75 ms``, ``5.30 GB``."""
    if value is None:
        return None
    if case.figure == "bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.2f} ms"


def _align(header: list[str], rows: list[list[Any]]) -> str:
    columns = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="plain", colalign=columns, disable_numparse=True)


def _machine(summary: Results) -> list[str | None]:
    rates = [summary["calibration"].get(name) for name in ("fp32", "bf16")]
    others = None if summary["others"] is None else f"{100 * summary['others']:.0f} %"
    return [*(None if rate is None else f"{rate:,.0f}" for rate in rates), others]


def _format_parts(summary: Results, figure: str) -> str:
    """Format the other figures of a case: its parts in seconds, shares and rates."""
    parts = []
    for name, value in summary["figures"].items():
        words = name.removeprefix("in_").replace("_", " ")
        if name in ("forward", "backward", "optimizer", "floor"):
            parts.append(f"{name} {value:.3g} s")
        elif name == "added_bytes":
            parts.append(f"{value / 1e9:.2f} GB of it by the two updates")
        elif name.startswith(("in_", "share_")):
            parts.append(f"{words} {100 * value:.1f} %")
        elif name != figure:
            parts.append(f"{words} {value:.1f}")
    return ", ".join(parts)


def compare(first: Results, second: Results) -> str:
    """Format the cases of both files: how many times better the second is, plain and corrected.

    ``corrected`` multiplies each time by its file's rate in the precision of the case, because both
    files did the same work in it. ``ValueError`` if the files have no case in common.
    """
    header = ["case", "A", "B", "plain", "corrected", "A rate", "B rate", "A others", "B others"]
    rows: list[list[Any]] = []
    for name, entry in first["cases"].items():
        sides = [one["cases"].get(name, {}).get("sides", {}).get(SIDE) for one in (first, second)]
        if None in sides:
            continue
        case = case_of(name, entry)
        values = [side["figures"][case.figure] for side in sides]
        rates = [side["calibration"].get(case.precision) for side in sides]
        plain = values[0] / values[1]
        corrected = plain * rates[0] / rates[1] if all(rates) else plain
        row = [name, *(format_figure(case, value) for value in values)]
        row += [f"{plain:.2f}", f"{corrected:.2f}", *(rate and f"{rate:,.0f}" for rate in rates)]
        rows.append([*row, *(_machine(side)[-1] for side in sides)])
    if not rows:
        raise ValueError("the two files have no case in common; measure the same cases in both")
    lines = [_align(header, rows)]
    for key in ("device", "threads", "clock", "profiles", "hardware", "versions"):
        a, b = (one.get(key, one["code"].get(SIDE, {}).get(key)) for one in (first, second))
        if a != b:
            lines.append(f"\nnot the same for both: {key}: {a} and {b}")
    return "\n".join(lines)
