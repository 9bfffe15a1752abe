"""Intertwining: eq. 2 and 3 to the letter, and what padding and later words must not change."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model import Segmenter
from model.backbones import CLIP, sizes_of_name
from model.backbones.state import STEPS, Features, TowerState
from model.bridges.intertwine import Intertwine

INTERTWINE = {"name": "intertwine", "dim": 8}
VARIANTS = [
    {"refresh": refresh, "directions": directions}
    for refresh in ("block", "once")
    for directions in ("both", "image", "text")
]


@pytest.fixture
def build(make_vit: Callable) -> Callable[..., Segmenter]:
    """``build(refresh="once")``: a model with one intertwining bridge, in evaluation mode."""

    def make(**options: object) -> Segmenter:
        segmenter = make_vit({"bridges": [INTERTWINE | options]}).eval()
        for parameter in segmenter.encoder.bridges.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # so that what is inserted matters
        return segmenter

    return make


def features(segmenter: Segmenter, image: torch.Tensor, ids: torch.Tensor) -> Features:
    with torch.no_grad():
        return segmenter.encoder(segmenter.encoder.clip.normalize(image), ids)


def by_hand(segmenter: Segmenter, image: torch.Tensor, ids: torch.Tensor, *, once: bool):
    """Last map and words by eq. 2 and 3, one block after the other."""
    clip, bridge = segmenter.encoder.clip, segmenter.encoder.bridges[0]
    v, t = clip.visual.embed(clip.normalize(image)), clip.text.embed(ids)
    patches, words, class_token = v.x, t.x, v.prefix
    none = ids.new_ones(len(ids), 0)
    for step in range(STEPS):
        if step == 0 or not once:
            to_image, to_text = bridge.to_image, bridge.to_text
            inserted = to_image(words) if to_image else class_token[:, :0]
            context = to_text(class_token) if to_text else words[:, :0]
        is_word = ids != 0 if bridge.to_image else none.bool()
        others = [torch.ones(len(ids), n, dtype=torch.bool) for n in (1, patches[0, 0].numel())]
        keep = torch.cat([others[0], is_word, others[1]], dim=1)
        v = clip.visual.run(step, TowerState(patches, torch.cat([class_token, inserted], 1), keep))
        t = clip.text.run(step, TowerState(words, context))
        patches, class_token, inserted = v.x, v.prefix[:, :1], v.prefix[:, 1:]
        words, context = t.x, t.prefix
    return patches, clip.text.norm_post(words)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options.values()))
def test_equations_2_and_3(build: Callable, batch: tuple, options: dict) -> None:
    image, ids, _ = batch
    segmenter = build(**options)
    ours = features(segmenter, image, ids)
    with torch.no_grad():
        patches, words = by_hand(segmenter, image, ids, once=options["refresh"] == "once")
    torch.testing.assert_close(ours.maps[-1], patches)
    torch.testing.assert_close(ours.word_features, words)


def test_options_change_the_outcome(build: Callable, batch: tuple) -> None:
    """Each of the six variants is another model, and none is the frozen CLIP."""
    image, ids, _ = batch
    outcomes = [features(build(**options), image, ids) for options in VARIANTS]
    joint = [outcome.joint_map for outcome in outcomes]
    pairs = [(i, j) for i in range(len(joint)) for j in range(i)]
    # with the text direction alone, the image tower is CLIP's own, refreshed or not
    same = {(i, j) for i, j in pairs if torch.equal(joint[i], joint[j])}
    assert same == {(5, 2)}
    assert not torch.equal(outcomes[5].word_features, outcomes[2].word_features)


@pytest.mark.parametrize(("refresh", "times"), [("block", 12), ("once", 1)])
def test_refresh(build: Callable, batch: tuple, refresh: str, times: int) -> None:
    """Projections run as often as they are read: nothing is projected after the last step."""
    image, ids, _ = batch
    segmenter = build(refresh=refresh)
    bridge = segmenter.encoder.bridges[0]
    calls: list[torch.nn.Module] = []
    for projection in (bridge.to_image, bridge.to_text):
        projection.register_forward_hook(lambda module, *_: calls.append(module))
    features(segmenter, image, ids)
    assert calls.count(bridge.to_image) == calls.count(bridge.to_text) == times


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options.values()))
def test_inserted_tokens_are_dropped_in_the_end(build: Callable, batch: tuple, options: dict):
    image, ids, _ = batch
    segmenter = build(**options)
    clip, bridge = segmenter.encoder.clip, segmenter.encoder.bridges[0]
    image_before, text_before = clip.visual.embed(clip.normalize(image)), clip.text.embed(ids)
    v, t = bridge.before_blocks(image_before, text_before)
    assert v.x is image_before.x and t.x is text_before.x
    carry = None
    for step in range(STEPS):
        v, t, carry = bridge.after_step(step, v, t, carry)
    assert torch.equal(v.prefix, image_before.prefix) and v.attention_mask is None
    assert torch.equal(t.prefix, text_before.prefix) and torch.equal(t.attention_mask, ids != 0)


@pytest.mark.parametrize("refresh", ["block", "once"])
def test_padding_changes_no_token_of_the_image(build: Callable, batch: tuple, refresh: str) -> None:
    """Whatever stands for padding, the image stays bit by bit; unmasked it does not."""
    image, ids, _ = batch
    for mask_padding in (True, False):
        segmenter = build(refresh=refresh, mask_padding=mask_padding)
        before = features(segmenter, image, ids)
        with torch.no_grad():
            segmenter.encoder.clip.text.token_embed.weight[0] += 3.0
        after = features(segmenter, image, ids)
        assert torch.equal(before.joint_map, after.joint_map) == mask_padding
        pairs = zip(before.maps, after.maps, strict=True)
        assert all(torch.equal(a, b) == mask_padding for a, b in pairs)
        assert not mask_padding or torch.equal(before.sentence, after.sentence)


def test_the_number_of_padding_words_does_not_matter(build: Callable, batch: tuple) -> None:
    image, ids, _ = batch
    segmenter = build()
    long, short = features(segmenter, image, ids), features(segmenter, image, ids[:, :7])
    for name in ("joint_map", "sentence"):
        torch.testing.assert_close(getattr(long, name), getattr(short, name))


def test_a_later_word_changes_no_earlier_one(build: Callable, batch: tuple) -> None:
    """The text tower stays causal behind the class token."""
    image, ids, _ = batch
    other = ids.clone()
    other[1, 4] = 555
    segmenter = build(directions="text")
    before, after = features(segmenter, image, ids), features(segmenter, image, other)
    changed = (before.word_features != after.word_features).any(dim=2)
    assert changed.tolist() == [[False] * 9, [False] * 4 + [True] * 5]
    # in both directions words come back through the class token, but never within a step
    segmenter = build(directions="both")
    clip, bridge = segmenter.encoder.clip, segmenter.encoder.bridges[0]
    with torch.no_grad():
        v = clip.visual.embed(clip.normalize(image))
        steps = [
            clip.text.run(0, bridge.before_blocks(v, clip.text.embed(x))[1]) for x in (ids, other)
        ]
    changed = (steps[0].x != steps[1].x).any(dim=2)
    assert changed.tolist() == [[False] * 9, [False] * 4 + [True] * 5]


@pytest.mark.parametrize("size", [0, 1, 3])
def test_end_of_text_whatever_stands_before(tiny_segmenter: Callable, batch: tuple, size: int):
    _, ids, _ = batch
    text = tiny_segmenter("vit", {"bridges": []}).encoder.clip.text
    end = [3, 6]
    with torch.no_grad():
        hidden = text.embed(ids)._replace(prefix=torch.randn(2, size, text.width))
        tokens = torch.cat([hidden.prefix, hidden.x], dim=1)
        for step in range(STEPS):
            hidden, tokens = text.run(step, hidden), text.blocks[step](tokens)
        last = torch.stack([tokens[i, size + end[i]] for i in range(2)])
        torch.testing.assert_close(text.head(hidden, ids)[1], text.proj(text.norm_post(last)))


def test_both_blocks_of_a_step_read_the_same_words(batch: tuple) -> None:
    """As in ViT-L: what the first block made of the words is not computed, let alone read."""
    image, ids, _ = batch
    sizes = replace(
        sizes_of_name("demo-vit"), depths=(24,), patch=16, grid=4, image_width=64, mlp_width=64
    )
    torch.manual_seed(0)
    clip = CLIP(sizes, image_size=64, max_tokens=9)
    bridge = Intertwine(clip, dim=8)
    with torch.no_grad():
        text = clip.text.embed(ids)
        v, _ = bridge.before_blocks(clip.visual.embed(clip.normalize(image)), text)
        words = bridge.to_image(text.x)
        tokens = torch.cat([v.prefix, v.x.flatten(2).mT], dim=1)
        keep = torch.cat([torch.ones(2, 17, dtype=torch.bool), ids != 0], dim=1)
        for block in clip.visual.blocks[:2]:
            tokens = block(torch.cat([tokens, words], dim=1), keep)[:, :17]
        v = clip.visual.run(0, v)
    torch.testing.assert_close(v.prefix, tokens[:, :1])
    torch.testing.assert_close(v.x.flatten(2).mT, tokens[:, 1:])


def test_two_bridges_cannot_put_tokens_before_the_same_tower(
    tiny_segmenter: Callable, batch: tuple
) -> None:
    image, ids, _ = batch
    one_each = [INTERTWINE | {"directions": directions} for directions in ("image", "text")]
    tiny_segmenter("vit", {"bridges": one_each}).eval()(image, ids)
    segmenter = tiny_segmenter("vit", {"bridges": [*one_each, INTERTWINE]})
    with pytest.raises(ValueError, match=r"another bridge .* before the patches"):
        segmenter(image, ids)
