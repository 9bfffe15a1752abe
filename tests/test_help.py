"""Every script has a help with an example, which loads no heavy library."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.py", "tools/*.py")
    for path in ROOT.glob(pattern)
    if "__main__" in path.read_text("utf-8")  # the others are parts of a command
)
HEAVY = {"torch", "torchvision", "cv2", "open_clip", "timm", "wandb", "safetensors"}


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_is_light_and_shows_an_example(script: Path, tmp_path: Path) -> None:
    # From another folder: a script must find the project by its own place.
    command = [sys.executable, "-X", "importtime", str(ROOT / script), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    trace = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    errors = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert (result.returncode, errors) == (0, [])
    imported = {line.rpartition("|")[2].strip() for line in trace}
    assert "argparse" in imported and not HEAVY & imported
    assert f"  python {script.as_posix()}" in result.stdout
