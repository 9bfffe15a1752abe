"""CoOp: its sequence block by block, what the words keep, and that it goes with other bridges."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model import Segmenter
from model.backbones.state import STEPS, Features

COOP = {"name": "coop", "tokens": 3}
BRIDGER = {"name": "bridger", "dim": 16, "heads": 4}
INTERTWINE = {"name": "intertwine", "dim": 8}


def features(segmenter: Segmenter, image: torch.Tensor, ids: torch.Tensor) -> Features:
    with torch.no_grad():
        return segmenter.encoder(segmenter.encoder.clip.normalize(image), ids)


@pytest.fixture(params=["resnet", "vit", "joint"])
def segmenter(request: pytest.FixtureRequest, tiny_segmenter: Callable) -> Segmenter:
    return tiny_segmenter(request.param, {"bridges": [COOP]})


def test_the_text_tower_reads_the_context_behind_the_start(
    segmenter: Segmenter, batch: tuple
) -> None:
    image, ids, _ = batch
    text = segmenter.encoder.clip.text
    outcome = features(segmenter.eval(), image, ids)
    with torch.no_grad():
        words = text.token_embed(ids) + text.positions[: ids.shape[1]]
        context = segmenter.encoder.bridges[0].context.expand(2, 3, -1)
        tokens = torch.cat([words[:, :1], context, words[:, 1:]], dim=1)
        for block in text.blocks:
            tokens = block(tokens)
        tokens = text.norm_post(tokens)
    torch.testing.assert_close(outcome.word_features[:, 0], tokens[:, 0])
    torch.testing.assert_close(outcome.word_features[:, 1:], tokens[:, 4:])
    end = torch.stack([tokens[0, 3 + 3], tokens[1, 3 + 6]])
    torch.testing.assert_close(outcome.sentence, text.proj(end))


def test_the_image_tower_is_left_alone(segmenter: Segmenter, batch: tuple) -> None:
    image, ids, _ = batch
    before = features(segmenter.eval(), image, ids)
    nn.init.normal_(segmenter.encoder.bridges[0].context)
    after = features(segmenter, image, ids)
    assert torch.equal(before.joint_map, after.joint_map)
    assert not torch.allclose(before.sentence, after.sentence)
    # the start token stands before the context, and a causal tower never looks ahead
    changed = (before.word_features != after.word_features).any(dim=2)
    assert not changed[:, 0].any() and changed[:, 1:].all()


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_bridger_sees_the_sentence_whatever_its_place(
    tiny_segmenter: Callable, batch: tuple, kind: str
) -> None:
    image, ids, _ = batch
    segmenter = tiny_segmenter(kind, {"bridges": [COOP, BRIDGER]}).eval()
    first = segmenter(image, ids)
    segmenter.encoder.bridges = nn.ModuleList(reversed(segmenter.encoder.bridges))
    assert torch.equal(segmenter(image, ids), first)
    nn.init.normal_(segmenter.encoder.bridges[1].context)
    assert not torch.allclose(segmenter(image, ids), first)


def test_intertwining_stands_before_the_start(make_vit: Callable, batch: tuple) -> None:
    """``[cls', start, V, words]``, on a ViT and an EVA-02."""
    image, ids, _ = batch
    segmenter = make_vit({"bridges": [COOP, INTERTWINE | {"directions": "text"}]}).eval()
    clip, (coop, intertwine) = segmenter.encoder.clip, segmenter.encoder.bridges
    outcome = features(segmenter, image, ids)
    with torch.no_grad():
        v, t = clip.visual.embed(clip.normalize(image)), clip.text.embed(ids)
        tokens = torch.cat([t.x[:, :1], coop.context.expand(2, 3, -1), t.x[:, 1:]], dim=1)
        for step in range(STEPS):
            tokens = torch.cat([intertwine.to_text(v.prefix), tokens], dim=1)
            v, tokens = clip.visual.run(step, v), clip.text.blocks[step](tokens)[:, 1:]
        tokens = clip.text.norm_post(tokens)
    torch.testing.assert_close(outcome.word_features[:, 1:], tokens[:, 4:])


def test_two_contexts_are_refused(tiny_segmenter: Callable, batch: tuple) -> None:
    image, ids, _ = batch
    segmenter = tiny_segmenter("resnet", {"bridges": [COOP, COOP]})
    with pytest.raises(ValueError, match="another coop"):
        segmenter(image, ids)
