"""Use a clone from any folder: `load`, and the commands ris-train, ris-test, ris-predict, ris-data.

The folders of the clone (`model`, `engine`, `utils`) have common names. They are put on the path
only when something here is used, so that an installation adds this one name alone.
"""

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.prediction import Predictor

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("model", "engine", "utils")


def _find_clone() -> None:
    """Put the clone first on the path.

    Raises:
        ImportError: this is no editable installation, or a module of another project has the name
            of one of ours.
    """
    if not (ROOT / "train.py").is_file():
        raise ImportError(f"{ROOT} has no train.py: install from a clone, with pip install -e .")
    for name in FOLDERS:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is not None and ROOT not in Path(path).resolve().parents:
            raise ImportError(
                f"the module {name} is already imported from {path}, and ris_adapters has one of "
                "this name: import ris_adapters first, or call the command ris-predict"
            )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def load(checkpoint: str | Path, **options: Any) -> "Predictor":
    """Load a checkpoint for prediction; see :func:`engine.prediction.load`."""
    _find_clone()
    from engine.prediction import load as load_predictor

    return load_predictor(checkpoint, **options)


def _run(script: str) -> None:
    _find_clone()
    runpy.run_path(str(ROOT / script), run_name="__main__")


def train() -> None:
    """Run train.py (the command ris-train)."""
    _run("train.py")


def test() -> None:
    """Run test.py (the command ris-test)."""
    _run("test.py")


def predict() -> None:
    """Run predict.py (the command ris-predict)."""
    _run("predict.py")


def data() -> None:
    """Run tools/prepare_datasets.py (the command ris-data)."""
    _run("tools/prepare_datasets.py")
