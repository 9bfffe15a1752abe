"""Packing: whole or not at all, resumed after a kill, and compared with the publication."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.data.datasets import SplitFacts
from utils.data.store import ReferStore, open_reader, scan, store_path
from utils.prepare import pack as packing
from utils.prepare import writer
from utils.prepare.annotations import Source
from utils.prepare.masks import to_record
from utils.prepare.pack import pack_dataset, packed_header
from utils.prepare.refer import refer_source
from utils.prepare.writer import lock_folder

ROOT = Path(__file__).parents[3]
Copy = Callable[..., Source]
Contents = Callable[[Path], dict[bytes, bytes]]


def pack(root: Path, source: Source, **options: Any) -> dict[str, Any]:
    return pack_dataset(root, source, accept_differences=True, **options)


def without_seconds(held: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What a store holds but for the times that packing it took."""
    held = dict(held)
    held.pop(b"plan")
    header = json.loads(held.pop(b"header"))
    for split, counts in header.get("splits", {}).items():
        assert counts.pop("seconds") >= 0
        held.pop(f"done/{split}".encode())
    return {**held, b"header": json.dumps(header, sort_keys=True).encode()}


def test_the_header_counts_what_was_packed(demo_root: Path) -> None:
    source = refer_source(demo_root, "demo")
    header = ReferStore(demo_root, "demo").header
    entries = [entry.record for entry in source.read() if entry.record["split"] == "val"]
    names = {record["file_name"] for record in entries}
    counts = dict(header["splits"]["val"])
    assert len(counts.pop("images_sha256")) == 64
    assert counts.pop("seconds") >= 0 and list(header["splits"]) == list(source.splits)
    records = ReferStore(demo_root, "demo").references("val")
    num_bytes = sum(len(json.dumps(record, sort_keys=True)) for record in records)
    assert counts == {
        "refs": len(entries),
        "sentences": sum(len(record["sentences"]) for record in entries),
        "images": len(names),
        "empty_masks": 0,
        "empty_sentences": 0,
        "over_17": 0,
        "over_22": 0,
        "bytes": num_bytes + sum((source.images / name).stat().st_size for name in names),
    }
    for path in source.files:
        assert header["sources"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert header["skipped"] == {"images": [], "refs": 0}
    assert (header["differences"], header["shared_images"]) == ([], {})


def first_fingerprint(source: Source) -> str:
    """The fingerprint as the first format of the store had it."""
    entries = [to_record(entry) for entry in source.read()]
    digest = hashlib.sha256(b"format 1\n")
    for record in entries:
        digest.update(f"{json.dumps(record, sort_keys=True)}\n".encode())
    for name in sorted({record["file_name"] for record in entries}):
        checksum = hashlib.sha256((source.images / name).read_bytes()).hexdigest()
        digest.update(f"{checksum}  {name}\n".encode())
    return digest.hexdigest()


def test_fingerprints_stay_what_they_were(demo_root: Path, copy_as: Copy, tmp_path: Path) -> None:
    found = ReferStore(demo_root, "demo").header["fingerprint"]
    assert found == first_fingerprint(refer_source(demo_root, "demo"))
    # splits that take turns in the file
    order = np.random.default_rng(0).permutation(180).tolist()
    source = copy_as("refcoco", order)
    assert pack(tmp_path, source)["fingerprint"] == first_fingerprint(source)
    again = copy_as("refcoco", sorted(order))
    assert pack(tmp_path, again)["fingerprint"] == first_fingerprint(again) != found


def test_processes_change_nothing(
    copy_as: Copy, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_ENTRIES", 7)
    source = copy_as("refcoco", range(180))
    held = []
    for root, workers in (("one", 1), ("two", 2)):
        pack(tmp_path / root, source, workers=workers)
        paths = [store_path(tmp_path / root, name) for name in ("refcoco", "coco-images")]
        held.append([without_seconds(contents(path)) for path in paths])
    assert held[0] == held[1]


def test_data_sets_on_the_same_images_share_them(copy_as: Copy, tmp_path: Path) -> None:
    pack(tmp_path, copy_as("refcoco", range(20)))
    path = store_path(tmp_path, "coco-images")
    store = ReferStore(tmp_path, "refcoco")
    name = store.references("train")[0]["file_name"]
    before, data = store.image_marks().keys(), store.image(name)
    pack(tmp_path, copy_as("refcoco+", range(10, 40)))
    names = {
        name
        for dataset in ("refcoco", "refcoco+")
        for name in ReferStore(tmp_path, dataset).file_names("train")
    }
    assert store.image_marks().keys() == names > before
    assert store.image(name) == data, "a reader notices that the file was replaced"
    assert names_in(path.parent) == ["coco-images.lmdb", "refcoco+.lmdb", "refcoco.lmdb"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killer:
    """Kill this process at the ``at``-th of the moments at which something changes on the disk."""

    def __init__(self, at: int) -> None:
        self.left = at
        commit, replace, copy = writer.StoreWriter.commit, os.replace, writer.shutil.copyfile
        writer.StoreWriter.commit = lambda part: self.before(commit, part)
        writer.os.replace = lambda *paths: self.before(replace, *paths)
        writer.shutil.copyfile = lambda *paths: self.before(copy, *paths)

    def before(self, function: Callable, *arguments: Any) -> Any:
        # what is on the disk after one change is there before the next
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)


def is_killed(at: int, function: Callable[[], object]) -> bool:
    """Run ``function`` in a process that is killed at that moment; False if it ends by itself."""
    process = os.fork()
    if not process:
        try:
            Killer(at)
            function()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_at_any_moment_the_next_command_goes_on(
    copy_as: Copy, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(writer, "COMMIT_BYTES", 150_000)
    first, second = copy_as("refcoco", range(20)), copy_as("refcoco+", range(0, 180, 9))
    names = ("refcoco", "refcoco+", "coco-images")
    pack(tmp_path / "first", first)
    before = without_seconds(contents(store_path(tmp_path / "first", "coco-images")))
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    pack(tmp_path / "whole", second)
    whole = {
        name: without_seconds(contents(store_path(tmp_path / "whole", name))) for name in names
    }
    for at in range(1000):
        root = tmp_path / f"killed-{at}"
        shutil.copytree(tmp_path / "first", root)
        if not is_killed(at, lambda root=root: pack(root, second)):
            break
        images_now = without_seconds(contents(store_path(root, "coco-images")))
        assert images_now in (before, whole["coco-images"]), "the old one or the new one"
        if store_path(root, "refcoco+").exists():
            assert packed_header(root, second) == ReferStore(root, "refcoco+").header
        else:
            assert packed_header(root, second) is None
        finished = finished_splits(root, "refcoco+")
        capfd.readouterr()
        header = pack(root, second)
        shown = capfd.readouterr().out
        for split, counts in finished.items():
            assert header["splits"][split] == counts, "not packed a second time"
        assert not finished or f"{', '.join(finished)} packed already" in shown
        for name in names:
            assert without_seconds(contents(store_path(root, name))) == whole[name]
        assert names_in(root / "lmdb") == sorted(f"{name}.lmdb" for name in names)
    assert at >= 10


def finished_splits(root: Path, dataset: str) -> dict[str, Any]:
    """The counts of the splits that are finished in the unfinished file of a data set."""
    path = writer.part_path(store_path(root, dataset))
    if not path.exists():
        return {}
    with open_reader(path) as environment:
        found = {split: json.loads(value) for split, value in scan(environment, "done/")}
    return {split: found[split] for split in ("train", "val", "testA", "testB") if split in found}


SCRIPT = """
import sys
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import refer_source
from utils.prepare.writer import lock_folder
source = refer_source(sys.argv[1], "refcoco")
pack_dataset(sys.argv[1], source, accept_differences=True, workers=2)
"""


def test_killed_workers_and_all(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(180))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, start_new_session=True
    )
    part = writer.part_path(store_path(tmp_path, "coco-images"))
    while not part.exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)  # whether anybody is left of its group
            time.sleep(0.05)
    assert packed_header(tmp_path, source) is None
    header = pack(tmp_path, source)
    assert header["fingerprint"] == first_fingerprint(source)
    assert not list((tmp_path / "lmdb").glob("*.part*"))


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_unfinished_file_is_written_again(
    copy_as: Copy, tmp_path: Path, damage: str, capsys: Any
) -> None:
    source = copy_as("refcoco", range(60))
    assert is_killed(5, lambda: pack(tmp_path, source))
    [part] = (tmp_path / "lmdb").glob("*.part")
    if damage == "cut":
        os.truncate(part, part.stat().st_size // 2)
    else:
        part.write_bytes(b"something else" * 1000 if damage == "text" else b"")
    assert pack(tmp_path, source)["fingerprint"] == first_fingerprint(source)
    shown = capsys.readouterr().out
    assert str(part) in shown and "damaged (" in shown


def test_other_sources_are_not_mixed_in(copy_as: Copy, tmp_path: Path, capsys: Any) -> None:
    source, at, root = copy_as("refcoco", range(180)), 5, tmp_path
    while not finished_splits(root, "refcoco"):
        at, root = at + 1, tmp_path / f"killed-{at}"
        assert is_killed(at, lambda root=root: pack(root, source))
    source = copy_as("refcoco", range(170))
    assert pack(root, source)["fingerprint"] == first_fingerprint(source)
    shown = capsys.readouterr().out
    assert "refcoco.lmdb.part is of an earlier command with other files or options" in shown
    assert "packed already" not in shown


def test_changed_sources_are_noticed(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(8))
    header = pack(tmp_path, source)
    assert packed_header(tmp_path, source) == header
    copy_as("refcoco", range(9))
    with pytest.raises(ValueError, match=r"packed from other files .* --force"):
        packed_header(tmp_path, source)
    for path in source.files:
        path.unlink()
    assert packed_header(tmp_path, source) == header, "the store alone is enough"


def test_two_commands_at_once_are_refused(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(8))
    with lock_folder(tmp_path / "lmdb"), pytest.raises(ValueError, match=r"into .*lmdb; wait"):
        pack(tmp_path, source)
    (tmp_path / "lmdb" / "packing.lock").touch()
    assert pack(tmp_path, source), "a lock that a killed command left does not count"


@pytest.mark.parametrize("kilobytes", [9, 150])
def test_a_full_disk_leaves_the_old_stores(
    copy_as: Copy, contents: Contents, tmp_path: Path, kilobytes: int
) -> None:
    pack(tmp_path, copy_as("refcoco", range(5)))
    old = {path: contents(path) for path in (tmp_path / "lmdb").glob("*.lmdb")}
    source = copy_as("refcoco+", range(180))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"\.lmdb\.part cannot be written .* bytes are free"):
            pack(tmp_path, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: contents(path) for path in (tmp_path / "lmdb").glob("*.lmdb")} == old
    assert pack(tmp_path, source)["fingerprint"] == first_fingerprint(source)


def test_what_differs_from_the_publication_is_named(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(120))
    entries = source.read()
    counts = {}
    for split in source.splits:
        lengths = [len(e.record["sentences"]) for e in entries if e.record["split"] == split]
        counts[split] = SplitFacts(len(lengths), sum(lengths))
    header = pack_dataset(tmp_path, source._replace(published=counts), force=True)
    assert header["differences"] == []
    num_sentences = counts["val"].sentences
    counts["val"] = counts["val"]._replace(sentences=10_834)
    counts["testB"] = SplitFacts(1_810, 5_095)
    source = source._replace(published=counts)
    with pytest.raises(ValueError) as info:
        pack_dataset(tmp_path / "other", source)
    message = str(info.value)
    assert str(source.files[0]) in message and "train has" not in message
    assert (
        f"val has 42 references and {num_sentences} expressions, published are 42 and 10,834; "
        "testB has 0 references and 0 expressions, published are 1,810 and 5,095; "
    ) in message
    assert "--accept-differences" in message
    assert names_in(tmp_path / "other" / "lmdb") == []
    header = pack(tmp_path / "other", source)
    assert [text.split()[0] for text in header["differences"]] == ["val", "testB"]
    assert header["splits"]["testB"]["refs"] == 0


def test_images_in_two_splits_are_counted(copy_as: Copy, tmp_path: Path) -> None:
    def share(refs: list, _: dict) -> None:
        refs[0]["split"] = refs[-1]["split"] = "val"  # of images with others in train

    source = copy_as("refcoco", range(30), change=share)._replace(published={})
    with pytest.raises(ValueError, match="train and val have 2 images in common, published are no"):
        pack_dataset(tmp_path, source)
    assert pack(tmp_path, source)["shared_images"] == {"train val": 2}
    source = source._replace(shares_images=True)
    header = pack_dataset(tmp_path, source, force=True)
    assert header["shared_images"] == {"train val": 2} and header["differences"] == []


def test_unknown_splits_and_empty_files_are_refused(copy_as: Copy, tmp_path: Path) -> None:
    source = copy_as("refcoco", range(9))
    with pytest.raises(ValueError, match="'train' is none of val, test"):
        pack(tmp_path, source._replace(splits=("val", "test")))
    with pytest.raises(ValueError, match=re.escape(str(source.files[0]))):
        pack(tmp_path, source._replace(read=lambda: []))


def test_empty_masks_empty_and_long_sentences_are_counted(copy_as: Copy, tmp_path: Path) -> None:
    def change(refs: list, instances: dict) -> None:
        for ref, length in zip(refs, (15, 16, 20, 21), strict=False):
            ref["sentences"][0]["sent"] = " ".join(["left"] * length)
        refs[4]["sentences"][0]["sent"] = " "
        for row in instances["annotations"]:
            if row["id"] in (refs[5]["ann_id"], refs[6]["ann_id"]):
                row["segmentation"], row["iscrowd"] = [[-9, -9, -9, -5, -5, -5]], 0

    header = pack(tmp_path, copy_as("refcoco", range(20), change=change))
    counts = header["splits"]["train"]
    assert (counts["over_17"], counts["over_22"], counts["empty_masks"]) == (3, 1, 2)
    assert counts["empty_sentences"] == 1
    areas = ReferStore(tmp_path, "refcoco").index("train").area
    assert np.flatnonzero(areas == 0).tolist() == [5, 6]
