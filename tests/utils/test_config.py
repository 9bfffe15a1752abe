"""Reading, checking and writing configurations."""

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from utils.config import TEST_SPLITS, Config, EvalConfig, load_config
from utils.data.datasets import DATASETS, SPLITS
from utils.flat_options import KEYS
from utils.yaml_files import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "config").rglob("*.yaml"))


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ValueError) as caught:
        load_config(path, overrides)
    assert not isinstance(caught.value, ValidationError)
    return str(caught.value).splitlines()


def mistake(folder: Path, text: str, *overrides: str) -> str:
    lines = mistakes(write(folder, text), *overrides)
    assert len(lines) == 1, lines
    return lines[0].replace(f"{folder}/", "")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "config")))
def test_every_config_loads(path: Path) -> None:
    load_config(path)


def test_base_documents_every_key_with_its_default() -> None:
    text = (ROOT / "config/base.yaml").read_text()
    assert parse_yaml(text) == Config().to_dict()
    lines = [line for line in text.splitlines() if line.startswith(" ")]
    undocumented = [line for line in lines if "#" not in line and not line.endswith(":")]
    assert not undocumented
    # In the order of the schema, so that a written configuration reads like base.yaml.
    assert dump_yaml(parse_yaml(text)) == Config().to_yaml()


def test_splits_are_those_of_the_data_path() -> None:
    assert get_args(EvalConfig.model_fields["split"].annotation) == SPLITS
    assert {"train", "val", *TEST_SPLITS} == set(SPLITS)


def test_base_names_the_published_data_sets() -> None:
    text = (ROOT / "config/base.yaml").read_text()
    comment = next(line for line in text.splitlines() if line.startswith("  dataset:"))
    assert f"# {', '.join(DATASETS)}," in comment


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


def test_published_rates() -> None:
    rows = [("rn50", 56, 4, 1e-4), ("rn101", 64, 4, 1e-4), ("vitb16", 128, 8, 1e-3)]
    for name, dim, heads, rate in rows:
        config = load_config(ROOT / f"config/etris_{name}.yaml")
        assert config.model.bridges == [{"name": "bridger", "dim": dim, "heads": heads}]
        assert config.train.lr * config.train.encoder_lr_scale == pytest.approx(rate)
        assert (config.train.lr, config.train.batch_size, config.train.epochs) == (1e-4, 32, 50)
        assert (config.train.milestones, config.train.gamma) == ([35], 0.1)
        assert (config.data.image_size, config.data.dataset) == (416, "refcoco")


@pytest.mark.parametrize("name", ["cris_rn50", "cris_rn101"])
def test_published_rates_of_cris(name: str) -> None:
    config = load_config(ROOT / f"config/{name}.yaml")
    train, decoder = config.train, config.model.decoder
    assert config.model.backbone.tuning == "full"
    assert (decoder.neck, decoder.layers, decoder.heads, decoder.feedforward) == ("fpn", 3, 8, 2048)
    assert (train.lr, train.backbone_lr_scale, train.batch_size, train.epochs) == (
        1e-4,
        0.1,
        64,
        50,
    )
    assert (train.milestones, train.gamma, train.weight_decay) == ([35], 0.1, 0)


@pytest.mark.parametrize("neck", ["fpn", "plain"])
def test_an_option_of_another_neck_is_refused(tmp_path: Path, neck: str) -> None:
    options = [f"model.decoder.neck={neck}", "model.decoder.project_sentence=true"]
    with pytest.raises(ValueError, match=rf"project_sentence.*leave it out with neck: {neck}"):
        load_config(write(tmp_path, ""), options)


def test_released_behaviours() -> None:
    for name in ("rn50", "rn101", "vitb16"):
        config = load_config(ROOT / f"config/etris_{name}_released.yaml")
        assert config.model.bridges[0]["dim"] == 64
        assert config.model.train_positions and config.model.decoder.project_sentence
        assert config.train.encoder_lr_scale == 1
        is_vit = name == "vitb16"
        assert config.model.backbone_norm == ("frozen" if is_vit else "batch")
        assert config.model.bridges[0]["heads"] == (8 if is_vit else 4)
        assert config.model.decoder.train_connect == is_vit
        assert config.model.decoder.initial_kernel == "default"
        assert (config.train.target, config.train.precision) == ("nearest", "fp16")
        scoring = config.eval
        assert (scoring.protocol, scoring.precision, scoring.metric) == ("released", "fp32", "mIoU")
        assert scoring.first_sentences and scoring.threshold == 0.35


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("etris_rn*.yaml")), ids=str)
def test_bridger_of_every_resnet_has_the_released_heads(path: Path) -> None:
    (bridger,) = load_config(path).model.bridges
    assert bridger["heads"] == 4


def test_a_base_may_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "train: {lr: 1e-3, epochs: 7}\ndata: {workers: 1}", "base.yaml")
    write(tmp_path / "sub", "base: ../base.yaml\ntrain: {epochs: 8}", "base.yaml")
    path = write(tmp_path / "sub", "base: base.yaml\ntrain: {seed: 3}")
    config = load_config(path)
    assert (config.train.lr, config.train.epochs, config.train.seed) == (1e-3, 8, 3)
    assert config.data.workers == 1
    write(tmp_path, "base: sub/base.yaml", "base.yaml")
    with pytest.raises(ValueError, match=r"base\.yaml: base: .*leads back"):
        load_config(path)


def test_file_over_base_over_defaults(tmp_path: Path) -> None:
    write(tmp_path, "train: {lr: 1e-3, epochs: 7}\nmodel: {bridges: [{name: a}]}", "base.yaml")
    path = write(tmp_path, "base: base.yaml\ntrain: {epochs: 9}\nmodel: {bridges: [{name: b}]}")
    config = load_config(path)
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (1e-3, 9, 32)
    assert config.model.bridges == [{"name": "b"}]


def test_base_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "train: {seed: 3}", "base.yaml")
    path = write(tmp_path / "sub", "base: ../base.yaml")
    monkeypatch.chdir("/")
    assert load_config(path).train.seed == 3


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
    assert "model.side: {'dim': 3}: needs a 'name'" in mistake(tmp_path, "model: {side: {dim: 3}}")
    assert "model.side: 3: should be a valid dictionary" in mistake(tmp_path, "model: {side: 3}")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.0e-4", ".1e-3", "0.0001", "10_0e-6"])
def test_exponents_are_floats(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, f"train: {{lr: {text}}}")).train.lr == pytest.approx(1e-4)


def test_int_passes_for_float_but_bool_and_text_do_not(tmp_path: Path) -> None:
    lr = load_config(write(tmp_path, "train: {lr: 1}")).train.lr
    assert lr == 1.0 and isinstance(lr, float)
    assert "train.lr: True" in mistake(tmp_path, "train: {lr: true}")
    assert "train.epochs: True" in mistake(tmp_path, "train: {epochs: true}")
    assert "train.lr: '1e-4'" in mistake(tmp_path, "train: {lr: '1e-4'}")
    assert "train.epochs: 2.5" in mistake(tmp_path, "train: {epochs: 2.5}")
    assert "train.lr: inf" in mistake(tmp_path, "train: {lr: .inf}")


def test_overrides_are_yaml_and_reach_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {bridges: [{name: bridger, dim: 64, heads: 8}]}")
    config = load_config(
        path,
        [
            "model.bridges.0.dim=32",
            "model.bridges.0.stages=[0, 2]",
            "train.lr=1e-4",
            "data.max_words=22",
            "run.folder=runs/a=b",
            "run.wandb=off",
            "model.backbone={name: RN50}",
        ],
    )
    assert config.model.bridges == [{"name": "bridger", "dim": 32, "heads": 8, "stages": [0, 2]}]
    assert (config.train.lr, config.data.max_words) == (1e-4, 22)
    assert (config.run.folder, config.run.wandb) == ("runs/a=b", "off")
    assert config.model.backbone.name == "RN50"
    assert load_config(path, ["model.bridges=[]", "data.max_words="]).model.bridges == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batchsize=3", "train: no key 'batchsize' (value 3); did you mean 'batch_size'?"),
        ("trian.lr=3", "no key 'trian'"),
        ("train.lr", "should read section.key=value"),
        ("train..lr=3", "should read section.key=value"),
        ("train.lr.x=3", "train.lr is 0.0001, which has no keys"),
        ("train.lr.x.y=3", "train.lr.x: no such key"),
        ("model.bridges.1.dim=3", "model.bridges.1: the list has 1 entries, counted from 0"),
        ("model.bridges.1={name: x}", "the list has 1 entries"),
        ("model.bridges.-1.dim=3", "the list has 1 entries"),
        ("train.lr=[", "not valid YAML"),
        ("train.lr={a: 1, a: 2}", "key 'a' stands twice"),
        ("train=3", "should be a section with the keys epochs, max_steps"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, expected: str) -> None:
    line = mistake(tmp_path, "model: {bridges: [{name: bridger}]}", override)
    assert line.startswith(f"--opts {override}: ") and expected in line


def test_all_mistakes_at_once_each_with_its_file(tmp_path: Path) -> None:
    base = write(
        tmp_path, "train: {epochs: 0, batch_size: 32}\neval: {threshold: 1.0}", "base.yaml"
    )
    path = write(
        tmp_path,
        "base: base.yaml\ntrain: {lr: fast, batchsize: 3, micro_batch: 5}\ndata: {dataset: []}",
    )
    lines = mistakes(path, "run.wandb=of", "train.milestones=[9, 3]")
    assert sorted(lines) == sorted(
        [
            f"{base}: train.epochs: 0: should be greater than or equal to 1",
            f"{base}: eval.threshold: 1.0: should be less than 1",
            f"{path}: train.lr: 'fast': should be a valid number",
            f"{path}: train: no key 'batchsize' (value 3); did you mean 'batch_size'?",
            f"{path}: train.micro_batch: 5: train.batch_size (32) must be a multiple of it",
            f"{path}: data.dataset: []: should be a name or a list of names, such as "
            "[refcoco, refcoco+]",
            "--opts run.wandb=of: run.wandb: 'of' is not one of its values; did you mean 'off'?",
            "--opts train.milestones=[9, 3]: train.milestones: [9, 3]: "
            "epochs must ascend, each once, such as [35, 45]",
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_size: 3", "run.yaml: top level: no key 'batch_size' (value 3); did you mean"),
        ("run: {zzz: 3}", "run: no key 'zzz' (value 3); known keys: folder, log_interval"),
        (
            "model: {decoder: {dims: 3}}",
            "model.decoder: no key 'dims' (value 3); did you mean 'dim'",
        ),
        ("model: {bridges: [{dim: 64}]}", "model.bridges.0: {'dim': 64}: needs a 'name'"),
        ("model: {bridges: {name: a}}", "model.bridges: {'name': 'a'}: should be a valid list"),
        ("model: {decoder: {dim: 100}}", "model.decoder.dim (100) must be a multiple of the heads"),
        ("eval: {split: testA}", "eval.split: 'testA': a test split must not choose"),
        ("eval: {metric: IoU}", "'IoU' is not one of its values; did you mean 'oIoU'?"),
        ("eval: {threshold: 0}", "eval.threshold: 0: should be greater than 0"),
        ("train: {max_steps: 10, warmup_steps: 10}", "train.warmup_steps: 10: must be less than"),
        ("train: {milestones: [0]}", "train.milestones.0: 0: should be greater"),
        ("data: {dataset: 3}", "run.yaml: data.dataset: 3: should be a name or a list of names"),
        ("data: {dataset: ''}", "run.yaml: data.dataset: '': should be a name or a list of names"),
        ("data: {dataset: [demo, 3]}", "data.dataset: ['demo', 3]: should be a name or a list"),
        ("data: {dataset: {a: b}}", "data.dataset: {'a': 'b'}: should be a name or a list"),
        ("data: {dataset: [a, b, a]}", "['a', 'b', 'a']: a stands twice; name each data set once"),
        ("data: {allow_leakage: 1}", "run.yaml: data.allow_leakage: 1: should be a valid boolean"),
        ("data: {max_words: 78}", "data.max_words: 78: should be less than or equal to 77"),
        ("train: {lr: 1, lr: 2}", "run.yaml: line 1: key 'lr' stands twice"),
        ("train:\n  3: 4", "run.yaml: line 2: '3' is not text and cannot be a key; quote"),
        ("? [a]\n: 4", "run.yaml: line 1: not valid YAML: found unhashable key"),
        ("train: [", "run.yaml: line 1: not valid YAML"),
        ("train: \t{", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("train: {seed: !!python/name:os.system }", "not valid YAML: could not determine"),
        ("data: {root: 2024-13-45}", "not valid YAML: month must be in 1..12"),
        ("- a", "run.yaml: should hold sections such as `train:`, not ['a']"),
        ("base: 3", "run.yaml: base: 3: should be the path of one YAML file"),
        ("base: runn.yaml", "runn.yaml: cannot be read (No such file or directory); did"),
        ("base: run.yaml", "run.yaml: base: 'run.yaml': leads back to itself"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in mistake(tmp_path, text)


def test_missing_or_unreadable_file(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in mistakes(tmp_path / "absent.yaml")[0]
    assert "cannot be read (Is a directory)" in mistakes(tmp_path)[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    binary = mistakes(tmp_path / "binary.yaml")[0]
    assert "binary.yaml: is no text in UTF-8; name a YAML file" in binary


def test_test_split_by_explicit_flag(tmp_path: Path) -> None:
    text = "eval: {split: testA, allow_test_split: true}"
    assert load_config(write(tmp_path, text)).eval.split == "testA"


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().train.lr = 1.0


def test_overrides_do_not_leak_into_the_next_load(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {bridges: [{name: bridger, dim: 64}]}")
    load_config(path, ["model.bridges.0.dim=3", "train.milestones.0=3"])
    assert load_config(path).model.bridges == [{"name": "bridger", "dim": 64}]
    assert Config().train.milestones == [35]


def test_from_dict_names_its_source() -> None:
    with pytest.raises(ValueError, match=r"best\.safetensors: train: no key 'lrr'"):
        Config.from_dict({"train": {"lrr": 1}}, source="best.safetensors")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(deadline=None)
@given(values=VALUES, name=st.text(max_size=8), folder=st.text(max_size=8) | st.just("1e-4"))
def test_round_trip(values: object, name: str, folder: str) -> None:
    config = Config.from_dict(
        {"model": {"bridges": [{"name": name, "options": values}]}, "run": {"folder": folder}}
    )
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(parse_yaml(config.to_yaml())) == config
    assert config.to_yaml() == Config.from_dict(config.to_dict()).to_yaml()


def test_written_yaml_loads_from_a_file(tmp_path: Path) -> None:
    config = load_config(ROOT / "config/etris_vitb16.yaml", ["train.lr=1e-5", "run.folder='1e5'"])
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
        override = f"{key}=1"
        if key.startswith("model.bridges."):
            continue
        section: object = Config().to_dict()
        for part in override.partition("=")[0].split("."):
            assert isinstance(section, dict) and part in section, key
            section = section[part]


def test_a_file_of_cris_is_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no key 'TRAIN'.*CRIS and ETRIS"):
        load_config(write(tmp_path, "TRAIN: {batch_size: 16}"))
