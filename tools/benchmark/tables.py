"""What was measured, as text: a table, its last line, and two files side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.benchmark.cases import KINDS, Case
from tools.benchmark.summary import case_of
from tools.benchmark.yardstick import MOST_SECONDS, is_reached, judge

Results = Mapping[str, Any]
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def figure(case: Case, value: float) -> str:
    """A figure of a case with its unit: ``8.45 s``, ``6.75 ms``, ``5.30 GB``."""
    if KINDS[case.kind].figure == "bytes":
        size, unit = next((pair for pair in UNITS if value >= pair[0]), UNITS[-1])
        return f"{value / size:.2f} {unit}"
    return f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.2f} ms"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def to_table(results: Results) -> str:
    """A row a case: the figure, the older code's, the released code's, rates and load."""
    is_paired = any("times_better" in entry for entry in results["cases"].values())
    header = ["case", "this"] + (["against", "ratio"] if is_paired else [])
    header += ["released", "plain", "corrected", "by bf16", "target", "fp32", "bf16", "others"]
    rows, notes = [header], []
    for name, entry in results["cases"].items():
        case = case_of(name, entry)
        notes += [f"{name}, {side}: FAILED: {why}" for side, why in entry["failures"].items()]
        if "this" not in entry["sides"]:
            continue
        summary, name_of_figure = entry["sides"]["this"], KINDS[case.kind].figure
        row = [name, figure(case, summary["figures"][name_of_figure])]
        if is_paired:
            row += _paired_columns(case, entry)
        row += _verdict_columns(case, summary, device=results["device"])
        rows.append(row + _machine_columns(summary))
        for side, one in entry["sides"].items():
            if parts := _parts(one, name_of_figure):
                notes.append(f"{name}, {side}: {parts}")
    return "\n".join([align(rows), *([""] if notes else []), *notes])


def _paired_columns(case: Case, entry: Mapping[str, Any]) -> list[str]:
    if "times_better" not in entry:
        return ["", ""]
    value = entry["sides"]["against"]["figures"][KINDS[case.kind].figure]
    low, middle, high = entry["times_better"]
    return [figure(case, value), f"{middle:.2f} ({low:.2f} to {high:.2f})"]


def _verdict_columns(case: Case, summary: Mapping[str, Any], *, device: str) -> list[str]:
    reached, most = is_reached(case, summary, device=device), MOST_SECONDS.get(case.kind)
    said = {None: "", True: "reached", False: "missed"}[reached]
    verdict = judge(case, summary, device=device)
    if verdict is None:
        return ["", "", "", "", "" if most is None else f"{most:g} s {said}"]
    target = "" if verdict.target is None else f"{verdict.target:g} {said}"
    by_bf16 = "" if verdict.by_bf16 is None else f"{verdict.by_bf16:.2f}"
    ratios = [f"{verdict.plain:.2f}", f"{verdict.corrected:.2f}", by_bf16]
    return [figure(case, verdict.released), *ratios, target]


def _machine_columns(summary: Mapping[str, Any]) -> list[str]:
    rates = [summary["calibration"].get(name) for name in ("fp32", "bf16")]
    others = summary["others"]
    shares = "" if others is None else f"{100 * others:.0f} %"
    return [*("" if rate is None else f"{rate:,.0f}" for rate in rates), shares]


def _parts(summary: Mapping[str, Any], name_of_figure: str) -> str:
    """The other figures of a case: parts in seconds, shares and rates as they are."""
    told = []
    for name, value in summary["figures"].items():
        if name in ("forward", "backward", "optimizer", "floor"):
            told.append(f"{name} {value:.3g} s")
        elif name.startswith("in_"):
            told.append(f"{name.removeprefix('in_').replace('_', ' ')} {100 * value:.1f} %")
        elif name == "added_bytes":
            told.append(f"{value / 1e9:.2f} GB of it by the two updates")
        elif name != name_of_figure:
            share = name.startswith("share_")
            words = name.replace("_", " ")
            told.append(f"{words} {100 * value:.1f} %" if share else f"{words} {value:.1f}")
    return ", ".join(told)


def last_line(results: Results) -> str:
    """How much was measured, how, and how many targets are reached."""
    entries = results["cases"]
    sides = {
        case_of(name, entry): entry["sides"]["this"]
        for name, entry in entries.items()
        if "this" in entry["sides"]
    }
    verdicts = [is_reached(case, side, device=results["device"]) for case, side in sides.items()]
    judged = [verdict for verdict in verdicts if verdict is not None]
    loads = [side["others"] for side in sides.values() if side["others"] is not None]
    failed = sum(bool(entry["failures"]) for entry in entries.values())
    parts = [
        f"cases: {len(sides)} on {results['device']}, threads: {results['threads']}, "
        f"{results['clock']} time, medians of {results['rounds']}",
        f"targets reached: {sum(judged)} of {len(judged)}",
    ]
    if loads:
        parts.append(f"other processes took up to {100 * max(loads):.0f} % of the processors")
    if failed:
        parts.append(f"FAILED: {failed}")
    if results["interrupted"]:
        parts.append("stopped before the end")
    return "; ".join(parts)


def compare(first: Results, second: Results) -> str:
    """The cases that both files have: how many times better the second is, plain and corrected.

    ``corrected`` multiplies each time by its file's rate in the case's own precision, since both
    files hold the same work in the same precision.

    Raises:
        ValueError: they have no case in common.
    """
    rows = [["case", "A", "B", "plain", "corrected", "A rate", "B rate", "A others", "B others"]]
    for name, entry in first["cases"].items():
        other = second["cases"].get(name, {"sides": {}})
        if "this" not in entry["sides"] or "this" not in other["sides"]:
            continue
        case = case_of(name, entry)
        sides = [entry["sides"]["this"], other["sides"]["this"]]
        rates = [side["calibration"].get(case.precision) for side in sides]
        values = [side["figures"][KINDS[case.kind].figure] for side in sides]
        plain = values[0] / values[1]
        corrected = plain * rates[0] / rates[1] if all(rates) else plain
        row = [name, *(figure(case, value) for value in values)]
        row += [f"{plain:.2f}", f"{corrected:.2f}"]
        row += ["" if rate is None else f"{rate:,.0f}" for rate in rates]
        row += [_machine_columns(side)[-1] for side in sides]
        rows.append(row)
    if len(rows) == 1:
        raise ValueError("the two files have no case in common that both measured; nothing to say")
    return align(rows)


def differences_in_kind(first: Results, second: Results) -> list[str]:
    """What was not the same for both files beside the code: a sentence each."""
    pairs = {key: (first[key], second[key]) for key in ("device", "threads", "clock")}
    pairs["profile"] = (first.get("profiles", False), second.get("profiles", False))
    for key in ("hardware", "versions"):
        facts = [one["code"].get("this", {}).get(key) for one in (first, second)]
        pairs[key] = (facts[0], facts[1])
    return [f"{key}: {a} and {b}" for key, (a, b) in pairs.items() if a != b]
