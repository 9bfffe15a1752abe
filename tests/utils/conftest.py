"""A small demo data set, generated and packed once, and parts of it under other names."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lmdb
import pytest

from utils.data.store import close_store
from utils.demo.writer import write_demo
from utils.prepare.annotations import Source
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import read_refs, refer_source


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with ``demo/`` and its packed files; read it, do not change it."""
    root = tmp_path_factory.mktemp("datasets")
    write_demo(root / "demo", seed=3, num_train_objects=60, num_test_objects=40)
    pack_dataset(root, refer_source(root, "demo"))
    return root


@pytest.fixture
def copy_as(demo_root: Path, tmp_path: Path) -> Callable[..., Source]:
    """``copy_as("refcoco", rows)``: the demo's references of these rows as another data set.

    It lies in ``tmp_path``; ``change`` is called with the references and the instances before
    they are written.
    """

    def copy(
        dataset: str,
        rows: Iterable[int],
        *,
        change: Callable[[list, dict], object] = lambda *_: None,
    ) -> Source:
        source = refer_source(tmp_path, dataset)
        refs = read_refs(demo_root / "demo" / "refs(unc).p")
        refs = [refs[row] for row in rows]
        instances = json.loads((demo_root / "demo" / "instances.json").read_text())
        change(refs, instances)
        for path, data in zip(
            source.files,
            (pickle.dumps(refs, protocol=2), json.dumps(instances).encode()),
            strict=True,
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        names = {image["id"]: image["file_name"] for image in instances["images"]}
        for ref in refs:
            name = names[ref["image_id"]]
            (source.images / name).parent.mkdir(parents=True, exist_ok=True)
            if not (source.images / name).exists():
                shutil.copy(demo_root / "demo" / "images" / name, source.images / name)
        return source

    return copy


@pytest.fixture
def packed_copy(demo_root: Path, tmp_path: Path) -> Path:
    """A root with a copy of the packed demo, to be changed."""
    shutil.copytree(demo_root / "lmdb", tmp_path / "lmdb")
    return tmp_path


@pytest.fixture
def contents() -> Callable[[Path], dict[bytes, bytes]]:
    """``contents(path)``: all keys and values of a store."""

    def read(path: Path) -> dict[bytes, bytes]:
        close_store(path)  # LMDB opens a file once in a process
        with (
            lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            return dict(transaction.cursor())

    return read


@pytest.fixture
def change_store() -> Callable[[Path, Mapping[str, Any]], None]:
    """``change_store(path, {key: value})``: write a value, or what it makes of the old one."""

    def change(path: Path, items: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        close_store(path)
        with (
            lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 28) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in items.items():
                if callable(value):
                    value = value(transaction.get(key.encode()))
                if value is None:
                    transaction.delete(key.encode())
                else:
                    transaction.put(key.encode(), value)

    return change
