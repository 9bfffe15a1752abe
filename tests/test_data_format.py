"""docs/data-format.md keeps its word: its reader reads, its tables are whole, its sum is right."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data.store import FORMAT, ReferStore, decode_mask, open_store
from utils.demo.writer import write_demo
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import refer_source

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/data-format.md").read_text(encoding="utf-8")
SPLITS = ("train", "val", "testA", "testB")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ReferStore:
    """A small packed demo."""
    root = tmp_path_factory.mktemp("datasets")
    write_demo(root / "demo", seed=6, num_train_objects=60, num_test_objects=10)
    pack_dataset(root, refer_source(root, "demo"))
    return ReferStore(root, "demo")


def section(title: str) -> str:
    return re.split(r"^#+ ", TEXT.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_column(title: str) -> set[str]:
    """The names in backticks that begin the rows of a section's table."""
    cells = re.findall(r"^\| (`.*?) \|", section(title), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}


def items(path: Path) -> dict[bytes, bytes]:
    with open_store(path).begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


READ_ALL = """
import hashlib, sys
for split in sys.argv[2:]:
    for record, image, mask in read(sys.argv[1], "demo", split):
        sums = [hashlib.sha256(array.copy("C")).hexdigest() for array in (image, mask)]
        print(json.dumps([record, *sums]))
"""


def test_the_reader_reads(store: ReferStore, tmp_path: Path) -> None:
    (reader,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    (tmp_path / "reader.py").write_text(reader + READ_ALL, encoding="utf-8")
    # -I: no module of the project is found
    command = [sys.executable, "-I", "reader.py", str(store.path.parents[1]), *SPLITS]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expected = []
    for record in (one for split in SPLITS for one in store.references(split)):
        data = np.frombuffer(store.image(record["file_name"]), np.uint8)
        arrays = cv2.imdecode(data, cv2.IMREAD_COLOR), decode_mask(record)
        sums = (hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in arrays)
        expected.append([record, *sums])
    assert [json.loads(line) for line in shown.splitlines()] == expected != []


def test_tables_name_all_there_is(store: ReferStore) -> None:
    assert first_column("The header") == store.header.keys()
    assert first_column("The record") == store.references("val")[0].keys()
    counts = re.search(r"^\| `splits` \|(.*)\|$", section("The header"), re.MULTILINE)
    assert counts and set(re.findall(r"`(\w+)`", counts[1])) == store.header["splits"]["val"].keys()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \((\w)\) \|", section("The index"), re.MULTILINE)
    index = store.index("val")
    lengths = {"N": len(store.references("val")), "M": store.header["splits"]["val"]["sentences"]}
    for name, kind, length in rows:
        array = getattr(index, name)
        assert array.dtype.kind == "S" if kind == "bytes" else array.dtype == kind
        assert array.shape == (lengths[length],)
    assert {name for name, _, _ in rows} | {"tokens"} == set(index._fields)
    assert index.tokens.dtype == np.uint16 and len(index.tokens) == index.num_tokens.sum()
    assert f"| `format` | {FORMAT} |" in TEXT and f"| {FORMAT} | this page |" in TEXT


def test_every_key_is_named(store: ReferStore) -> None:
    record = rf"(?:{'|'.join(SPLITS)})/\d{{8}}"
    split = f"(?:index|done)/(?:{'|'.join(SPLITS)})"
    keys = [key.decode() for key in items(store.path)]
    assert [key for key in keys if not re.fullmatch(f"header|plan|{record}|{split}", key)] == []
    names = set().union(*(store.file_names(split) for split in SPLITS))
    expected = {"header", "plan", *names, *(f"sha256/{name}" for name in names)}
    stored = items(store.images_path)
    assert {key.decode() for key in stored} == expected
    for name in names:
        data = stored[name.encode()]
        height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]
        mark = [hashlib.sha256(data).hexdigest(), len(data), height, width]
        assert json.loads(stored[f"sha256/{name}".encode()]) == mark


def test_the_fingerprint_is_as_described(store: ReferStore) -> None:
    stored, images = items(store.path), items(store.images_path)
    lines = {}
    for split in SPLITS:
        for row, position in enumerate(store.index(split).position.tolist()):
            lines[position] = stored[f"{split}/{row:08d}".encode()].decode()
    records = [lines[position] for position in sorted(lines)]
    assert records == [json.dumps(json.loads(line), sort_keys=True) for line in records]
    names = sorted({json.loads(line)["file_name"] for line in records})
    sums = [f"{hashlib.sha256(images[name.encode()]).hexdigest()}  {name}" for name in names]
    text = "".join(f"{line}\n" for line in ["format 1", *records, *sums])
    assert store.header["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
