"""The command: finds, downloads, packs, verifies, reports, and keeps finished work."""

import functools
import hashlib
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tools import prepare_datasets
from tools.prepare_datasets import main
from utils.data.store import ReferStore
from utils.demo import writer
from utils.demo.writer import write_demo
from utils.prepare import fetch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(writer.write_demo, num_train_objects=20, num_test_objects=8)
    monkeypatch.setattr(writer, "write_demo", small)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``refs(unc).p``, ``instances.json`` and ``images`` in RefCOCO's layout."""
    folder = tmp_path_factory.mktemp("scenes") / "refcoco"
    write_demo(folder, num_train_objects=20, num_test_objects=8)
    return folder


@pytest.fixture
def root(scenes: Path, tmp_path: Path) -> Path:
    """A root with RefCOCO in small, its images where CRIS has them."""
    root = tmp_path / "datasets"
    shutil.copytree(scenes / "images", root / "images/train2014")
    (root / "refcoco").mkdir()
    for name in ("refs(unc).p", "instances.json"):
        shutil.copy(scenes / name, root / "refcoco")
    return root


@pytest.fixture
def published(server: Any, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, with RefCOCO's archive at its second address and the images at their first."""
    images = sorted((scenes / "images").iterdir())
    annotations = {f"refcoco/{name}": scenes / name for name in ("refs(unc).p", "instances.json")}
    contents = {
        "refcoco": zipped({**annotations, "refcoco/refs(google).p": scenes / "refs(unc).p"}),
        "images/train2014": zipped({f"train2014/{path.name}": path for path in images}),
    }
    paths = {"refcoco": ["/dead/refcoco.zip", "/refcoco.zip"], "images/train2014": ["/images.zip"]}
    for folder, content in contents.items():
        server.files[paths[folder][-1]] = content
        archive = fetch.ARCHIVES[folder]._replace(
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            urls=tuple(server.url + path for path in paths[folder]),
        )
        monkeypatch.setitem(fetch.ARCHIVES, folder, archive)
    monkeypatch.setattr(fetch, "NUM_COCO_IMAGES", len(images))
    return server


def zipped(files: dict[str, Path]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, path in files.items():
            archive.write(path, name)
    return file.getvalue()


def prepare(root: Path, *arguments: str) -> int:
    return main(["--root", str(root), *arguments])


def snapshot(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def rows(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines()]


POLYGON = [[10, 10, 60, 10, 60, 60]]
SMALL = ("--dataset", "refcoco", "--accept-differences")


def test_the_demo_is_generated_packed_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ("--dataset", "demo")
    assert prepare(tmp_path, *demo) == 0
    shown, header = capsys.readouterr().out, ReferStore(tmp_path, "demo").header
    keys = ("refs", "sentences", "images", "bytes", "over_17", "over_22")
    for split, count in header["splits"].items():
        row = ["demo", split, *(f"{count[key]:,}" for key in keys), f"{count['seconds']:.1f}"]
        assert row in rows(shown)
    before = snapshot(tmp_path)
    assert prepare(tmp_path, *demo) == 0 and snapshot(tmp_path) == before
    (tmp_path / "lmdb/demo.lmdb").unlink()
    assert prepare(tmp_path, *demo) == 0
    after = snapshot(tmp_path)
    assert {path for path in before if after[path] != before[path]} == {
        tmp_path / "lmdb/demo.lmdb"
    }, "the scenes are not generated again"
    assert prepare(tmp_path, *demo, "--force") == 0
    before, after = after, snapshot(tmp_path)
    assert after.keys() == before.keys() and not after.items() & before.items()
    assert ReferStore(tmp_path, "demo").header["fingerprint"] == header["fingerprint"]


def test_everything_is_fetched_packed_and_verified(
    published: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published.plan["/images.zip"] = ["cut", "range"]
    root = tmp_path / "datasets"
    assert prepare(root, *SMALL, "--download", "--verify") == 0
    shown, log = capsys.readouterr()
    found = dict.fromkeys(["refcoco references", "refcoco annotations", "images files"], "missing;")
    assert {f"{a} {b}": c for a, b, c, *_ in rows(shown)[:3]} == found
    fetched = sum(len(content) for content in published.files.values())
    assert f"to fetch: {fetched:,} bytes (refcoco.zip, train2014.zip)" in shown
    assert "dead/refcoco.zip: the server answers 404 Not Found; 1 other address to try" in log
    assert "refcoco: verified" in shown and "not as published: train has" in shown
    assert [path for path, _ in published.requests].count("/images.zip") == 2
    assert {path.name for path in root.iterdir()} == {"refcoco", "images", "lmdb"}
    names = {path.name for path in (root / "refcoco").iterdir()}
    assert names == {"refs(unc).p", "refs(google).p", "instances.json"}
    before = snapshot(root)
    published.requests.clear()
    assert prepare(root, *SMALL, "--download") == 0
    assert published.requests == [] and snapshot(root) == before


@pytest.mark.parametrize("has_annotations", [True, False])
def test_images_are_fetched_only_where_one_is_lacking(
    published: Any,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    has_annotations: bool,
) -> None:
    images = sorted((root / "images/train2014").iterdir())
    images[3].write_bytes(b"my own, not to be overwritten")
    if not has_annotations:
        shutil.rmtree(root / "refcoco")
    monkeypatch.setattr(fetch, "NUM_COCO_IMAGES", len(images) + 5)
    assert prepare(root, *SMALL, "--download") == 2, "one image is damaged, none is lacking"
    assert images[3].name in capsys.readouterr().err
    assert all(path != "/images.zip" for path, _ in published.requests)
    images[4].unlink()
    assert prepare(root, *SMALL, "--download", "--skip-bad") == 0
    assert images[3].read_bytes() == b"my own, not to be overwritten" and images[4].exists()
    shown = capsys.readouterr().out
    assert f"{len(images) - 1} images (all of" in shown
    assert "refcoco: 1 images were skipped with" in shown and images[3].name in shown


@pytest.mark.parametrize("folder", ["elsewhere", "elsewhere/images/mscoco/images/train2014"])
def test_images_lie_elsewhere(
    root: Path, tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    (root / "images/train2014").rename(tmp_path / folder)
    assert prepare(root, *SMALL, "--images", str(tmp_path / "elsewhere")) == 0
    assert f"{tmp_path / folder}, " in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--download",)])
def test_packed_images_need_no_folder(published: Any, root: Path, options: tuple[str]) -> None:
    assert prepare(root, *SMALL) == 0
    shutil.rmtree(root / "images")
    (root / "refcoco").rename(root / "refcoco+")
    assert prepare(root, "--dataset", "refcoco+", "--accept-differences", *options) == 0
    assert published.requests == []
    assert ReferStore(root, "refcoco+").header["splits"]["val"]["refs"] > 0


def test_images_that_are_named_are_not_fetched(
    published: Any, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = next((root / "images/train2014").iterdir())
    absent.unlink()
    assert prepare(root, *SMALL, "--download", "--images", str(absent.parent)) == 2
    assert f"{absent.name} (missing)" in capsys.readouterr().err
    assert published.requests == [] and not absent.exists()


def test_several_data_sets_and_all(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = pickle.loads((root / "refcoco/refs(unc).p").read_bytes())
    shutil.copytree(root / "refcoco", root / "refcoco+")
    (root / "refcocog").mkdir()
    shutil.copy(root / "refcoco/instances.json", root / "refcocog")
    for name, splits in (("umd", ["train", "val", "test"]), ("google", ["train", "val"])):
        chosen = [ref | {"split": splits[n % len(splits)]} for n, ref in enumerate(refs)]
        (root / f"refcocog/refs({name}).p").write_bytes(pickle.dumps(chosen, protocol=2))
    assert prepare(root, "--dataset", "all", "refcoco", "--accept-differences") == 0
    shown = capsys.readouterr().out
    packed = [row[0] for row in rows(shown) if row[1:3] == ["packing", "into"]]
    assert packed == ["refcoco:", "refcoco+:", "refcocog_u:", "refcocog_g:"]
    assert "refcocog_g: train and val share" in shown
    assert "refcocog_u: accepted, not as published: " in shown and "published are none" in shown
    assert shown.count("coco-images.lmdb, ") == 1


def test_a_table_says_what_is_there_before_it_starts(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(prepare_datasets, "pack_dataset")
    (root / "refcoco/instances.json").unlink()
    assert prepare(root, *SMALL) == 2
    shown, error = capsys.readouterr()
    path, images = root / "refcoco/refs(unc).p", root / "images/train2014"
    for words in (
        f"{path}, {path.stat().st_size:,} bytes",
        f"looked in {root} for refcoco/instances.json, refcoco/refcoco/instances.json",
        "with --download: 53,993,993 bytes (refcoco.zip)",
        f"{images}, {len(list(images.iterdir())):,} images (all of COCO's train2014",
        f"bytes are free in {root}",
    ):
        assert words in shown
    absent = root / "refcoco/instances.json"
    assert error.startswith(f"error: {absent} is missing") and "--download" in error


def test_ctrl_c_is_exit_130(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_datasets, "pack_dataset", interrupt)
    assert prepare(root, *SMALL) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_own_data(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.name for path in (scenes / "images").iterdir())[:4]
    lines = [
        json.dumps({"image": name, "polygon": POLYGON, "sentences": ["a thing"], "split": split})
        for name, split in zip(names, ["train", "train", "val", "test"], strict=True)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    root, images = tmp_path / "datasets", str(scenes / "images")
    arguments = ["--custom", str(tmp_path / "mine.jsonl"), "--images", images, "--name", "mine"]
    assert prepare(root, *arguments, "--verify") == 0
    shown = capsys.readouterr().out
    assert ["mine", "train", "2", "2", "2"] in [row[:5] for row in rows(shown)]
    assert "mine.jsonl, " in shown and "mine: verified" in shown
    before = snapshot(root)
    assert prepare(root, *arguments) == 0 and snapshot(root) == before


def test_lists_of_cris(scenes: Path, tmp_path: Path) -> None:
    images = sorted((scenes / "images").iterdir())[:2]
    for folder in ("anns", "masks"):
        (tmp_path / folder).mkdir()
    for number, (image, split) in enumerate(zip(images, ["train", "val"], strict=True)):
        mask = np.zeros_like(cv2.imread(str(image)))
        mask[10:40, 10:60] = 255
        cv2.imwrite(str(tmp_path / f"masks/{number}.png"), mask)
        row = {"bbox": [10, 10, 50, 30], "cat": 1, "segment_id": number, "img_name": image.name}
        row |= {"sentences": [{"idx": 0, "sent_id": 0, "sent": "a thing"}], "sentences_num": 1}
        (tmp_path / f"anns/{split}.json").write_text(json.dumps([row]))
    folders = ["--images", str(scenes / "images"), "--masks", str(tmp_path / "masks")]
    root = tmp_path / "datasets"
    arguments = ["--custom", str(tmp_path / "anns"), *folders, "--name", "medical", "--verify"]
    assert prepare(root, *arguments) == 0
    store = ReferStore(root, "medical")
    assert store.splits == ("train", "val") and store.index("val").area.tolist() == [30 * 50]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--dataset", "refcoco+"], "refcoco+/refs(unc).p is missing"),
        (["--dataset", "demo", "refcok"], "'refcok'"),
        (["--dataset", "refcok"], "did you mean 'refcoco'?"),
        (["--dataset", "mine"], "--custom"),
        ([], "--dataset"),
        (["--dataset", "demo", "--custom", "a"], "--dataset and --custom"),
        (["--custom", "a", "--images", "b"], "--name"),
        (["--custom", "a", "--name", "b"], "--images"),
        (["--custom", ".", "--name", "b", "--images", "b"], "--masks"),
        (["--custom", "a", "--name", "b", "--images", "b", "--masks", "c"], "--masks"),
        (["--custom", "a", "--name", "b", "--images", "b"], "a is missing"),
        (["--custom", __file__, "--name", "b", "--images", "none"], "the folder none"),
        (["--custom", "a", "--name", "b", "--images", "b", "--download"], "--download"),
        (["--custom", "a", "--name", "b", "--images", "b", "--accept-differences"], "--accept"),
        (["--custom", __file__, "--name", "refcoco", "--images", "."], "'refcoco'"),
        (["--dataset", "demo", "--name", "b"], "--name"),
        (["--dataset", "demo", "--masks", "b"], "--masks"),
        (["--dataset", "demo", "--images", "b"], "--images"),
        (["--dataset", "demo", "--workers", "0"], "--workers 0"),
        (["--dataset", "demo", "--pixels", "0"], "--pixels 0"),
        (["--dataset", "refcoco", "--images", "none"], "none has no JPEG images"),
        (["--dataset", "refcoco", "--images", "none", "--download"], "none has no JPEG images"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert prepare(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_changed_files_need_force(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(root, *SMALL) == 0
    path = root / "refcoco/instances.json"
    path.write_text(f"{path.read_text()} ")
    assert prepare(root, *SMALL) == 2
    assert "add --force to pack these" in capsys.readouterr().err
    assert prepare(root, *SMALL, "--force") == 0


def test_what_is_not_as_published_is_refused_by_split(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(root, "--dataset", "refcoco") == 2
    error = capsys.readouterr().err
    assert "train has 2" in error and "published are 42,404 and 120,624" in error
    assert "--accept-differences" in error and not (root / "lmdb/refcoco.lmdb").exists()


def test_a_folder_that_cannot_be_written_is_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert prepare(tmp_path / "file", "--dataset", "demo") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error and error.count("\n") == 1
