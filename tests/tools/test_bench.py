"""The bench: how cases are chosen, run and compared. No timings."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import bench
from tools.bench import main
from tools.benchmark.cases import Case, choose_cases, list_cases
from tools.benchmark.report import FORMAT, compare_with_released, summarise

DEMO = "config/demo/etris.yaml"
TRAIN = Case("train/etris_rn101/bf16", "train", "config/etris_rn101.yaml", "bf16")
# answers as a worker does
FAKE_WORKER = """
import json, sys
case = json.loads(sys.argv[1])
print(json.dumps({"provenance": {"commit": "new", "command": "worker"}, "profile": ""}), flush=True)
for _ in range(1 if case["kind"] == "memory" else case["rounds"]):
    if case["kind"] == "postprocess":
        sys.exit("out of paper")
    print(json.dumps({"figures": {"seconds": 1.5, "bytes": 2e9},
                      "calibration": {"fp32": 79.0, "bf16": 400.0}, "others": 0.25}), flush=True)
"""


def row(seconds: float, *, fp32: float = 79.0, bf16: float = 463.0) -> dict[str, Any]:
    rates = {"fp32": fp32, "bf16": bf16}
    return {"figures": {"seconds": seconds}, "calibration": rates, "others": None}


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the worker; return a path for results."""
    (tmp_path / "worker.py").write_text(FAKE_WORKER)
    monkeypatch.setattr(bench, "WORKER", [sys.executable, str(tmp_path / "worker.py")])
    return tmp_path / "bench.json"


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["loader"], ["loader"]),
        (["train/etris_rn101"], ["train/etris_rn101/fp32", "train/etris_rn101/bf16"]),
        (
            ["memory/*rn101/bf16", "startup"],
            ["memory/etris_rn101/bf16", "startup/train-help", "startup/import-model"],
        ),
    ],
)
def test_cases_are_chosen_by_name_beginning_or_pattern(
    patterns: list[str], names: list[str]
) -> None:
    assert [case.name for case in choose_cases(list_cases(), patterns, device="cpu")] == names


def test_training_from_the_loader_is_for_a_gpu_unless_it_is_named() -> None:
    cpu, cuda = (
        {case.kind for case in choose_cases(list_cases(), [], device=device)}
        for device in ("cpu", "cuda")
    )
    assert cuda - cpu == {"end-to-end"}
    assert choose_cases(list_cases(), ["end-to-end"], device="cpu")


def test_a_profile_is_of_training_and_inference() -> None:
    chosen = choose_cases(list_cases(), [], device="cuda", profile=True)
    assert {case.kind for case in chosen} == {"train", "predict-1", "predict-8", "sentences-8"}
    with pytest.raises(ValueError, match="'loader'"):
        choose_cases(list_cases(), ["loader"], device="cpu", profile=True)


@pytest.mark.parametrize(
    ("case", "figures", "ratios"),
    [
        # half the rate of the machine of the released code: it would have taken 16.9 s
        (TRAIN, {"seconds": 4.225}, (2.0, 4.0)),
        (replace(TRAIN, kind="memory"), {"bytes": 2.65e9}, (2.0, 2.0)),
        # one core at 79 GFLOP/s is one of the two there
        (Case("loader", "loader"), {"seconds": 2.25e-3}, (3.0, 3.0)),
    ],
)
def test_times_of_the_released_code_are_corrected_by_the_rate_of_the_machine(
    case: Case, figures: dict[str, float], ratios: tuple[float, float]
) -> None:
    found = compare_with_released(
        case, {"figures": figures, "calibration": {"fp32": 79.0}}, device="cpu"
    )
    assert found is not None and found[1:] == pytest.approx(ratios)


@pytest.mark.parametrize(
    ("case", "device"), [(TRAIN, "cuda"), (replace(TRAIN, config=DEMO), "cpu")]
)
def test_other_models_and_gpus_have_nothing_to_compare_with(case: Case, device: str) -> None:
    assert compare_with_released(case, summarise([row(1.0)]), device=device) is None


def test_repetitions_become_medians() -> None:
    summary = summarise([row(4.0), row(40.0), row(6.0)])
    assert summary["figures"]["seconds"] == 6.0 and summary["range"]["seconds"] == [4.0, 40.0]
    assert summary["others"] is None and len(summary["repetitions"]) == 3


def test_cases_run_and_failures_are_reported(output: Path, capsys: Any) -> None:
    cases = ["train/etris_rn101/bf16", "memory/etris_rn101/bf16", "postprocess"]
    assert main(["--case", *cases, "--rounds", "2", "--json", str(output)]) == 1
    found = json.loads(output.read_text())
    assert set(found["cases"]) == set(cases) and not found["interrupted"]
    assert found["code"] == {"commit": "new"}
    summaries = [one["summary"] for one in found["cases"].values()]
    # memory is measured once
    assert [one and len(one["repetitions"]) for one in summaries] == [2, 1, None]
    why = found["cases"]["postprocess"]["failure"]
    assert why == "its process ended with exit code 1: out of paper"
    printed = capsys.readouterr().out
    train = next(line for line in printed.splitlines() if line.startswith("train/"))
    # this; released, plain, corrected; rates, others
    assert " ".join(train.split()[1:]) == "1.50 s 8.45 s 5.63 11.27 79 400 25 %"
    assert f"postprocess: FAILED: {why}" in printed
    last = printed.splitlines()[-1]
    assert "cases: 2 on cpu" in last
    assert "FAILED: 1" in last and str(output) in last


def test_ctrl_c_keeps_what_is_measured(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run_case = bench.run_case

    def interrupted(case: Case) -> Any:
        for number, answer in enumerate(run_case(case)):
            if case.precision == "bf16" and number == 2:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(bench, "run_case", interrupted)
    assert main(["--case", "train/etris_*", "--rounds", "3", "--json", str(output)]) == 130
    found = json.loads(output.read_text())
    assert found["interrupted"]
    counts = [len(one["summary"]["repetitions"]) for one in found["cases"].values()]
    assert counts == [3, 1]
    assert "stopped before the end" in capsys.readouterr().out


@pytest.fixture
def results_file(tmp_path: Path) -> Callable[..., Path]:
    """``results_file("a.json", {"train/x/bf16": row}, threads=2)``."""

    def write(name: str, rows: dict[str, dict[str, Any]], **options: Any) -> Path:
        cases = {
            case: {
                "case": vars(Case(case, "train", DEMO, case.split("/")[-1])),
                "summary": summarise([one]),
                "profile": "",
                "failure": "",
            }
            for case, one in rows.items()
        }
        facts = {"format": FORMAT, "device": "cpu", "threads": 1, "clock": "wall", "code": {}}
        (tmp_path / name).write_text(json.dumps({**facts, "cases": cases, **options}))
        return tmp_path / name

    return write


def test_two_files_are_compared_plain_and_by_the_rate_of_their_own_precision(
    results_file: Callable[..., Path], capsys: Any
) -> None:
    first = {"train/x/fp32": row(6.0, fp32=50.0), "train/x/bf16": row(6.0, bf16=400.0)}
    second = {"train/x/fp32": row(2.0, fp32=100.0), "train/x/bf16": row(2.0, bf16=800.0)}
    files = results_file("a.json", first), results_file("b.json", second, threads=2)
    assert main(["--compare", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("train/")]
    assert [" ".join(line.split()) for line in lines] == [
        "train/x/fp32 6.00 s 2.00 s 3.00 1.50 50 100",
        "train/x/bf16 6.00 s 2.00 s 3.00 1.50 400 800",
    ]
    assert "threads: 1 and 2" in printed


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "b.json"),
        ("{", "b.json"),
        ('{"format": 7}', "format 7"),
        ("[]", "b.json"),
        (f'{{"format": {FORMAT}, "cases": {{}}}}', "no case in common"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(
    results_file: Callable[..., Path], capsys: Any, content: str | None, named: str
) -> None:
    first = results_file("a.json", {"train/x/fp32": row(1.0)})
    second = first.with_name("b.json")
    if content is not None:
        second.write_text(content)
    assert main(["--compare", str(first), str(second)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--case", "trian"], "did you mean 'train'?"),
        (["--rounds", "0"], "--rounds 0"),
        (["--clock", "processor", "--threads", "2"], "--threads 1"),
        (["--json", "nowhere/bench.json"], "nowhere"),
        (["--against", "../before"], "--compare before.json after.json"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", DEMO, DEMO], "etris"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    capsys: Any, arguments: list[str], named: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error and error.count("\n") == 1
