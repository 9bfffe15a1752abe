"""Which number format a device computes in."""

from pathlib import Path

import pytest
import torch

from engine import precision
from engine.precision import autocast, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512_bf16 sse", "bf16"), ("amx_bf16 fpu", "bf16"), ("fpu avx2 avx512f", "fp32")],
)
def test_auto_asks_the_processor(
    flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text(f"processor : 0\nmodel name : bf16 in a name\nflags\t\t: {flags}\n")
    monkeypatch.setattr(precision, "CPU_LISTING", listing)
    assert resolve_precision("auto", CPU) == expected


def test_auto_without_a_list_of_flags_is_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "CPU_LISTING", tmp_path / "none")
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_auto_asks_the_gpu(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", GPU) == expected


def test_fp16_needs_a_gpu() -> None:
    assert resolve_precision("fp16", GPU) == "fp16"
    with pytest.raises(ValueError, match="fp16 needs a CUDA GPU and this run is on cpu"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize(("name", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_it(name: str, expected: torch.dtype) -> None:
    x = torch.ones(2, 2)
    with autocast(name, CPU):
        assert (x @ x).dtype == expected
