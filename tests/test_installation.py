"""`pip install -e .` in an environment of its own, used from another folder."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.files import sha256_of

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "pretrain/demo-etris.safetensors"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the project installed, and the libraries of the one of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin/python"
    paths = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (own / "libraries.pth").write_text("\n".join(paths.values()))
    options = ["-q", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    subprocess.run([python, "-m", "pip", "install", *options], check=True)
    return folder


def run(environment: Path, folder: Path, program: str, *words: str | Path) -> str:
    command = [environment / "bin" / program, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_one_name_and_four_commands_are_installed(environment: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "print([n for n in ('ris_adapters', 'model', 'engine', 'utils', 'tools') if find_spec(n)])"
    )
    assert run(environment, tmp_path, "python", "-c", code) == "['ris_adapters']\n"
    assert all((environment / f"bin/ris-{name}").is_file() for name in ("train", "test", "predict"))
    assert "examples:" in run(environment, tmp_path, "ris-data", "--help")


def test_weights_of_the_project_are_found_from_another_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from model import build_clip

    monkeypatch.chdir(tmp_path)
    file = "pretrain/demo-vit.pt"
    _, backbone = build_clip("demo-vit", file, image_size=80, max_tokens=17)
    assert backbone["sha256"] == sha256_of(ROOT / file)


def test_a_picture_from_another_folder(environment: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((48, 64, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    code = (
        "import sys, ris_adapters\n"
        "mask = ris_adapters.load(sys.argv[2])('photo.png', 'the red circle')\n"
        "print(mask.shape, mask.dtype, flush=True)\n"
        "ris_adapters.predict()"
    )
    words = ["-c", code, "--checkpoint", CHECKPOINT, "--image", "photo.png"]
    words += ["--text", "the red circle", "--output", "masks"]
    output = run(environment, tmp_path, "python", *words)
    assert output.splitlines()[0] == "(48, 64) bool"
    mask = np.asarray(Image.open(next((tmp_path / "masks").rglob("*mask*.png"))))
    assert mask.shape == (48, 64)


def test_another_module_of_the_same_name_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ris_adapters

    other = type(sys)("utils")
    other.__file__ = str(tmp_path / "utils.py")
    monkeypatch.setitem(sys.modules, "utils", other)
    with pytest.raises(ImportError, match=r"utils\.py"):
        ris_adapters.load(CHECKPOINT)
