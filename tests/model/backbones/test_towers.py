"""The towers compute what open_clip's do, at any size."""

import open_clip
import pytest
import torch
from open_clip.model import CLIP as OpenCLIP  # noqa: N811
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from model.backbones import CLIP, load_weights, sizes_of_state, to_openai
from model.backbones.blocks import resize_positions

TEXT = CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=12)
VISION = {
    "vit": {"layers": 12, "width": 128, "patch_size": 16},
    "resnet": {"layers": (1, 2, 1, 1), "width": 16},
}


def oracle(kind: str, size: int) -> OpenCLIP:
    torch.manual_seed(1)
    vision = CLIPVisionCfg(image_size=size, **VISION[kind])
    model = OpenCLIP(32, vision, TEXT, quick_gelu=True).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


def weights(model: OpenCLIP) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if key != "attn_mask"}


def with_positions_for(model: OpenCLIP, state: dict[str, torch.Tensor]) -> OpenCLIP:
    """``model`` with the weights of another size, its positions resized without antialiasing."""
    own = model.state_dict()
    for key in ("visual.positional_embedding", "visual.attnpool.positional_embedding"):
        if key in state:
            grid = round((own[key].shape[0] - 1) ** 0.5)
            state = state | {key: resize_positions(state[key], grid)}
    model.load_state_dict(state, strict=False)
    return model


@pytest.mark.parametrize("size", [64, 416])
def test_equals_open_clip(kind: str, size: int):
    state = weights(oracle(kind, 64))
    reference = with_positions_for(oracle(kind, size), state)
    clip = CLIP(sizes_of_state(state), image_size=size, max_tokens=77).eval()
    load_weights(clip, state, "test")
    image = torch.randn(2, 3, size, size)
    ids = torch.randint(1, 49406, (2, 77))
    ids[0, 5], ids[1, 76] = 49407, 49407
    with torch.no_grad():
        torch.testing.assert_close(clip.embed_image(image), reference.encode_image(image))
        torch.testing.assert_close(clip.embed_text(ids), reference.encode_text(ids))


@pytest.mark.parametrize("name", ["RN50-quickgelu", "ViT-B-16-quickgelu"])
def test_equals_open_clip_at_real_size(name: str):
    torch.manual_seed(0)
    reference = open_clip.create_model(name, pretrained=None).eval()
    state = weights(reference)
    clip = CLIP(sizes_of_state(state), image_size=224, max_tokens=77).eval()
    load_weights(clip, state, "test")
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(clip.embed_image(image), reference.encode_image(image))


def test_short_context_leaves_the_sentence_as_it_is():
    state = weights(oracle("vit", 64))
    ids = torch.zeros(1, 77, dtype=torch.int64)
    ids[0, :5] = torch.tensor([49406, 7, 8, 9, 49407])
    sentences = []
    for words in (17, 77):
        clip = CLIP(sizes_of_state(state), image_size=64, max_tokens=words).eval()
        load_weights(clip, state, "test")
        with torch.no_grad():
            sentences.append(clip.embed_text(ids[:, :words]))
    torch.testing.assert_close(*sentences)


def test_back_to_openai(kind: str):
    state = weights(oracle(kind, 64))
    clip = CLIP(sizes_of_state(state), image_size=64, max_tokens=77)
    load_weights(clip, state, "test")
    back = to_openai(clip)
    missing = {key for key in state if key not in back and not key.endswith("tracked")}
    assert missing == {"logit_scale"}
    assert all(torch.equal(value, state[key]) for key, value in back.items())


def test_every_patch_of_the_resnet_is_a_query():
    """``head`` is the attention pool without its mean token, at every position."""
    state = weights(oracle("resnet", 64))
    clip = CLIP(sizes_of_state(state), image_size=64, max_tokens=77).eval()
    load_weights(clip, state, "test")
    hidden = clip.visual.embed(torch.randn(2, 3, 64, 64))
    for step in range(12):
        hidden = clip.visual.run(step, hidden)
    tokens = hidden.x.flatten(2).mT + clip.visual.positions[1:]
    query = clip.visual.attnpool(tokens[:, 3:4], tokens)[:, 0]
    torch.testing.assert_close(clip.visual.head(hidden).flatten(2)[:, :, 3], query)
