"""train.py, test.py and predict.py on several data sets at once: a tiny CLIP, a few steps."""

import json
import pickle
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import read_checkpoint
from engine.evaluator import predict_logits
from engine.loaders import open_tests, open_training
from engine.prediction import load
from utils.config import load_config
from utils.data.store import ReferStore
from utils.data.transforms import restore_logits
from utils.demo.writer import write_demo
from utils.files import read_json_lines
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import read_refs, refer_source

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)
TRAIN, TEST, PREDICT = (
    runpy.run_path(str(ROOT / f"{name}.py"))["main"] for name in ("train", "test", "predict")
)
SPLIT_OF = {"train": "train", "val": "test", "testA": "val", "testB": "train"}


def pack(root: Path, dataset: str, change: Callable[[list[dict]], list[dict]]) -> None:
    """The demo's references, changed, as another data set on the demo's images."""
    folder, source = root / dataset / "refcocog", refer_source(root, "demo")
    folder.mkdir(parents=True)
    refs = change(read_refs(source.files[0]))
    (folder / "refs(umd).p").write_bytes(pickle.dumps(refs, protocol=2))
    shutil.copy(source.files[1], folder)
    other = refer_source(root / dataset, "refcocog_u")
    pack_dataset(
        root,
        other._replace(
            dataset=dataset, images=source.images, image_store=source.image_store, published={}
        ),
    )


def other_splits(refs: list[dict]) -> list[dict]:
    """Some of what the demo is tested on is trained on here."""
    return [ref | {"split": SPLIT_OF[ref["split"]]} for ref in refs]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable) -> Path:
    """An experiment on the demo (17 tokens) and a data set on the same images (22 tokens)."""
    folder = tmp_path_factory.mktemp("mixed")
    root = folder / "datasets"
    write_demo(root / "demo", num_train_objects=24, num_test_objects=8)
    demo = refer_source(root, "demo")
    refs = read_refs(demo.files[0])
    for ref in refs:  # 20 tokens
        ref["sentences"][0]["sent"] = ref["sentences"][0]["raw"] = "star " * 18
    demo.files[0].write_bytes(pickle.dumps(refs, protocol=2))
    pack_dataset(root, demo)
    pack(root, "refcocog_u", other_splits)
    pack(root, "only-train", lambda refs: [ref | {"split": "train"} for ref in refs])
    config = tiny_config(
        "vit",
        {"train_positions": True},
        data={"dataset": ["demo", "refcocog_u"], "root": str(root), "max_words": None},
        train={"epochs": 2, "batch_size": 4, "lr": 1e-3, "precision": "fp32"},
        eval={"batch_size": 8},
        run={"folder": str(folder / "run"), "log_interval": 2},
    )
    path = folder / "tiny.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture(scope="module")
def run(config_file: Path) -> Path:
    """The folder of a finished run."""
    assert TRAIN(["--config", str(config_file)]) == 0
    return config_file.parent / "run"


@pytest.fixture(scope="module")
def results(run: Path) -> Path:
    """The folder of its results."""
    assert TEST(["--checkpoint", str(run / "best.safetensors"), "--pictures", "1"]) == 0
    return run / "test"


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_a_run_tells_and_records_what_it_trains_on(run: Path, config_file: Path) -> None:
    train_set = open_training(load_config(config_file))
    demo, other = train_set.parts
    assert (train_set.length, demo.max_tokens, other.max_tokens) == (22, 17, 22)
    assert sorted([demo.num_excluded > 0, other.num_excluded > 0]) == [False, True]
    story = read_checkpoint(run / "best.safetensors").metadata
    assert story["data"] == train_set.composition() and story["data"]["scored_images"] == "left out"
    assert story["data_fingerprint"] == train_set.fingerprint
    log = (run / "run.log").read_text()
    assert f"demo        {len(demo)} samples an epoch; left out: {demo.num_excluded} on" in log
    assert f"refcocog_u  {len(other)} samples an epoch; left out: {other.num_excluded} on" in log
    scored = [row for row in read_json_lines(run / "metrics.jsonl") if "val/oIoU" in row]
    assert len(scored) == 2
    for row in scored:
        assert row["val/count"] == row["demo/val/count"] + row["refcocog_u/val/count"]


def test_every_split_of_every_data_set_is_scored(results: Path, run: Path, capsys: Any) -> None:
    written = read(results)
    labels = ["demo/val", "demo/testA", "demo/testB", "refcocog_u/val", "refcocog_u/test"]
    assert list(written["splits"]) == labels
    names = {f"{label.replace('/', '-')}.{end}" for label in labels for end in ("jsonl", "png")}
    assert {path.name for path in results.iterdir()} == names | {"results.json"}
    assert written["data"]["dataset"] == ["demo", "refcocog_u"]
    assert set(written["data"]["fingerprint"]) == {"demo", "refcocog_u"}
    assert written["protocol"]["max_words"] == {"demo": 17, "refcocog_u": 22}
    assert written["protocol"]["padded_to"] == 22
    metadata = read_checkpoint(run / "best.safetensors").metadata
    assert written["checkpoint"]["data"] == metadata["data"]
    assert set(metadata["scores"]) == {"val", "demo/val", "refcocog_u/val"}
    for label in ("demo/val", "refcocog_u/val"):  # training and testing agree
        assert metadata["scores"][label].items() <= written["splits"][label].items()
    arguments = ["--checkpoint", str(run / "best.safetensors"), "--pictures", "0"]
    arguments += ["--output", str(results.parent / "some"), "--splits", "testB", "val"]
    assert TEST(arguments) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["data", "set", "split", "sentences"]
    pairs = [["demo", "testB"], ["demo", "val"], ["refcocog_u", "val"]]
    assert [row.split()[:2] for row in rows] == pairs
    assert {row.index(pair[1]) for row, pair in zip(rows, pairs, strict=True)} == {12}


@pytest.mark.parametrize("dataset", ["demo", "refcocog_u"])
def test_the_numbers_are_those_of_a_data_set_tested_alone(
    results: Path, run: Path, tmp_path: Path, dataset: str
) -> None:
    arguments = ["--checkpoint", str(run / "best.safetensors"), "--pictures", "0"]
    arguments += ["--output", str(tmp_path), "--opts", f"data.dataset={dataset}"]
    assert TEST(arguments) == 0
    alone, together = read(tmp_path), read(results)
    for split, scores in alone["splits"].items():
        expected = together["splits"][f"{dataset}/{split}"]
        assert scores == expected | {"seconds": scores["seconds"]}
        rows = (results / f"{dataset}-{split}.jsonl").read_text()
        assert (tmp_path / f"{split}.jsonl").read_text() == rows
    assert alone["data"]["fingerprint"] == together["data"]["fingerprint"][dataset]
    truncated = sum(scores["truncated_sentences"] for scores in alone["splits"].values())
    assert (truncated > 0) == (dataset == "demo"), "it keeps 17 tokens, the other 22"


def test_a_checkpoint_predicts_where_its_data_is_not(run: Path, tmp_path: Path) -> None:
    image = next((run.parent / "datasets/demo/images").iterdir())
    arguments = ["--checkpoint", str(run / "best.safetensors"), "--image", str(image)]
    arguments += ["--text", "a star", "--output", str(tmp_path), "--opts"]
    for dataset in ("[demo, refcocog_u]", "mine"):
        assert PREDICT([*arguments, "data.root=elsewhere", f"data.dataset={dataset}"]) == 0
    assert (tmp_path / "1-mask.png").exists()


def test_another_choice_of_data_is_another_run(run: Path, config_file: Path, capsys: Any) -> None:
    options = ["data.dataset=[refcocog_u, demo]", "data.allow_leakage=true"]
    assert TRAIN(["--config", str(config_file), "--opts", *options]) == 2
    error = capsys.readouterr().err
    assert "data.dataset is ['refcocog_u', 'demo'], was ['demo', 'refcocog_u']" in error
    assert "data.allow_leakage is True, was False" in error and "--fresh" in error


def test_older_runs_continue_and_other_data_under_the_same_names_is_refused(
    run: Path, config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    arguments = ["--config", str(config_file), "--opts", f"run.folder={folder}"]
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["config"]["data"]["allow_leakage"]  # as before there was this key
    torch.save(state, folder / "last.pt")
    assert TRAIN(arguments) == 0
    assert "this run is done" in capsys.readouterr().err
    torch.save(state | {"data_fingerprint": "0" * 64, "scored_step": 0}, folder / "last.pt")
    assert TRAIN(arguments) == 2
    assert "was trained on other data" in capsys.readouterr().err


def test_leakage_is_trained_on_when_asked_for(
    run: Path, config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    options = [f"run.folder={tmp_path}", "train.max_steps=1", "data.allow_leakage=true"]
    assert TRAIN(["--config", str(config_file), "--opts", *options]) == 0
    assert "images of val and test splits are trained on" in capsys.readouterr().err
    story, clean = (
        read_checkpoint(folder / "best.safetensors").metadata["data"] for folder in (tmp_path, run)
    )
    assert story["scored_images"] == "left in"
    root = run.parent / "datasets"
    for name, counts in story["datasets"].items():
        header = ReferStore(root, name).header["splits"]["train"]
        assert counts["references"] == header["refs"] and not counts["left_out_scored_image"]
        less = clean["datasets"][name]
        assert less["references"] + less["left_out_scored_image"] == header["refs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.dataset=[demo, refcocog_x]"], "did you mean 'refcocog_u'"),
        (["data.dataset=[demo, refcoco]"], "prepare_datasets.py --dataset refcoco --root"),
        (["eval.split=test", "eval.allow_test_split=true"], "data set 'demo' has no split 'test'"),
    ],
)
def test_training_explains_before_weights_are_read(
    config_file: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    options = [*options, f"run.folder={tmp_path}", "model.backbone.weights=missing.pt"]
    assert TRAIN(["--config", str(config_file), "--opts", *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--splits", "val", "testC"], "no data set has a split 'testC': demo has train, val, "),
        (["--opts", "data.dataset=only-train"], "only-train: no split but train; score that with"),
        (["--opts", "data.dataset=[demo, only-trian]"], "did you mean 'only-train'?"),
    ],
)
def test_testing_explains_what_there_is(
    run: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    base = ["--checkpoint", str(run / "best.safetensors"), "--output", str(tmp_path)]
    assert TEST([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_prediction_pads_as_training_and_testing_do(run: Path) -> None:
    """Bridger reads the padding, so that another length moves the logits."""
    checkpoint = read_checkpoint(run / "best.safetensors")
    predictor = load(checkpoint.path)
    options = {"precision": predictor.precision, "device": predictor.device}
    for dataset in open_tests(checkpoint.config, ["val"]).values():
        infos = map(dataset.info, range(len(dataset)))
        index = next(i for i, one in enumerate(infos) if one.num_tokens <= dataset.max_tokens)
        image, ids = dataset.image(index)[None], dataset.ids(index)[None]
        assert ids.shape == (1, 22)
        found = predictor.logits(dataset.original(index)[0], dataset.info(index).sentence)[0]
        padded, shorter = (
            predict_logits(predictor.segmenter, image, [ids[:, :length]], **options)[0][0]
            for length in (22, 17)
        )
        letterbox = dataset.letterbox(index)
        assert torch.equal(found, restore_logits(padded, letterbox))
        assert not torch.allclose(found, restore_logits(shorter, letterbox), atol=1e-5)
    alone = load_config(run / "config.yaml", ["data.dataset=demo"])
    assert checkpoint.sentence_length(alone) == 22, "that of training, whatever is scored"
