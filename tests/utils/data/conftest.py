"""A small demo data set, generated and packed once."""

from pathlib import Path

import pytest

from utils.data.demo.writer import write_demo
from utils.data.packing import pack_dataset


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with ``demo/`` and its packed files; read it, do not change it."""
    root = tmp_path_factory.mktemp("datasets")
    write_demo(root / "demo", seed=3, num_train_objects=60, num_test_objects=40)
    pack_dataset(root, "demo")
    return root
