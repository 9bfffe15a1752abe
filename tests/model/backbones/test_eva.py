"""EVA-02: equal to open_clip's model, read from the files of both layouts, open to what trains."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, _build_text_tower
from timm.models.eva import Eva
from torch import Tensor, nn

from model import build_clip
from model.backbones import BACKBONES, CLIP, load_weights, read_weights, sizes_of_state
from model.backbones.blocks import resize_positions
from model.backbones.state import STEPS, TowerState
from model.backbones.weights import from_eva

State = dict[str, Tensor]
TIMM_TO_EVA = {
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
    "attn.norm.": "attn.inner_attn_ln.",
    "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.",
    "mlp.norm.": "mlp.ffn_ln.",
    "mlp.fc2.": "mlp.w3.",
    "visual.trunk.": "visual.",
}


class Oracle(nn.Module):
    """A tiny CLIP with the parts of open_clip's EVA02-B-16 under the same names."""

    def __init__(self, size: int, **options):
        super().__init__()
        defaults = {"embed_dim": 128, "depth": 12, "num_heads": 2, "mlp_ratio": 2}
        trunk = Eva(
            img_size=size,
            num_classes=64,
            qkv_fused=False,
            swiglu_mlp=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(16, 16),
            global_pool="token",
            **defaults | {"scale_mlp": True, "scale_attn_inner": True} | options,
        )
        self.visual = nn.ModuleDict({"trunk": trunk})
        self.text = _build_text_tower(64, CLIPTextCfg(width=64, heads=1, layers=12))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))


def shaken(model: nn.Module) -> nn.Module:
    """``model`` with random norms and biases too, as after training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw the same images and tokens in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of a tiny EVA-02 CLIP in open_clip's layout."""
    return shaken(Oracle(64)).state_dict()


def original(state: State) -> State:
    """open_clip's layout -> that of EVA02_CLIP_B_psz16_s8B.pt, with its tables of angles."""
    renamed: State = {}
    for key, value in state.items():
        for theirs, eva in TIMM_TO_EVA.items():
            key = key.replace(theirs, eva)
        renamed[key] = value
    depth = len({key.split(".")[2] for key in renamed if key.startswith("visual.blocks.")})
    for place in ["", *(f"blocks.{i}.attn." for i in range(depth))]:
        for name in ("freqs_cos", "freqs_sin"):
            renamed[f"visual.{place}rope.{name}"] = torch.zeros(196, 64)
    return renamed


@pytest.fixture(scope="module")
def path(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That CLIP as a file like the published one: half precision, EVA-CLIP's names."""
    path = tmp_path_factory.mktemp("eva") / "tiny.pt"
    torch.save({key: value.half() for key, value in original(state).items()}, path)
    return path


def clip_of(state: State, size: int) -> CLIP:
    state = from_eva(state)
    clip = CLIP(sizes_of_state(state), image_size=size, max_tokens=77).eval()
    load_weights(clip, state, "test")
    return clip


def run(clip: CLIP, tower_state: TowerState) -> TowerState:
    for step in range(STEPS):
        tower_state = clip.visual.run(step, tower_state)
    return tower_state


def same_images(clip: CLIP, trunk: nn.Module, size: int) -> None:
    """The map after every block, every patch and the pooled image are those of timm's ``trunk``."""
    image, close = torch.randn(1, 3, size, size), {"rtol": 1e-3, "atol": 1e-3}
    with torch.no_grad():
        tower_state, after = clip.visual.embed(image), []
        for step in range(STEPS):
            tower_state = clip.visual.run(step, tower_state)
            after.append(tower_state.x)
        tokens, maps = trunk.forward_intermediates(image)
        torch.testing.assert_close(after, maps, **close)
        patches = clip.visual.head(tower_state).flatten(2).mT
        torch.testing.assert_close(patches, trunk.head(tokens[:, 1:]), **close)
        pooled = clip.visual.pool(tower_state)
        torch.testing.assert_close(pooled, trunk.forward_head(tokens), **close)


def resized(state: State, trunk: nn.Module, size: int) -> nn.Module:
    """``trunk`` at another size, with positions resized as ours are (timm antialiases)."""
    trunk.set_input_size(size)
    positions = resize_positions(state["visual.trunk.pos_embed"][0], size // 16)
    trunk.pos_embed.data = positions[None]
    return trunk


@pytest.mark.parametrize("size", [64, 224, 416])
def test_equals_timm(state: State, size: int):
    model = Oracle(64)
    model.load_state_dict(state)
    same_images(clip_of(state, size), resized(state, model.visual.trunk.eval(), size), size)


def test_faint_inputs_are_normalised_alike(state: State):
    """Tokens as small as the square root of a norm's epsilon tell which epsilon it is."""
    faint = dict(state)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        faint[f"visual.trunk.{name}"] = 1e-3 * state[f"visual.trunk.{name}"]
    model = Oracle(64)
    model.load_state_dict(faint)
    same_images(clip_of(faint, 64), model.visual.trunk.eval(), 64)


def test_text_equals_open_clip(state: State):
    model = Oracle(64).eval()
    model.load_state_dict(state)
    ids = torch.randint(1, 49406, (2, 77))
    ids[0, 5], ids[1, 76] = 49407, 49407
    with torch.no_grad():
        torch.testing.assert_close(clip_of(state, 64).embed_text(ids), model.text(ids))


def test_equals_open_clip_at_real_size():
    reference = shaken(open_clip.create_model("EVA02-B-16", pretrained=None))
    state = reference.state_dict()
    clip = clip_of(state, 224)
    assert clip.sizes == BACKBONES["EVA02-B/16"]
    ids = torch.randint(1, 49406, (2, 77))
    with torch.no_grad():
        torch.testing.assert_close(
            clip.embed_text(ids), reference.encode_text(ids), rtol=1e-4, atol=1e-4
        )
    same_images(clip, reference.visual.trunk, 224)


def test_the_published_file_has_these_tensors():
    """436 of them, as those who converted ``EVA02_CLIP_B_psz16_s8B.pt`` counted."""
    settings = open_clip.get_model_config("EVA02-B-16")
    del settings["custom_text"]
    with torch.device("meta"):
        state = original(open_clip.CustomTextCLIP(**settings).state_dict())
    assert len(state) == 436
    assert {"visual.blocks.3.attn.q_bias", "visual.cls_token", "text.text_projection"} <= set(state)
    assert sizes_of_state(from_eva(state)) == BACKBONES["EVA02-B/16"]


@pytest.mark.parametrize("layout", ["open_clip", "EVA-CLIP"])
@pytest.mark.parametrize("wrapping", ["bare", "module.", "state_dict", "model", "safetensors"])
def test_files_of_both_layouts(state: State, tmp_path: Path, layout: str, wrapping: str):
    from safetensors.torch import save_file

    given = original(state) if layout == "EVA-CLIP" else state
    given = {key: value.half().contiguous() for key, value in given.items()}
    path = tmp_path / ("clip.safetensors" if wrapping == "safetensors" else "clip.pt")
    if wrapping == "safetensors":
        save_file(given, path)
    elif wrapping == "module.":
        torch.save({"state_dict": {f"module.{k}": v for k, v in given.items()}}, path)
    else:
        torch.save(given if wrapping == "bare" else {wrapping: given, "epoch": 1}, path)
    clip, _ = build_clip(None, str(path), image_size=64, max_tokens=9)
    wanted = clip_of({key: value.half() for key, value in state.items()}, 64)
    assert clip.sizes == wanted.sizes and clip.sizes.is_vit and clip.sizes.eva
    ours = wanted.visual.state_dict()
    assert all(value.equal(ours[key]) for key, value in clip.visual.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())


def test_other_towers_of_eva_are_refused(tmp_path: Path):
    other = Oracle(64, scale_attn_inner=False, scale_mlp=False).state_dict()
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: an EVA CLIP without the inner norms"):
        read_weights(tmp_path / "other.pt")


def test_inserted_tokens_that_nobody_sees_change_nothing(state: State):
    """However many there are: the patches stay turned by their own places."""
    clip = clip_of(state, 64).double()  # in float32 another kernel rounds otherwise
    with torch.no_grad():
        alone = clip.visual.embed(torch.randn(2, 3, 64, 64, dtype=torch.float64))
        keep = torch.ones(2, 1 + 5 + 16, dtype=torch.bool)
        keep[:, 1:6] = False
        inserted = torch.randn(2, 5, 128, dtype=torch.float64)
        prefix = torch.cat([alone.prefix, inserted], dim=1)
        crowded = run(clip, alone._replace(prefix=prefix, attention_mask=keep))
        alone = run(clip, alone)
        torch.testing.assert_close(crowded.x, alone.x)
        torch.testing.assert_close(crowded.prefix[:, :1], alone.prefix)
        torch.testing.assert_close(clip.visual.pool(crowded), clip.visual.pool(alone))


def test_memory_is_what_inserted_tokens_are_in_one_block(state: State):
    """The patches read the same, whether a block goes on with the tokens or leaves them."""
    clip = clip_of(state, 64)
    with torch.no_grad():
        tower_state = clip.visual.embed(torch.randn(2, 3, 64, 64))
        memory = torch.randn(2, 5, 128)
        is_kept = torch.tensor([True, True, False, True, False]).expand(2, -1)
        front, image = torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 16, dtype=torch.bool)
        inserted = tower_state._replace(
            prefix=torch.cat([tower_state.prefix, memory], dim=1),
            attention_mask=torch.cat([front, is_kept, image], dim=1),
        )
        beside = tower_state._replace(
            memory=memory, attention_mask=torch.cat([front, image, is_kept], dim=1)
        )
        inserted, beside = clip.visual.run(0, inserted), clip.visual.run(0, beside)
    torch.testing.assert_close(beside.x, inserted.x)
    torch.testing.assert_close(beside.prefix, inserted.prefix[:, :1])
