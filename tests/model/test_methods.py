"""Laws of every method in a whole model, alone, together and with what else there is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.precision import store_for_inference, store_frozen
from model import Segmenter
from model.adapters import ADAPTERS
from model.backbones.state import Features
from model.bridges import BRIDGES
from model.loss import text_to_pixel_loss
from model.side import SIDES

SCRIPT = Path(__file__).with_name("train_methods.py")

ADAPTER, COMPACTER, CONV, LORA, SNF = (
    {"name": name} for name in ("adapter", "compacter", "conv_adapter", "lora", "snf")
)
ADAPTER_IN_IMAGE, SNF_IN_TEXT = ADAPTER | {"towers": "image"}, SNF | {"towers": "text"}
BRIDGER = {"name": "bridger", "dim": 16, "heads": 4}
DECODER = {"dim": 32, "layers": 1, "heads": 4, "feedforward": 32, "dropout": 0.0}
COOP = {"name": "coop", "tokens": 3}
INTERTWINE = {"name": "intertwine", "dim": 8}
GST = {"name": "gst", "dim": 12, "modules": 4, "queries": 3, "heads": 3}
VITS = ("tiny-vit", "tiny-eva")
ALL = ("tiny-resnet", *VITS)
TWO = ALL[:2]

# What is attached, and the kinds of image tower on which it is tried.
METHODS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "frozen": ({}, ALL),
    "frozen, no hierarchical alignment": ({"decoder": DECODER | {"neck": "plain"}}, TWO),
    "full": ({"tuning": "full", "decoder": DECODER}, TWO),
    "cris": ({"tuning": "full", "decoder": DECODER | {"neck": "fpn"}}, TWO),
    "full, no global alignment": ({"tuning": "full", "decoder": DECODER | {"layers": 0}}, TWO),
    "adapter": ({"adapters": [ADAPTER]}, ALL),
    "adapter as in etris": ({"adapters": [ADAPTER | {"halves": "mlp", "first_block": 3}]}, ALL),
    "compacter": ({"adapters": [COMPACTER]}, ALL),
    "conv_adapter": ({"adapters": [CONV]}, ALL),
    "lora": ({"adapters": [LORA]}, ALL),
    "snf": ({"adapters": [SNF]}, VITS),
    "snf in text": ({"adapters": [SNF_IN_TEXT]}, ("tiny-resnet",)),
    "bridger": ({"bridges": [BRIDGER]}, ALL),
    "bridger, interpolate": ({"bridges": [BRIDGER | {"zoom": "interpolate"}]}, TWO),
    "bridger, linear": ({"bridges": [BRIDGER | {"zoom": "linear"}]}, TWO),
    "bridger, mlp": ({"bridges": [BRIDGER | {"zoom": "mlp"}]}, TWO),
    "bridger, first and last stage": ({"bridges": [BRIDGER | {"stages": [0, 2]}]}, TWO),
    "coop": ({"bridges": [COOP]}, ALL),
    "gst": ({"side": GST}, VITS),
    "image reads": ({"bridges": [INTERTWINE | {"directions": "image"}]}, VITS),
    "text reads once": (
        {"bridges": [INTERTWINE | {"directions": "text", "refresh": "once"}]},
        VITS,
    ),
    "no global": ({"adapters": [SNF], "bridges": [INTERTWINE]}, VITS),
    "barleria": ({"adapters": [SNF], "bridges": [INTERTWINE], "side": GST}, VITS),
    "once": ({"adapters": [SNF], "bridges": [INTERTWINE | {"refresh": "once"}]}, VITS),
    "lora and bridger": ({"adapters": [LORA], "bridges": [BRIDGER]}, ALL),
    "snf and bridger": ({"adapters": [SNF | {"towers": "image"}], "bridges": [BRIDGER]}, VITS),
    "all in a resnet": (
        {
            "adapters": [ADAPTER_IN_IMAGE, COMPACTER, CONV, LORA, SNF_IN_TEXT],
            "bridges": [COOP, BRIDGER | {"zoom": "mlp"}],
            "decoder": DECODER | {"neck": "fpn"},
        },
        ("tiny-resnet",),
    ),
    "all in a vit": (
        {
            "adapters": [ADAPTER_IN_IMAGE, COMPACTER | {"towers": "text"}, CONV, LORA, SNF_IN_TEXT],
            "bridges": [BRIDGER, INTERTWINE, COOP],
            "side": GST,
        },
        VITS,
    ),
    "all others in a vit": (
        {
            "adapters": [LORA, CONV, ADAPTER],
            "bridges": [INTERTWINE | {"refresh": "once"}, BRIDGER | {"zoom": "linear"}],
        },
        VITS,
    ),
}
FROZEN: dict = {"bridges": []}
CASES = [(name, kind) for name, (_, kinds) in METHODS.items() for kind in kinds]
START_NEAR = ("adapter", "adapter as in etris", "compacter", "conv_adapter", "snf", "snf in text")
# Every method, as many at a time as there is room for: for the laws that take seconds.
TOGETHER = [
    ("all in a resnet", "tiny-resnet"),
    ("all in a vit", "tiny-eva"),
    ("all others in a vit", "tiny-vit"),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def make(request: pytest.FixtureRequest, make_model: Callable) -> Callable[..., Segmenter]:
    """``make()``: the method on its tower; ``make(None)``: the same tower with nothing attached."""
    method, kind = request.param
    return lambda name=method: make_model(kind, options_of(name, kind) if name else FROZEN)


def options_of(method: str, kind: str) -> dict:
    """The section ``model`` of a method, on a random CLIP of that kind."""
    options = dict(METHODS[method][0])
    backbone = {"name": kind, "weights": None, "tuning": options.pop("tuning", "frozen")}
    return FROZEN | {"backbone": backbone} | options


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process as the only one of a group, which is all that DDP needs."""
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def step(
    segmenter: Segmenter, batch: tuple[Tensor, ...], parallel: nn.Module | None = None
) -> set[str]:
    """One update; the names of the parameters that train and had no gradient."""
    image, ids, mask = batch
    optimizer = torch.optim.SGD(segmenter.parameter_groups(lr=0.1, encoder_lr_scale=1.0))
    optimizer.zero_grad()
    logits = (parallel or segmenter)(image, ids)
    text_to_pixel_loss(logits, mask).backward()
    optimizer.step()
    trains = {n: p.grad for n, p in segmenter.named_parameters() if p.requires_grad}
    return {name for name, grad in trains.items() if grad is None or not grad.any()}


def features(segmenter: Segmenter, batch: tuple[Tensor, ...]) -> Features:
    image, ids, _ = batch
    with torch.no_grad():
        return segmenter.eval().encoder(segmenter.encoder.clip.normalize(image), ids)


def names_in(cases: list[tuple[str, str]], kinds: tuple[str, ...]) -> set[str]:
    """What is attached to these kinds of towers in these cases."""
    parts: list[dict] = []
    for options in (METHODS[name][0] for name, kind in cases if kind in kinds):
        parts += options.get("adapters", []) + options.get("bridges", [])
        parts += [options["side"]] if "side" in options else []
    return {part["name"] for part in parts}


def test_every_method_is_here() -> None:
    methods = {*ADAPTERS, *BRIDGES, *SIDES}
    assert all(names_in(CASES, (kind,)) == methods for kind in VITS)
    assert names_in(TOGETHER, VITS) == methods
    for cases in (CASES, TOGETHER):
        assert names_in(cases, ("tiny-resnet",)) == methods - {"intertwine", "gst"}


def test_only_adds_state(make: Callable) -> None:
    plain, segmenter = make(None).state_dict(), make()
    state = segmenter.state_dict()
    assert {key for key in plain if key.startswith("encoder.clip.")} <= state.keys()
    clip = {key for key in state if key in plain and key.startswith("encoder.clip.")}
    assert all(torch.equal(plain[key], state[key]) for key in clip)
    if segmenter.encoder.clip.tuned:
        assert segmenter.trainable_state().keys() == state.keys()
    else:
        assert segmenter.trainable_state().keys() == state.keys() - clip
        assert {f"encoder.clip.{name}" for name in segmenter.encoder.clip.frozen} == clip
    # a plain CLIP still loads into the adapted one
    loaded = segmenter.load_state_dict({key: plain[key] for key in clip}, strict=False)
    assert loaded.unexpected_keys == []


def test_steps_change_only_what_trains_and_is_saved(
    make: Callable, batch: tuple, process_group: None
) -> None:
    """Under DDP, which refuses in a second step what had no gradient in the first."""
    segmenter = make().train()
    parallel = DistributedDataParallel(segmenter)
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    without = step(segmenter, batch, parallel)
    changed = {k for k, value in segmenter.state_dict().items() if not value.equal(before[k])}
    trainable = segmenter.trainable_state().keys()
    assert changed <= trainable
    if segmenter.encoder.clip.tuned:
        assert trainable - changed <= without
    # LoRA's A is multiplied by B, which is zero before the first step
    assert {name for name in without if not name.endswith("k_proj.bias")} == {
        name
        for name, _ in segmenter.named_parameters()
        if name.startswith("encoder.clip.") and name.endswith("_proj.down")
    }
    # a key's bias adds the same to every score of a query, which a softmax doesn't see
    assert all(name.endswith("k_proj.bias") for name in step(segmenter, batch, parallel))
    other = make()
    other.load_trainable_state(segmenter.trainable_state())
    with torch.no_grad():
        assert torch.equal(segmenter.eval()(*batch[:2]), other.eval()(*batch[:2]))


def test_a_mask_depends_neither_on_its_batch_mates_nor_much_on_precision(
    make: Callable, batch: tuple
) -> None:
    image, ids, _ = batch
    segmenter = make().eval()
    with torch.no_grad():
        together = segmenter(image, ids)
        alone = torch.cat([segmenter(image[i : i + 1], ids[i : i + 1]) for i in range(2)])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = segmenter(image, ids).float()
    torch.testing.assert_close(together, alone)
    assert together.shape == (2, 1, 16, 16)
    assert (together - rounded).norm() < 0.1 * together.norm()


@torch.no_grad()
def test_weights_held_in_bf16_change_no_bit_under_autocast(make: Callable, batch: tuple) -> None:
    segmenter = make().eval()
    segmenter.backbone["sha256"] = "of a file"  # without one nothing frozen is rounded
    logits = []
    for store in (store_frozen, store_for_inference, None):
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(segmenter(*batch[:2]))
        if store:
            store(segmenter, "bf16")
    assert segmenter.encoder.clip.text.proj.weight.dtype == torch.bfloat16
    assert all(torch.equal(logits[0], one) for one in logits[1:])


@pytest.mark.parametrize(("name", "kind"), TOGETHER)
def test_one_graph_with_its_gradients(
    name: str, kind: str, few_steps: None, make_model: Callable, batch: tuple
) -> None:
    image, ids, mask = batch
    outcomes = []
    for compiles in (False, True):
        segmenter = make_model(kind, options_of(name, kind)).train()
        run = torch.compile(segmenter, fullgraph=True, backend="eager") if compiles else segmenter
        logits = run(image, ids)
        text_to_pixel_loss(logits, mask).backward()
        trains = {n: p.grad for n, p in segmenter.named_parameters() if p.requires_grad}
        outcomes.append((logits, trains))
    torch.testing.assert_close(*outcomes)


def test_two_processes_end_with_the_same_weights(make_config: Callable, tmp_path: Path) -> None:
    """Two steps under DDP, from other weights and on other images."""
    models = {
        ", ".join(case): make_config(case[1], options_of(*case)).to_dict() for case in TOGETHER
    }
    (tmp_path / "models.json").write_text(json.dumps(models))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", SCRIPT, tmp_path / "models.json", tmp_path]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    first, second = (json.loads((tmp_path / f"digests{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first.keys() == models.keys()


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] in START_NEAR])
def test_starts_near_its_clip(name: str, kind: str, make_model: Callable, batch: tuple) -> None:
    """Adapters are drawn close to zero, and the norms that they train have not moved."""
    before = features(make_model(kind, FROZEN), batch)
    after = features(make_model(kind, options_of(name, kind)), batch)
    pairs = list(zip([*before.maps, *before[1:4]], [*after.maps, *after[1:4]], strict=True))
    assert all((x - y).norm() < 0.05 * x.norm() for x, y in pairs)
    assert not all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("kind", ALL)
def test_lora_starts_as_its_clip(kind: str, make_model: Callable, batch: tuple) -> None:
    """``B`` is zero (Hu et al., section 4.1)."""
    before, after = (
        features(make_model(kind, FROZEN | {"adapters": adapters}), batch)
        for adapters in ([], [LORA])
    )
    assert torch.equal(before.joint_map, after.joint_map) and torch.equal(
        before.word_features, after.word_features
    )
