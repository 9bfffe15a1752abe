"""Where a result comes from: code, command, libraries and machine, for every file that is kept."""

import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, dirty flag, command, versions and device; commit and flag are null outside git."""
    return {
        **_commit(),
        "command": shlex.join(["python", *sys.argv]),
        "versions": {"python": platform.python_version()} | _versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


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
