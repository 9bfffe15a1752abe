"""The page of a run: whole, half done, beside another, and with text that would be code."""

import base64
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engine.checkpoint import save_checkpoint
from engine.loaders import open_tests
from engine.metrics import Record, metrics_from_records
from model import build_segmenter
from tools import report
from utils.config import Config
from utils.data.dataset import ReferDataset
from utils.demo.writer import write_demo
from utils.files import sha256_of
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import refer_source

EVIL = "<script>alert(1)</script> \"'&amp; {{ 7 * 7 }}"
Run = Callable[..., Path]
# sizes of a CLIP without a name are read from its file, which torch finds odd on "meta"
pytestmark = pytest.mark.filterwarnings("ignore:.*a no-op:UserWarning")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]) -> Config:
    """An experiment on a packed demo of 4 + 3 x 4 objects."""
    root = tmp_path_factory.mktemp("datasets")
    write_demo(root / "demo", num_train_objects=4, num_test_objects=4)
    pack_dataset(root, refer_source(root, "demo"))
    return tiny_config(
        "vit", data={"dataset": "demo", "root": str(root)}, train={"precision": "fp32"}
    )


@pytest.fixture
def run(tmp_path: Path, config: Config) -> Run:
    """``run("a", ious=(0.2, 0.9))``: a folder that was tested with these IoUs, in turn."""

    def make(name: str, *, ious: Sequence[float] = (), sentence: str | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(config.to_yaml())
        rows = [
            {"step": step, "train/loss": 1 / step, "train/lr": 1e-3, "train/grad_norm": 1.0}
            for step in (10, 20)
        ]
        rows.append({"step": 20, "val/oIoU": 40.0, "val/mIoU": 41.0})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines + '{"step": 30, "tr')
        torch.manual_seed(0)
        segmenter = build_segmenter(config.model, image_size=64, max_tokens=9)
        extra = {"provenance": {"command": EVIL, "commit": "c0ffee"}}
        save_checkpoint(folder / "best.safetensors", segmenter, config, extra=extra)
        if ious:
            add_results(folder, config, ious, sentence)
        return folder

    return make


def add_results(folder: Path, config: Config, ious: Sequence[float], sentence: str | None) -> None:
    (folder / "test").mkdir()
    sets = open_tests(config, [])
    splits = {}
    for split, dataset in sets.items():
        records = []
        for index in range(len(dataset)):
            info = dataset.info(index)
            hit = round(1000 * ious[index % len(ious)])
            text = sentence or info.sentence
            records.append(Record(index, info.ref_id, info.sentence_id, text, hit, 1000))
        splits[split] = metrics_from_records(records).to_dict()
        rows = "".join(json.dumps(asdict(record)) + "\n" for record in records)
        (folder / "test" / f"{split}.jsonl").write_text(rows)
    results = {
        "splits": splits,
        "protocol": {},
        "data": {"fingerprint": next(iter(sets.values())).fingerprint},
        "dirty": False,
        "checkpoint": {"sha256": sha256_of(folder / "best.safetensors")},
        "config": config.to_dict(),
    }
    (folder / "test" / "results.json").write_text(json.dumps(results))


def page_of(*folders: Path, options: Sequence[object] = ()) -> str:
    assert report.main([str(argument) for argument in (*folders, *options)]) == 0
    name = "-".join(["report", *(folder.name for folder in folders[1:])])
    return (folders[0] / f"{name}.html").read_text("utf-8")


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    assert report.main([str(a) for a in argv]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and len(err.splitlines()) == 1
    return err


def test_a_run_on_one_page(run: Run, config: Config):
    folder = run("tiny", ious=(0.0, 0.5, 1.0))
    page = page_of(folder, options=["--gallery", 2])
    text = text_of(page)
    results = json.loads((folder / "test" / "results.json").read_text())
    for split in ("val", "testA", "testB"):
        score = results["splits"][split]
        assert re.search(rf"{split} tiny {score['oIoU']:.2f} [\d.]+ to [\d.]+ ", text)
        assert page.count(f'data-split="{split}"') == 6
    assert page.count("<svg") == 5 + 3 and "3 to 10 % of the picture" in text
    assert "step 20" in text and "c0ffee" in text and "all that trains" in text
    assert "No test results" not in text and 'class="notes"' not in page
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert outside and all(link.startswith(("#", "data:image/jpeg;")) for link in outside)
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")


def test_pictures_are_small_and_iou_is_that_of_the_mask_shown(run: Run):
    page = page_of(run("tiny", ious=(0.3,)), options=["--gallery", 1])
    ious = [float(value) for value in re.findall(r'data-iou="([^"]+)"', page)]
    assert ious == sorted(ious) and len(ious) == 9 and set(ious) != {30.0}
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(uris) == 3 * len(ious)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(uris[1]), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert max(image.shape) == 240 and len(uris[1]) < 40_000


def test_a_run_that_is_going(run: Run):
    folder = run("going")
    page = page_of(folder, options=["--gallery", 1])
    assert "No test results yet" in text_of(page) and 'id="scores"' not in page
    assert page.count('data-kind="random"') == page.count('data-split="val"') == 3
    assert page.count("<svg") == 5
    (folder / "best.safetensors").unlink()
    (folder / "metrics.jsonl").unlink()
    page = page_of(folder)
    assert "best.safetensors does not exist yet" in text_of(page) and "<svg" not in page


def test_two_runs_side_by_side(run: Run):
    first, second = run("one", ious=(0.2, 0.9, 0.5)), run("two", ious=(0.6, 0.1, 0.505))
    page = page_of(first, second, options=["--gallery", 1])
    text = text_of(page)
    num = int(re.search(r"val one .*? (\d+) val two", text)[1])
    turns = [len(range(turn, num, 3)) for turn in range(3)]
    assert re.search(rf"val -[\d.]+ \S+ to \S+ -\S+ .{{0,30}} {' '.join(map(str, turns))} ", text)
    assert page.count('data-kind="improved"') == page.count('data-kind="got worse"') == 3
    assert page.count("<img") == 4 * page.count("<article")
    assert "90.0 10.0" in text and "20.0 60.0" in text


def test_text_stays_text(run: Run, monkeypatch: pytest.MonkeyPatch):
    info = ReferDataset.info
    monkeypatch.setattr(ReferDataset, "info", lambda *a: info(*a)._replace(sentence=EVIL))
    names = ("<i>one", '"two"')
    folders = [run(name, ious=(0.1 * i, 0.5), sentence=EVIL) for i, name in enumerate(names)]
    page = page_of(*folders, options=["--gallery", 1])
    assert page.count("<script") == page.count("</script") == 1 and "<i>" not in page
    assert text_of(page).count(EVIL) > 12
    assert all(f'alt="{c} of &lt;script&gt;' in page for c in ("image", "truth"))


def test_a_report_without_its_data_says_so(run: Run, tmp_path: Path):
    page = page_of(run("tiny", ious=(0.4,)), options=["--root", tmp_path])
    assert "No sizes of objects and no pictures: " in text_of(page)
    assert "size of the object" not in page and "length of the sentence" in page


def test_files_that_do_not_belong_together_are_reported(run: Run) -> None:
    folder = run("tiny", ious=(0.4,))
    path = folder / "test" / "val.jsonl"
    path.write_text(path.read_text().replace('"intersection": 400', '"intersection": 401'))
    (folder / "test" / "testA.jsonl").unlink()
    results = folder / "test" / "results.json"
    results.write_text(results.read_text().replace('"sha256": "', '"sha256": "0'))
    notes = page_of(folder, options=["--gallery", 1]).partition("</ul>")[0]
    assert all(name in notes for name in ("val.jsonl", "testA.jsonl", "its best checkpoint is not"))


def test_mistakes(run: Run, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    folder, other = run("tiny", ious=(0.4,)), run("other", ious=(0.4,))
    before = sorted(folder.rglob("*"))
    (tmp_path / "x.html").mkdir()
    for argv, value in (
        ([tmp_path / "gone"], "config.yaml"),
        ([folder, folder], str(folder)),
        ([folder, folder, folder], "3 runs"),
        ([folder, "--gallery", -1], "--gallery -1"),
        ([folder, "--output", tmp_path / "a" / "b.html"], str(tmp_path / "a")),
        ([folder, "--output", tmp_path / "x.pdf"], "x.pdf"),
        ([folder, "--output", tmp_path / "x.html"], "x.html"),
    ):
        assert value in refused(capsys, *argv)
    results, rows = other / "test" / "results.json", folder / "test" / "val.jsonl"
    values = json.loads(results.read_text())
    for path, text, named in (
        (results, json.dumps(values | {"data": {"fingerprint": "f"}}), "tiny (demo) and other"),
        (results, "{}", str(results)),
        (folder / "metrics.jsonl", "{}\nstep 10\n", "line 2"),
        (rows, '{"index": 1}\n', str(rows)),
    ):
        path.write_text(text)
        assert named in refused(capsys, folder, other)
    assert sorted(folder.rglob("*")) == before


def test_the_gallery_filters_in_a_browser(run: Run, chromium: str, tmp_path: Path):
    folder = run("tiny", ious=(0.0, 0.5, 1.0))
    page_of(folder, options=["--gallery", 2])

    def shown(choice: str) -> tuple[str, list[str]]:
        """What the page counts, and the splits of the cases that are not hidden."""
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
        address = f"{(folder / 'report.html').as_uri()}#{choice}"
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        count = re.search(r"<output>(.*?)</output>", done.stdout)
        articles = re.findall(r"<article([^>]*)>", done.stdout)
        visible = [one for one in articles if "hidden" not in one]
        return count[1], re.findall(r'data-split="(\w+)"', " ".join(visible))

    assert shown("")[0] == "18 of 18"
    assert shown("split=testA") == ("6 of 18", ["testA"] * 6)
    assert shown("from=101")[0] == shown("text=nobody+says+this")[0] == "0 of 18"
