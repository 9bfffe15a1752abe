"""The cases of the bench: what they answer, and with whose code. No timings."""

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from engine.precision import resolve_precision
from tools.benchmark import machine, project
from tools.benchmark.cases import Case
from tools.benchmark.driver import Driver, Plan
from tools.benchmark.profiling import GROUPS, group_of
from tools.benchmark.samples import SIZE, photograph
from tools.benchmark.serving import WARM_UPS, serve
from tools.benchmark.task import Task
from tools.benchmark.training import timed_parts
from utils.data.transforms import Letterbox

ROOT = Path(__file__).parents[2]
DEMO = "config/demo/etris.yaml"
# bf16 takes seventy times as long where the processor has no instructions for it.
FASTEST = resolve_precision("auto", torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("train", {"seconds", "forward", "backward", "optimizer"}),
        ("memory", {"bytes", "added_bytes"}),
        ("predict-1", {"seconds"}),
        ("predict-8", {"seconds"}),
        ("sentences-8", {"seconds"}),
        ("loader", {"seconds", "samples_per_second"}),
        ("loader-pixels", {"seconds", "samples_per_second"}),
        ("postprocess", {"seconds"}),
        ("end-to-end", {"seconds", "share_of_bf16_rate", "share_waiting",
                        "training_images_per_second", "evaluation_sentences_per_second"}),
    ],
)  # fmt: skip
def test_every_case_answers_with_its_figures(
    kind: str, figures: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SIDE", 32)
    monkeypatch.setitem(WARM_UPS, "cpu", 0)
    monkeypatch.setattr("tools.benchmark.end_to_end.IMAGES_A_SAMPLE", 2)
    threads = torch.get_num_threads()
    task = Task(
        name=kind, kind=kind, root=str(ROOT), config=DEMO, precision=FASTEST, device="cpu",
        threads=threads, batch_size=4, num_images=9,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    serve(task, ["\n"], rows.append)
    told, answer = rows
    assert {"commit", "versions", "hardware"} <= told["provenance"].keys()
    assert set(answer["figures"]) == figures
    assert all(value >= 0 for value in answer["figures"].values())
    assert set(answer["calibration"]) == (set() if kind == "memory" else {"fp32", "bf16"})
    assert answer["others"] is None or 0 <= answer["others"] <= 1


def test_a_profile_divides_the_time_among_kinds_of_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "SIDE", 32)
    monkeypatch.setitem(WARM_UPS, "cpu", 0)
    task = Task(
        name="train", kind="train", root=str(ROOT), config=DEMO, precision=FASTEST, device="cpu",
        threads=torch.get_num_threads(), profiles=True,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    serve(task, ["\n"], rows.append)
    figures = rows[-1]["figures"]
    shares = {name: value for name, value in figures.items() if name.startswith("in_")}
    assert set(shares) == {f"in_{group}" for group in (*GROUPS, "python")}
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert all(shares[f"in_{group}"] > 0 for group in ("products", "convolutions", "norms"))
    # the arithmetic of a step of 4 samples at 160 pixels, at the rate that was measured
    gflop = figures["floor"] * rows[-1]["calibration"][FASTEST]
    assert 5 < gflop < 50


@pytest.mark.parametrize(
    ("operation", "group"),
    [
        ("aten::addmm", "products"),
        ("aten::bmm", "products"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_batch_norm", "norms"),
        ("aten::_to_copy", "copies"),
        ("aten::_fused_adam_", "optimizer"),
        ("aten::addcmul", "elementwise"),
        ("autograd::engine::evaluate_function: AddmmBackward0", None),
    ],
)
def test_operations_are_grouped_by_name(operation: str, group: str | None) -> None:
    assert group_of(operation) == group


def test_a_slow_format_is_measured_on_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIDE", 64)
    sides: list[int] = []
    randn = torch.randn

    def spy(rows: int, *sizes: int, **options: Any) -> torch.Tensor:
        sides.append(rows)
        return randn(rows, *sizes, **options)

    monkeypatch.setattr(torch, "randn", spy)
    clock = machine.Clock(Task("train", "train", "", "", "fp32", "cpu", 1))
    for longest, expected in ((1e9, {8, 64}), (0.0, {8})):
        sides.clear()
        monkeypatch.setattr(machine, "LONGEST", longest)
        assert all(rate > 0 for rate in machine.calibrate(clock).values())
        assert set(sides) == expected


@pytest.mark.parametrize("name", ["wall", "processor"])
def test_parts_of_a_step_add_up(name: str) -> None:
    task = Task("train", "train", "", "", "fp32", "cpu", 1, clock=name)
    weight = torch.ones(3, requires_grad=True)
    parts = timed_parts(lambda: (2 * weight).sum().backward(), machine.Clock(task))
    assert parts["seconds"] == pytest.approx(sum(parts.values()) - parts["seconds"])
    assert weight.grad is not None and weight.grad.tolist() == [2, 2, 2]


def test_scoring_by_image_counts_what_scoring_by_sentence_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    letterbox = Letterbox.fit(31, 47, 40)
    truths = torch.stack([torch.from_numpy(project.ellipse(31, 47))] * 2)
    counts = []
    for by_image in (False, project.SCORES_BY_IMAGE):
        monkeypatch.setattr(project, "SCORES_BY_IMAGE", by_image)
        counts.append(project.score(logits, letterbox, truths))
    assert counts[0] == counts[1] and len(counts[0]) == 6


def test_photographs_take_as_many_bytes_as_those_of_coco() -> None:
    sizes = [len(cv2.imencode(".jpg", photograph(seed))[1]) for seed in range(2)]
    assert all(0.2 < size / (SIZE[0] * SIZE[1]) < 1.0 for size in sizes)


def test_a_worker_runs_the_code_of_another_checkout(tmp_path: Path) -> None:
    """One without a bench: all but ``tools/benchmark`` is taken from there."""
    (tmp_path / "engine").mkdir()
    for path in [ROOT / "model", ROOT / "utils", ROOT / "config", *(ROOT / "engine").iterdir()]:
        if path.name != "bench":
            (tmp_path / path.relative_to(ROOT)).symlink_to(path)
    mark = tmp_path / "engine/provenance.py"
    text = mark.read_text()
    mark.unlink()
    mark.write_text(f"{text}\n\ndef provenance(device):\n    return {{'commit': 'elsewhere'}}\n")
    case = Case("postprocess", "postprocess", DEMO)
    plan = Plan([case], {"this": tmp_path}, device="cpu", threads=1, rounds=1, clock="wall")
    runner = Driver(plan)
    runner.run(lambda: None)
    assert runner.measurements[0].failures == {}
    assert runner.provenance == {"this": {"commit": "elsewhere"}}
    assert len(runner.measurements[0].rows["this"]) == 1
