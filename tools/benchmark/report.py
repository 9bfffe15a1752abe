"""Turn measurements into tables, beside the figures of the released code.

The released code of ETRIS and BarLeRIa was measured in float32 with 2 threads on a quiet machine,
batch 4 at 416 x 416.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from tools.benchmark.cases import CORE_KINDS, Case

FORMAT = 2
MACHINE = {"threads": 2, "fp32": 158.0}  # GFLOP/s of a 2048 x 2048 matrix product
MODELS = ("etris_rn101", "etris_vitb16", "barleria_vitb16")
RELEASED: dict[str, tuple[float, ...]] = {  # seconds or bytes, in the order of MODELS
    "train": (8.45, 9.80, 11.49),
    "memory": (5.3e9, 5.9e9, 11.2e9),
    "predict-1": (0.67, 0.89, 1.00),
    "predict-8": (6.87, 8.06, 9.55),
    "sentences-8": (8 * 0.67, 8 * 0.89, 8 * 1.00),  # it takes sentences one by one
}
RELEASED_SAMPLE = {"loader": 6.75e-3, "loader-pixels": 6.75e-3, "postprocess": 4.6e-3}
PARTS = ("forward", "backward", "optimizer", "floor")  # in seconds
Results = Mapping[str, Any]


def compare_with_released(
    case: Case, summary: Results, *, device: str
) -> tuple[float, float, float] | None:
    """Return the released code's figure, how many times better ours is, and the same corrected.

    The released code computes in float32, so its time here follows from the rates of float32:
    ``corrected = released * (its rate / rate here) / measured``. Bytes are not corrected. A case on
    one core is compared with half of the rate of two threads. None if there is nothing to compare:
    another model, or a model on a GPU.
    """
    measured, is_on_core = summary["figures"][case.figure], case.kind in CORE_KINDS
    by_model = dict(zip(MODELS, RELEASED.get(case.kind, ()), strict=False))
    released = RELEASED_SAMPLE.get(case.kind) or by_model.get(Path(case.config).stem)
    if released is None or (device != "cpu" and not is_on_core):
        return None
    ratio = 1.0
    if case.figure == "seconds":
        ratio = MACHINE["fp32"] / summary["calibration"]["fp32"]
        ratio /= MACHINE["threads"] if is_on_core else 1
    return released, released / measured, ratio * released / measured


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


def format_results(results: Results) -> str:
    """Format a row for each case, notes with its other figures, and a last line of totals."""
    rows, notes, loads = [], [], [0.0]
    failed = 0
    for name, entry in results["cases"].items():
        if entry["failure"]:
            failed += 1
            notes.append(f"{name}: FAILED: {entry['failure']}")
        if (summary := entry["summary"]) is None:
            continue
        case = Case(**entry["case"])
        loads.append(summary["others"] or 0.0)
        row = [name, format_figure(case, summary["figures"][case.figure])]
        if found := compare_with_released(case, summary, device=results["device"]):
            row += [format_figure(case, found[0]), *(f"{ratio:.2f}" for ratio in found[1:])]
        else:
            row += [""] * 3
        rows.append([*row, *_machine(summary)])
        if parts := _format_parts(summary["figures"], case.figure):
            notes.append(f"{name}: {parts}")
        if entry["profile"]:
            notes.append(entry["profile"])
    totals = [
        f"cases: {len(rows)} on {results['device']}, threads: {results['threads']}, "
        f"{results['clock']} time, medians of {results['rounds']}",
        f"other processes took up to {100 * max(loads):.0f} % of the processors",
        *([f"FAILED: {failed}"] if failed else []),
        *(["stopped before the end"] if results["interrupted"] else []),
    ]
    header = ["case", "this", "released", "plain", "corrected", "fp32", "bf16", "others"]
    return "\n".join(
        [_align(header, rows), *([""] if notes else []), *notes, "", "; ".join(totals)]
    )


def format_figure(case: Case, value: float) -> str:
    """Format a figure of a case with its unit: ``8.45 s``, ``6.75 ms``, ``5.30 GB``."""
    if case.figure == "bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.2f} ms"


def _align(header: list[str], rows: list[list[Any]]) -> str:
    columns = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="plain", colalign=columns, disable_numparse=True)


def _machine(summary: Results) -> list[str]:
    rates = [summary["calibration"].get(name) for name in ("fp32", "bf16")]
    others = "" if summary["others"] is None else f"{100 * summary['others']:.0f} %"
    return [*("" if rate is None else f"{rate:,.0f}" for rate in rates), others]


def _format_parts(figures: Mapping[str, float], figure: str) -> str:
    """Format the other figures of a case: its parts in seconds, shares and rates."""
    parts = []
    for name, value in figures.items():
        words = name.replace("_", " ")
        if name in PARTS:
            parts.append(f"{words} {value:.3g} s")
        elif name == "added_bytes":
            parts.append(f"{value / 1e9:.2f} GB of it by the two updates")
        elif name.startswith("share_"):
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
        summaries = [one["cases"].get(name, {}).get("summary") for one in (first, second)]
        if None in summaries:
            continue
        case = Case(**entry["case"])
        values = [one["figures"][case.figure] for one in summaries]
        rates = [one["calibration"].get(case.precision) for one in summaries]
        plain = values[0] / values[1]
        corrected = plain * rates[0] / rates[1] if all(rates) else plain
        row = [name, *(format_figure(case, value) for value in values)]
        row += [f"{plain:.2f}", f"{corrected:.2f}", *(rate and f"{rate:,.0f}" for rate in rates)]
        rows.append([*row, *(_machine(one)[-1] for one in summaries)])
    if not rows:
        raise ValueError("the two files have no case in common; measure the same cases in both")
    lines = [_align(header, rows)]
    for key in ("device", "threads", "clock", "profiles", "hardware", "versions"):
        a, b = (one.get(key, one["code"].get(key)) for one in (first, second))
        if a != b:
            lines.append(f"\nnot the same for both: {key}: {a} and {b}")
    return "\n".join(lines)
