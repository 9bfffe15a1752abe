"""From repetitions to one figure a case, and the file that keeps all of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tools.benchmark.cases import KINDS, Case
from tools.benchmark.driver import Driver, Row
from tools.benchmark.yardstick import MACHINE

FORMAT = 1


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The median of every figure and rate, the range of every figure, the mean load of others."""
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


def paired_ratio(case: Case, before: Sequence[Row], after: Sequence[Row]) -> list[float]:
    """Smallest, median and largest ``before / after`` of repetitions that ran in turn."""
    name = KINDS[case.kind].figure
    pairs = zip(before, after, strict=False)  # after Ctrl-C one may have run more often
    ratios = [old["figures"][name] / new["figures"][name] for old, new in pairs]
    return [min(ratios), median(ratios), max(ratios)]


def results_of(driver: Driver, command: str) -> dict[str, Any]:
    """All that was measured so far, as plain values for a JSON file."""
    plan = driver.plan
    cases: dict[str, dict[str, Any]] = {}
    for one in driver.measurements:
        sides = {side: summarise(rows) for side, rows in one.rows.items()}
        if sides or one.failures:
            cases[one.case.name] = {
                "kind": one.case.kind,
                "config": one.case.config,
                "precision": one.case.precision,
                "sides": sides,
                "failures": one.failures,
            }
            if len(sides) == 2:
                ratio = paired_ratio(one.case, one.rows["against"], one.rows["this"])
                cases[one.case.name]["times_better"] = ratio
    return {
        "format": FORMAT,
        "command": command,
        "device": plan.device,
        "threads": plan.threads,
        "rounds": plan.rounds,
        "clock": plan.clock,
        "opts": list(plan.opts),
        "profiles": plan.profiles,
        "interrupted": driver.interrupted,
        "yardstick_machine": MACHINE,
        "code": {
            side: {key: value for key, value in facts.items() if key != "command"}
            for side, facts in driver.provenance.items()
        },
        "cases": cases,
    }


def read_results(path: Path) -> dict[str, Any]:
    """A file that ``tools/bench.py --json`` wrote; ``ValueError`` if it is none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; tools/bench.py --json writes one")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); tools/bench.py --json writes it") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        found = results.get("format") if isinstance(results, dict) else None
        raise ValueError(
            f"{path} has format {found} where {FORMAT} is read; measure it again with "
            "tools/bench.py --json"
        )
    return results


def case_of(name: str, entry: Mapping[str, Any]) -> Case:
    """The case that an entry of a results file is of."""
    return Case(name, entry["kind"], entry["config"], entry["precision"])
