"""The cases of the bench: which figures each of them gives. No timings."""

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from engine.precision import resolve_precision
from tools.benchmark import machine, worker
from tools.benchmark.cases import Case

DEMO = "config/demo/etris.yaml"
# bf16 takes seventy times as long where the processor has no instructions for it
FASTEST = resolve_precision("auto", torch.device("cpu"))


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measure a small case once in this process; return its one row."""
    monkeypatch.setattr(machine, "SIDE", 32)
    monkeypatch.setitem(worker.WARM_UPS, "cpu", 0)
    monkeypatch.setattr(worker, "NUM_IMAGES", 9)
    monkeypatch.setattr(worker, "NUM_IMAGES_END_TO_END", 9)
    monkeypatch.setattr(worker, "BATCH_SIZE_END_TO_END", 4)
    monkeypatch.setattr(worker, "BATCH_SIZE", 2)

    def run(kind: str, **options: Any) -> dict[str, Any]:
        case = Case(kind, kind, DEMO, FASTEST, threads=torch.get_num_threads(), rounds=1)
        case = Case(**(vars(case) | options))
        code, row = worker.measure(case, tmp_path)
        assert {"commit", "versions", "hardware"} <= code["provenance"].keys()
        return row

    return run


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("train", {"seconds", "forward", "backward", "optimizer"}),
        ("memory", {"bytes", "added_bytes"}),
        ("predict-1", {"seconds"}),
        ("predict-8", {"seconds"}),
        ("loader", {"seconds", "samples_per_second"}),
        ("loader-pixels", {"seconds", "samples_per_second"}),
        ("postprocess", {"seconds"}),
        (
            "end-to-end",
            {
                "seconds",
                "share_of_bf16_rate",
                "share_waiting",
                "training_images_per_second",
                "evaluation_sentences_per_second",
            },
        ),
    ],
)
def test_every_case_answers_with_its_figures(kind: str, figures: set[str], measure: Any) -> None:
    options = ["data.workers=0", "data.image_size=96"]
    row = measure(kind, opts=options if kind == "end-to-end" else [])
    assert set(row["figures"]) == figures
    assert all(value >= 0 for value in row["figures"].values())
    assert set(row["calibration"]) == (set() if kind == "memory" else {"fp32", "bf16"})
    assert row["others"] is None or 0 <= row["others"] <= 1


def test_a_profile_lists_operations_and_gives_the_least_time(
    measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: list[str] = []
    plain = machine.profile
    monkeypatch.setattr(machine, "profile", lambda *args: tables.append(plain(*args)))
    row = measure("train", profile=True)
    assert "aten::addmm" in tables[0] and "convolution" in tables[0]
    # the arithmetic of a step of 2 samples at 160 pixels, at the measured rate
    gflop = row["figures"]["floor"] * row["calibration"][FASTEST]
    assert 2.5 < gflop < 25


def test_a_slow_format_is_measured_on_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIDE", 64)
    sides: list[int] = []
    randn = torch.randn

    def spy(rows: int, *sizes: int, **options: Any) -> torch.Tensor:
        sides.append(rows)
        return randn(rows, *sizes, **options)

    monkeypatch.setattr(torch, "randn", spy)
    clock = machine.Clock("cpu", "wall")
    for limit, expected in ((1e9, {8, 64}), (0.0, {8})):
        sides.clear()
        monkeypatch.setattr(machine, "MAX_SECONDS", limit)
        assert all(rate > 0 for rate in machine.measure_rates(clock).values())
        assert set(sides) == expected


@pytest.mark.parametrize("kind", ["wall", "processor"])
def test_parts_of_a_step_add_up(kind: str) -> None:
    weight = torch.ones(3, requires_grad=True)
    parts = worker.time_parts(lambda: (2 * weight).sum().backward(), machine.Clock("cpu", kind))
    assert parts["seconds"] == pytest.approx(sum(parts.values()) - parts["seconds"])
    assert weight.grad is not None and weight.grad.tolist() == [2, 2, 2]


def test_photographs_take_as_many_bytes_as_those_of_coco() -> None:
    size = len(cv2.imencode(".jpg", worker.draw_photograph(0))[1])
    assert 0.2 < size / (worker.SIZE[0] * worker.SIZE[1]) < 1.0
