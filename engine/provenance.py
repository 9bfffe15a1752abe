"""Where a result comes from: code, command, libraries and machine, for every file that is kept."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from utils.distributed import Processes
from utils.memory import peak_size

LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "numpy",
    "opencv-python-headless",
    "pycocotools",
    "lmdb",
    "safetensors",
    "pydantic",
)
DIRTY, UNKNOWN = "with uncommitted changes", "by code of an unknown commit"


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, dirty flag, command, versions and machine; commit and flag are null outside git."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        **_commit(),
        "command": shlex.join(["python", *sys.argv]),
        "versions": {"python": platform.python_version()} | _versions(),
        "device": gpu or "cpu",
        "hardware": {
            "gpu": gpu,
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def describe_code(results: Mapping[str, Any]) -> dict[str, str]:
    """``DIRTY`` or ``UNKNOWN`` for ``trained`` and ``tested``, where a commit does not tell all."""
    trained = results.get("checkpoint", {}).get("provenance", {})
    told = {}
    for verb, made in (("trained", trained), ("tested", results)):
        if made.get("dirty"):
            told[verb] = DIRTY
        elif made.get("commit") is None:
            told[verb] = UNKNOWN
    return told


def peak_memory(processes: Processes, earlier: Mapping[str, int]) -> dict[str, int]:
    """The most bytes a process held so far of the host's memory, and a GPU of tensors; else 0.

    Of several processes the largest counts, and what the run needed ``earlier``, before a stop.
    """
    device = processes.device
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    sizes = {"host": peak_size(os.getpid()), "gpu": gpu}
    peaks = [float(max(size, earlier.get(name, 0))) for name, size in sizes.items()]
    return dict(zip(sizes, map(int, processes.largest(peaks)), strict=True))


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _cpu() -> str:
    """The model of the processor, as Linux calls it; elsewhere its kind."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, str | bool | None]:
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A repository that merely contains the folder says nothing about this code.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {"commit": None, "dirty": None}
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
