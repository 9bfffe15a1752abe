"""Several data sets as one: whose items they are, and that none of them gives the answers away."""

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from utils.data.dataset import MixedDataset, ReferDataset, open_mixture
from utils.data.store import ReferStore
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import read_refs, refer_source

SIZE = 32
OPTIONS = {"image_size": SIZE, "length": 22, "seed": 5}


def pack_as(
    demo: Path, root: Path, dataset: str, splits: Mapping[int, str], store: str = "coco-images"
) -> None:
    """The demo's references on the images ``splits``, as another data set with these splits."""
    folder = root / dataset / "refcoco"
    folder.mkdir(parents=True)
    refs = [
        ref | {"split": splits[ref["image_id"]]}
        for ref in read_refs(demo / "refs(unc).p")
        if ref["image_id"] in splits
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    shutil.copy(demo / "instances.json", folder)
    source = refer_source(root / dataset, "refcoco", images=demo / "images")
    published = {} if dataset not in ("refcoco", "refcoco+") else source.published
    source = source._replace(dataset=dataset, image_store=store, published=published)
    pack_dataset(root, source, accept_differences=True)


@pytest.fixture(scope="module")
def image_ids(demo_root: Path) -> list[int]:
    """Images of the demo, each with the train references of some data set below."""
    refs = read_refs(demo_root / "demo" / "refs(unc).p")
    return list(dict.fromkeys(ref["image_id"] for ref in refs))[:12]


@pytest.fixture(scope="module")
def root(demo_root: Path, tmp_path_factory: pytest.TempPathFactory, image_ids: list[int]) -> Path:
    """Three data sets: 12 images are split three ways, and ``mine`` keeps copies of its own."""
    root, demo = tmp_path_factory.mktemp("mixed"), demo_root / "demo"
    a = dict.fromkeys(image_ids[:6], "train") | {image_ids[6]: "val", image_ids[7]: "testA"}
    b = dict.fromkeys(image_ids[5:10], "train") | {image_ids[0]: "val", image_ids[10]: "testB"}
    mine = dict.fromkeys(image_ids[3:9], "train") | {image_ids[1]: "val"}
    pack_as(demo, root, "refcoco", a)
    pack_as(demo, root, "refcoco+", b)
    pack_as(demo, root, "mine", mine, store="mine-images")
    return root


def train_of(root: Path, dataset: str) -> ReferDataset:
    return ReferDataset(root, dataset, "train", **OPTIONS)


def images_of(dataset: ReferDataset | MixedDataset) -> set[int]:
    return {dataset.info(index).image_id for index in range(len(dataset))}


def num_refs(root: Path, dataset: str, images: list[int]) -> int:
    records = ReferStore(root, dataset).references("train")
    return sum(record["image_id"] in images for record in records)


def test_no_image_of_val_or_test_is_trained_on(root: Path, image_ids: list[int]) -> None:
    mixed = open_mixture(root, ["refcoco", "refcoco+"], **OPTIONS)
    first, second = mixed.parts
    assert images_of(first) == set(image_ids[1:6])
    assert images_of(second) == {image_ids[i] for i in (5, 8, 9)}
    excluded = [
        num_refs(root, "refcoco", image_ids[:1]),
        num_refs(root, "refcoco+", image_ids[6:8]),
    ]
    assert [part.num_excluded for part in mixed.parts] == excluded and min(excluded) > 0
    for name, part, lost in zip(("refcoco", "refcoco+"), mixed.parts, excluded, strict=True):
        assert len(part) == len(train_of(root, name)) - lost


def test_the_same_image_in_another_store_is_recognised(root: Path, image_ids: list[int]) -> None:
    mine, refcoco = open_mixture(root, ["mine", "refcoco"], **OPTIONS).parts
    assert mine.store.images_path != refcoco.store.images_path
    assert images_of(mine) == {image_ids[i] for i in (3, 4, 5, 8)}
    assert images_of(refcoco) == {image_ids[i] for i in (0, 2, 3, 4, 5)}


def test_leakage_on_request_is_the_plain_sum(root: Path) -> None:
    names = ["refcoco", "refcoco+", "mine"]
    leaky = open_mixture(root, names, allow_leakage=True, **OPTIONS)
    alone = [train_of(root, name) for name in names]
    assert len(leaky) == sum(map(len, alone))
    expected = [one.info(index) for one in alone for index in range(len(one))]
    assert [leaky.info(index) for index in range(len(leaky))] == expected
    assert leaky.composition()["scored_images"] == "left in"
    clean = open_mixture(root, names, **OPTIONS)
    assert 0 < len(clean) < len(leaky) and clean.fingerprint != leaky.fingerprint


def test_one_data_set_is_itself(root: Path) -> None:
    for allow_leakage in (False, True):
        mixed = open_mixture(root, ["refcoco"], allow_leakage=allow_leakage, **OPTIONS)
        alone = train_of(root, "refcoco")
        assert mixed.fingerprint == alone.fingerprint
        assert (len(mixed), mixed.parts[0].num_excluded, mixed.length) == (len(alone), 0, 22)
        assert mixed.composition()["scored_images"] == "as published"
        infos = [[one.info(index) for index in range(len(one))] for one in (mixed, alone)]
        assert infos[0] == infos[1]


def test_items_are_those_of_the_parts_under_their_own_index(root: Path) -> None:
    mixed = open_mixture(root, ["refcoco", "refcoco+"], **OPTIONS)
    mixed.set_epoch(3)
    position = 0
    for part in mixed.parts:
        assert part.length == 22 and part[0]["ids"].shape == (22,)
        for row in range(len(part)):
            item, expected = mixed[position], part[row]
            assert item.pop("index") == position and expected.pop("index") == row
            assert all(torch.equal(item[key], expected[key]) for key in ("image", "ids", "mask"))
            assert mixed.info(position) == part.info(row)
            position += 1
    assert position == len(mixed)
    for index in (-1, position):
        with pytest.raises(IndexError):
            mixed[index]


def test_sentences_follow_the_epoch_in_workers_too(root: Path) -> None:
    mixed = open_mixture(root, ["refcoco", "refcoco+"], **OPTIONS)
    chosen = []
    for epoch in (1, 2):
        mixed.set_epoch(epoch)
        ids = [torch.stack([mixed[index]["ids"] for index in range(len(mixed))])]
        loader = DataLoader(mixed, batch_size=8, num_workers=1)
        ids.append(torch.cat([batch["ids"] for batch in loader]))
        assert torch.equal(*ids)
        chosen.append(ids[0])
    assert not torch.equal(*chosen)


def test_the_fingerprint_follows_names_content_and_order(root: Path) -> None:
    pairs = (["refcoco", "refcoco+"], ["refcoco+", "refcoco"], ["refcoco", "mine"])
    prints = [open_mixture(root, names, **OPTIONS).fingerprint for names in pairs]
    assert open_mixture(root, pairs[0], **OPTIONS).fingerprint == prints[0]
    assert len(set(prints)) == 3 and {len(text) for text in prints} == {64}


def test_composition_and_description(root: Path) -> None:
    mixed = open_mixture(root, ["refcoco", "mine"], **OPTIONS)
    found = json.loads(json.dumps(mixed.composition()))
    assert found["scored_images"] == "left out" and list(found["datasets"]) == ["refcoco", "mine"]
    part = mixed.parts[1]
    assert found["datasets"]["mine"] == {
        "references": len(part),
        "left_out_scored_image": part.num_excluded,
        "left_out_empty_mask": 0,
        "fingerprint": part.fingerprint,
    }
    line = mixed.describe()[1]
    assert f"mine     {len(part)} " in line and f" {part.num_excluded} " in line
    leaky = open_mixture(root, ["refcoco", "mine"], allow_leakage=True, **OPTIONS).describe()
    assert len(leaky) == 3 and "data.allow_leakage" in leaky[2]
    alone = open_mixture(root, ["mine"], **OPTIONS).describe()
    assert alone == [f"mine  {len(train_of(root, 'mine'))} samples an epoch"]


def test_empty_masks_are_not_trained_on(demo_root: Path, tmp_path: Path, image_ids: list) -> None:
    demo = tmp_path / "demo"
    shutil.copytree(demo_root / "demo", demo)
    instances = json.loads((demo / "instances.json").read_text())
    refs = [ref for ref in read_refs(demo / "refs(unc).p") if ref["image_id"] in image_ids]
    for annotation in instances["annotations"]:
        if annotation["id"] == refs[0]["ann_id"]:
            annotation["segmentation"] = [[1, 1, 1, 1, 1, 1]]
    (demo / "instances.json").write_text(json.dumps(instances))
    pack_as(demo, tmp_path, "refcoco", dict.fromkeys(image_ids, "train"))
    pack_as(demo, tmp_path, "refcoco+", dict.fromkeys(image_ids, "val"))
    mixed = open_mixture(tmp_path, ["refcoco"], **OPTIONS)
    assert (mixed.parts[0].num_empty, len(mixed)) == (1, len(refs) - 1)
    assert refs[0]["ref_id"] not in {mixed.info(index).ref_id for index in range(len(mixed))}
    assert mixed.describe()[0].endswith(" 1 with an empty mask")
    val = ReferDataset(tmp_path, "refcoco+", "val", image_size=SIZE, all_sentences=True)
    assert len(val) == sum(len(ref["sentences"]) for ref in refs)


def test_mistakes_are_named(root: Path, demo_root: Path, tmp_path: Path, image_ids: list) -> None:
    with pytest.raises(ValueError, match="'refcocoo'"):
        open_mixture(root, ["refcoco", "refcocoo"], **OPTIONS)
    first, second, *_ = image_ids
    splits = {
        "one": dict.fromkeys(image_ids, "train"),
        "two": dict.fromkeys(image_ids, "val"),
        "three": {second: "val", first: "train"},
        "four": {first: "testA", second: "train"},
    }
    for name, images in splits.items():
        pack_as(demo_root / "demo", tmp_path, name, images)
    with pytest.raises(ValueError, match="'two' has no split 'train'; it has val"):
        open_mixture(tmp_path, ["one", "two"], **OPTIONS)
    with pytest.raises(ValueError, match=r"three .* data\.allow_leakage: true"):
        open_mixture(tmp_path, ["three", "four"], **OPTIONS)
