"""Reading, checking and writing configurations."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from utils.config import TEST_SPLITS, Config, EvalConfig, load_config, override_config
from utils.data.datasets import DATASETS, SPLITS
from utils.flat_options import KEYS
from utils.yaml_files import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(ValueError) as caught:
        load_config(path, overrides)
    assert not isinstance(caught.value, ValidationError)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def test_base_documents_every_key_with_its_default() -> None:
    text = (ROOT / "config/base.yaml").read_text()
    assert parse_yaml(text) == Config().to_dict()
    lines = [line for line in text.splitlines() if line.startswith(" ")]
    undocumented = [line for line in lines if "#" not in line and not line.endswith(":")]
    assert not undocumented
    # In the order of the schema, so that a written configuration reads like base.yaml.
    assert dump_yaml(parse_yaml(text)) == Config().to_yaml()


def test_names_of_data_sets_and_splits_are_those_of_the_data() -> None:
    assert get_args(EvalConfig.model_fields["split"].annotation) == SPLITS
    assert {"train", "val", *TEST_SPLITS} == set(SPLITS)
    assert f"# {', '.join(DATASETS)}," in (ROOT / "config/base.yaml").read_text()


# ten aliases of ten aliases of ...: 10 ** 9 entries
ALIASES = "a0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "written", "names", "longest"),
    [
        ("refcoco+", "refcoco+", ("refcoco+",), 17),
        ("mine", "mine", ("mine",), 17),
        ("[refcocog_u]", "refcocog_u", ("refcocog_u",), 22),
        ("[refcoco,refcoco+]", ["refcoco", "refcoco+"], ("refcoco", "refcoco+"), 17),
        ("[mine, refcocog_g]", ["mine", "refcocog_g"], ("mine", "refcocog_g"), 22),
    ],
)
def test_data_sets_are_a_name_or_several(
    tmp_path: Path, text: str, written: object, names: tuple[str, ...], longest: int
) -> None:
    config = load_config(write(tmp_path, ""), [f"data.dataset={text}"])
    assert config.data.dataset == written
    assert (config.data.datasets, config.data.longest_sentence) == (names, longest)
    assert load_config(write(tmp_path, config.to_yaml())) == config
    assert load_config(write(tmp_path, ""), ["data.max_words=9"]).data.longest_sentence == 9


def test_file_over_its_bases_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sub = tmp_path / "sub"
    sub.mkdir()
    text = "train: {lr: 1e-3, epochs: 7}\ndata: {workers: 1}\nmodel: {bridges: [{name: a}]}"
    write(tmp_path, text, "base.yaml")
    write(sub, "base: ../base.yaml\ntrain: {epochs: 8}", "base.yaml")
    path = write(sub, "base: base.yaml\ntrain: {seed: 3}\nmodel: {bridges: [{name: b}]}")
    monkeypatch.chdir("/")  # a base is relative to its file
    config = load_config(path)
    assert (config.train.lr, config.train.epochs, config.train.seed) == (1e-3, 8, 3)
    assert (config.data.workers, config.train.batch_size) == (1, 32)
    assert config.model.bridges == [{"name": "b"}]
    write(tmp_path, "base: sub/base.yaml", "base.yaml")
    (line,) = mistakes(path)
    assert "base.yaml: base: 'sub/base.yaml'" in line


def test_no_experiment_repeats_what_its_base_has() -> None:
    paths = sorted((ROOT / "config").rglob("*.yaml"))
    bases = {path: load_config(path).to_dict() for path in paths if path.name.startswith("base")}
    for path in paths:
        tree = parse_yaml(path.read_text())
        if "base" in tree:
            base = bases[(path.parent / tree.pop("base")).resolve()]
            assert not list(repeated(tree, base)), path


def repeated(tree: dict[str, Any], base: dict[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            yield from repeated(value, base[key])
        elif key in base and base[key] == value:
            yield key


def test_empty_file_and_empty_sections_change_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()
    assert load_config(write(tmp_path, "train:\nmodel: {decoder: }\n")) == Config()


def test_null_takes_the_side_network_away_and_an_empty_section_nothing(tmp_path: Path) -> None:
    write(tmp_path, "model: {side: {name: gst, dim: 48}, decoder: {dim: 64}}", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nmodel: {decoder: }")
    model = load_config(path, ["model.side.dim=24"]).model
    assert model.side == {"name": "gst", "dim": 24} and model.decoder.dim == 64
    assert load_config(path, ["model.side=null"]).model.side is None
    assert load_config(write(tmp_path, "base: base.yaml\nmodel: {side: null}")).model.side is None
    assert load_config(path, ["model.decoder="]).model.decoder.dim == 64


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.0e-4", ".1e-3", "0.0001", "10_0e-6"])
def test_exponents_are_floats(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, f"train: {{lr: {text}}}")).train.lr == pytest.approx(1e-4)
    lr = load_config(write(tmp_path, "train: {lr: 1}")).train.lr
    assert lr == 1.0 and isinstance(lr, float)


def test_overrides_are_yaml_and_reach_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {bridges: [{name: bridger, dim: 64, heads: 8}]}")
    options = ["model.bridges.0.dim=32", "model.bridges.0.stages=[0, 2]", "train.lr=1e-4"]
    options += ["data.max_words=22", "run.folder=runs/a=b", "run.wandb=off"]
    config = load_config(path, [*options, "model.backbone={name: RN50}"])
    assert config.model.bridges == [{"name": "bridger", "dim": 32, "heads": 8, "stages": [0, 2]}]
    assert (config.train.lr, config.data.max_words) == (1e-4, 22)
    assert (config.run.folder, config.run.wandb) == ("runs/a=b", "off")
    assert config.model.backbone.name == "RN50"
    assert load_config(path, ["model.bridges=[]", "data.max_words="]).model.bridges == []


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.batchsize=3", ["train: ", "'batchsize'", "'batch_size'"]),
        ("trian.lr=3", ["'trian'", "'train'"]),
        ("train.lr", ["section.key=value"]),
        ("train..lr=3", ["section.key=value"]),
        ("train.lr.x=3", ["0.0001"]),
        ("train.lr.x.y=3", ["0.0001"]),
        ("model.bridges.1.dim=3", ["1 entries"]),
        ("model.bridges.1={name: x}", ["1 entries"]),
        ("model.bridges.-1.dim=3", ["1 entries"]),
        ("train.lr=[", ["YAML"]),
        ("train.lr={a: 1, a: 2}", ["'a'"]),
        ("train=3", ["train: 3", "epochs, max_steps"]),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, parts: list[str]) -> None:
    path = write(tmp_path, "model: {bridges: [{name: bridger}]}")
    (line,) = mistakes(path, override)
    assert line.startswith(f"--opts {override}: ") and all(part in line for part in parts)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    write(tmp_path, "train: {epochs: 0, batch_size: 32}\neval: {threshold: 1.0}", "base.yaml")
    path = write(
        tmp_path,
        "base: base.yaml\ntrain: {lr: fast, batchsize: 3, micro_batch: 5}\ndata: {dataset: []}",
    )
    lines = mistakes(path, "run.wandb=of", "train.milestones=[9, 3]")
    starts = [
        "data.dataset: []",
        "train.epochs: 0",
        "train.lr: 'fast'",
        "train: no key 'batchsize'",
    ]
    starts = [f"run.yaml: {start}" for start in [*starts, "train.micro_batch: 5"]]
    starts += ["run.yaml: eval.threshold: 1.0", "--opts run.wandb=of: run.wandb: 'of'"]
    starts += ["--opts train.milestones=[9, 3]: train.milestones: [9, 3]"]
    assert len(lines) == len(starts)
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert len(mistakes(path, "train.lr", "model.bridges.1.dim=3")) == 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("TRAIN: {batch_size: 16}", ["'TRAIN'", "CRIS and ETRIS"]),
        ("model: {decoder: {neck: fpn, project_sentence: true}}", ["project_sentence", "fpn"]),
        ("model: {decoder: {neck: plain, project_sentence: true}}", ["project_sentence", "plain"]),
        ("batch_size: 3", ["top level", "'batch_size'", "'train.batch_size'"]),
        ("run: {zzz: 3}", ["run: ", "'zzz'", "folder, log_interval"]),
        ("model: {decoder: {dims: 3}}", ["model.decoder: ", "'dims'", "'dim'"]),
        ("model: {bridges: [{dim: 64}]}", ["model.bridges.0: {'dim': 64}", "'name'"]),
        ("model: {bridges: {name: a}}", ["model.bridges: {'name': 'a'}", "list"]),
        ("model: {bridges: [{name: a, lr_scale: 0}]}", ["model.bridges.0: ", "lr_scale 0"]),
        ("model: {side: {dim: 3}}", ["model.side: {'dim': 3}", "'name'"]),
        ("model: {side: 3}", ["model.side: 3"]),
        ("model: {decoder: {dim: 100}}", ["model.decoder.heads: 8", "(100)"]),
        ("eval: {split: testA}", ["eval.split: 'testA'", "allow_test_split"]),
        ("eval: {metric: IoU}", ["eval.metric: 'IoU'", "'oIoU'"]),
        ("eval: {threshold: 0}", ["eval.threshold: 0", "greater than 0"]),
        ("train: {max_steps: 10, warmup_steps: 10}", ["train.warmup_steps: 10", "max_steps (10)"]),
        ("train: {milestones: [0]}", ["train.milestones.0: 0"]),
        ("train: {lr: true}", ["train.lr: True"]),
        ("train: {epochs: true}", ["train.epochs: True"]),
        ("train: {lr: '1e-4'}", ["train.lr: '1e-4'"]),
        ("train: {epochs: 2.5}", ["train.epochs: 2.5"]),
        ("train: {lr: .inf}", ["train.lr: inf"]),
        ("data: {dataset: 3}", ["data.dataset: 3"]),
        ("data: {dataset: ''}", ["data.dataset: ''"]),
        ("data: {dataset: [demo, 3]}", ["data.dataset: ['demo', 3]"]),
        ("data: {dataset: {a: b}}", ["data.dataset: {'a': 'b'}"]),
        ("data: {dataset: [a, b, a]}", ["data.dataset: ['a', 'b', 'a']", "duplicate a"]),
        ("data: {allow_leakage: 1}", ["data.allow_leakage: 1"]),
        ("data: {max_words: 78}", ["data.max_words: 78", "77"]),
        ("data: {image_size: 8}", ["data.image_size: 8", "16"]),
        ("data: {image_size: 100000}", ["data.image_size: 100000", "4096"]),
        ("model: {decoder: {dim: 1000000000}}", ["model.decoder.dim: 1000000000", "16384"]),
        ("model: {decoder: {layers: 100000}}", ["model.decoder.layers: 100000", "256"]),
        ("train: {seed: 9223372036854775808}", ["train.seed: 9223372036854775808"]),
        ("train: {lr: 1, lr: 2}", ["line 1: ", "'lr'"]),
        ("train:\n  3: 4", ["line 2: ", "'3'"]),
        ("? [a]\n: 4", ["line 1: ", "unhashable"]),
        ("train: [", ["line 1: "]),
        ("train: \t{", ["YAML"]),
        ("a: \x00", ["YAML"]),
        ("train: {seed: !!python/name:os.system }", ["python/name"]),
        ("data: {root: 2024-13-45}", ["month"]),
        ("a: !!int ''", ["YAML"]),
        ("a: !!bool x", ["YAML"]),
        ("a: !!timestamp x", ["YAML"]),
        ("a: " + 2000 * "[", ["deeply"]),
        ("a: &a [*a]", ["100,000"]),
        (ALIASES, ["100,000"]),
        ("- a", ["['a']"]),
        ("base: 3", ["base: 3"]),
        ("base: runn.yaml", ["runn.yaml: ", "No such file", "run.yaml?"]),
        ("base: run.yaml", ["base: 'run.yaml'"]),
    ],
)
def test_mistakes_in_files(tmp_path: Path, text: str, parts: list[str]) -> None:
    (line,) = mistakes(write(tmp_path, text))
    assert all(part in line for part in ["run.yaml", *parts])


def test_missing_or_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    reasons = {"absent.yaml": "No such file", "": "Is a directory", "binary.yaml": "UTF-8"}
    for name, reason in reasons.items():
        (line,) = mistakes(tmp_path / name)
        assert name in line and reason in line


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config().train.lr = 1.0


def test_overrides_do_not_leak_into_the_next_load(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {bridges: [{name: bridger, dim: 64}]}")
    load_config(path, ["model.bridges.0.dim=3", "train.milestones.0=3"])
    assert load_config(path).model.bridges == [{"name": "bridger", "dim": 64}]
    assert Config().train.milestones == [35]


def test_other_sources_are_named() -> None:
    with pytest.raises(ValueError, match=r"best\.safetensors: train: no key 'lrr'"):
        Config.from_dict({"train": {"lrr": 1}}, source="best.safetensors")
    config = override_config(Config(), ["train.lr=1e-3"], source="best.safetensors")
    assert (config.train.lr, Config().train.lr) == (1e-3, 1e-4)
    with pytest.raises(ValueError, match=r"--opts train\.epochs=0: train\.epochs: 0"):
        override_config(config, ["train.epochs=0"], source="best.safetensors")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=40)
@given(values=VALUES, name=st.text(max_size=8), folder=st.text(max_size=8) | st.just("1e-4"))
def test_round_trip(values: object, name: str, folder: str) -> None:
    config = Config.from_dict(
        {"model": {"bridges": [{"name": name, "options": values}]}, "run": {"folder": folder}}
    )
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(parse_yaml(config.to_yaml())) == config
    assert config.to_yaml() == Config.from_dict(config.to_dict()).to_yaml()


def test_written_yaml_loads_from_a_file(tmp_path: Path) -> None:
    options = [
        "train.lr=1e-5",
        "run.folder='1e5'",
        "eval.allow_test_split=true",
        "eval.split=testA",
    ]
    config = load_config(ROOT / "config/etris_vitb16.yaml", options)
    assert config.eval.split == "testA"
    assert load_config(write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize(
    ("words", "equivalents"),
    [
        (["TRAIN.batch_size", "16"], ["--opts train.batch_size=16"]),
        (["TRAIN.base_lr=1e-3"], ["--opts train.lr=1e-3"]),
        (["TEST.test_split", "val-test"], ["test.py --splits val"]),
        (["TRAIN.nhead", "4", "DATA.dataset", "refcoco"], ["heads=4", "data.dataset=refcoco"]),
        (["TRAIN.lr_multi", "0.1"], ["train.backbone_lr_scale=0.1"]),
        (["Distributed.rank", "0"], ["torchrun"]),
        (["TRAIN.fpn_in", "[512, 1024, 1024]"], ["config/base.yaml"]),
    ],
)
def test_options_of_cris_and_etris_are_refused_with_their_equivalents(
    tmp_path: Path, words: list[str], equivalents: list[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0].partition("=")[0])) as caught:
        load_config(write(tmp_path, ""), words)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(equivalents)
    assert all(part in line for part, line in zip(equivalents, lines, strict=True))


def test_every_equivalent_is_a_key() -> None:
    for key in KEYS.values():
        section: Any = Config().to_dict()
        for part in key.split(".") if not key.startswith("model.bridges.") else ["model"]:
            assert part in section, key
            section = section[part]
