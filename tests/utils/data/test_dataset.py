"""Samples: what they hold, which sentence they choose, and that workers change nothing."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from utils.data.dataset import ReferDataset
from utils.data.store import ReferStore
from utils.data.tokenizer import tokenize
from utils.data.transforms import restore_logits
from utils.prepare.pack import pack_dataset

SIZE = 96


@pytest.fixture
def train(demo_root: Path) -> ReferDataset:
    return ReferDataset(demo_root, "demo", "train", image_size=SIZE, max_tokens=17, seed=5)


@pytest.fixture
def val(demo_root: Path) -> ReferDataset:
    return ReferDataset(demo_root, "demo", "val", image_size=SIZE, all_sentences=True)


def load(dataset: ReferDataset, **options: Any) -> Iterator[dict[str, torch.Tensor]]:
    return iter(DataLoader(dataset, batch_size=16, **options))


def test_items_have_the_promised_types(train: ReferDataset) -> None:
    item = train[3]
    assert item["image"].shape == (3, SIZE, SIZE) and item["image"].dtype == torch.uint8
    assert item["image"].is_contiguous()
    assert item["ids"].shape == (17,) and item["ids"].dtype == torch.int64
    assert item["mask"].shape == (SIZE, SIZE) and item["mask"].dtype == torch.uint8
    assert item["index"] == 3
    assert set(item["mask"].unique().tolist()) == {0, 1}
    batch = next(load(train))
    assert batch["image"].shape == (16, 3, SIZE, SIZE)
    assert batch["index"].tolist() == list(range(16))


def test_lengths_come_from_the_data(train: ReferDataset, val: ReferDataset) -> None:
    splits = train.store.header["splits"]
    assert len(train) == splits["train"]["refs"]
    assert len(val) == splits["val"]["sentences"]
    assert val.max_tokens == 17
    assert train.fingerprint == train.store.header["fingerprint"]
    with pytest.raises(IndexError):
        val[len(val)]


def test_evaluation_holds_every_sentence_once(val: ReferDataset) -> None:
    expected = [
        (record["ref_id"], sentence_id, text)
        for record in val.store.references("val")
        for sentence_id, text in record["sentences"]
    ]
    samples = [val.info(index) for index in range(len(val))]
    assert [(s.ref_id, s.sentence_id, s.sentence) for s in samples] == expected
    for index in (0, len(val) - 1):
        torch.testing.assert_close(val[index]["ids"], tokenize(expected[index][2], 17)[0][0])
        assert samples[index].num_tokens == int((val[index]["ids"] > 0).sum())


def test_the_sentence_depends_on_seed_epoch_and_sample(
    demo_root: Path, train: ReferDataset
) -> None:
    def chosen(dataset: ReferDataset, epoch: int) -> list[int]:
        dataset.set_epoch(epoch)
        return [dataset.info(index).sentence_id for index in range(len(dataset))]

    other = ReferDataset(demo_root, "demo", "train", image_size=32, max_tokens=9, seed=5)
    assert chosen(train, 2) == chosen(other, 2)
    assert chosen(train, 2) != chosen(train, 3)
    reseeded = ReferDataset(demo_root, "demo", "train", image_size=SIZE, seed=6)
    assert chosen(reseeded, 2) != chosen(train, 2)
    over_epochs = zip(*(chosen(train, epoch) for epoch in range(30)), strict=True)
    counts = [len(record["sentences"]) for record in train.store.references("train")]
    assert [len(set(ids)) for ids in over_epochs] == counts, "every sentence has its turn"


def test_cut_sentences_are_counted(demo_root: Path, train: ReferDataset) -> None:
    short = ReferDataset(demo_root, "demo", "train", image_size=SIZE, max_tokens=6)
    records = short.store.references("train")
    texts = [text for record in records for _, text in record["sentences"]]
    lengths = tokenize(texts, 6)[1]
    assert short.num_truncated == sum(length > 6 for length in lengths) > 0
    assert train.num_truncated == 0
    with pytest.raises(ValueError, match="max_words is 2"):
        ReferDataset(demo_root, "demo", "train", image_size=SIZE, max_tokens=2)


@pytest.mark.parametrize("max_tokens", [3, 6, 40])
def test_tokens_are_those_of_the_sentences(demo_root: Path, max_tokens: int) -> None:
    dataset = ReferDataset(
        demo_root, "demo", "testB", image_size=8, max_tokens=max_tokens, all_sentences=True
    )
    samples = [dataset.info(index) for index in range(len(dataset))]
    ids, lengths = tokenize([sample.sentence for sample in samples], max_tokens)
    assert [sample.num_tokens for sample in samples] == lengths
    found = torch.stack([dataset.ids(index) for index in range(len(dataset))])
    torch.testing.assert_close(found, ids)
    torch.testing.assert_close(dataset[3]["ids"], ids[3])


def test_opening_reads_no_record_and_no_image(
    demo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("read before anything was asked for")

    for name in ("reference", "references", "image"):
        monkeypatch.setattr(ReferStore, name, refuse)
    dataset = ReferDataset(demo_root, "demo", "train", image_size=SIZE)
    assert len(dataset) > 0 and dataset.num_truncated == 0
    with pytest.raises(AssertionError, match="before anything"):
        dataset[0]


def choose_sentences(dataset: ReferDataset, epoch: int, rows: list[int]) -> list[int]:
    """Sentences chosen by seed, epoch and place among ``rows``, as from the first version on."""
    records = dataset.store.references("train")
    pairs = [sentence_id for row in rows for sentence_id, _ in records[row]["sentences"]]
    first = np.cumsum([0, *(len(records[row]["sentences"]) for row in rows)])
    return [
        pairs[np.random.default_rng((5, epoch, i)).integers(first[i], first[i + 1])]
        for i in range(len(rows))
    ]


def test_the_choice_of_sentences_stays_what_it_was(train: ReferDataset) -> None:
    for epoch in (0, 1, 7):
        train.set_epoch(epoch)
        found = [train.info(index).sentence_id for index in range(len(train))]
        assert found == choose_sentences(train, epoch, list(range(len(train))))


def test_images_are_excluded_from_training(demo_root: Path, train: ReferDataset) -> None:
    records = train.store.references("train")
    names = {records[row]["file_name"] for row in (0, 30, 60)}
    rows = [row for row, record in enumerate(records) if record["file_name"] not in names]
    dataset = ReferDataset(
        demo_root,
        "demo",
        "train",
        image_size=SIZE,
        max_tokens=6,
        seed=5,
        excluded_images=names | {"ü.jpg"},
    )
    assert (len(dataset), dataset.num_excluded) == (len(rows), len(records) - len(rows))
    assert (dataset.num_empty, train.num_excluded, train.num_empty) == (0, 0, 0)
    found = [dataset.info(index) for index in range(len(dataset))]
    assert [sample.ref_id for sample in found] == [records[row]["ref_id"] for row in rows]
    assert [sample.sentence_id for sample in found] == choose_sentences(dataset, 0, rows)
    texts = [text for row in rows for _, text in records[row]["sentences"]]
    assert dataset.num_truncated == sum(length > 6 for length in tokenize(texts, 6)[1])
    index = next(i for i in range(len(dataset)) if rows[i] != i)
    np.testing.assert_array_equal(dataset.truth(index), train.truth(rows[index]))
    for left in (train, dataset):
        with pytest.raises(IndexError):
            left.info(len(left))
    with pytest.raises(ValueError, match=r"'train' is empty \(0 empty masks, 61 "):
        everything = {record["file_name"] for record in records}
        ReferDataset(demo_root, "demo", "train", image_size=SIZE, excluded_images=everything)


def test_empty_masks_are_excluded_from_training_alone(copy_as: Callable, tmp_path: Path) -> None:
    def empty(refs: list, instances: dict) -> None:
        for row in instances["annotations"]:
            if row["id"] in (refs[0]["ann_id"], refs[7]["ann_id"]):
                row["segmentation"], row["iscrowd"] = [[-9, -9, -9, -5, -5, -5]], 0

    source = copy_as("refcoco", range(20), change=empty)
    pack_dataset(tmp_path, source, accept_differences=True)
    train = ReferDataset(tmp_path, "refcoco", "train", image_size=SIZE)
    assert (len(train), train.num_empty, train.num_excluded) == (18, 2, 0)
    assert all(train.truth(index).any() for index in range(18))
    names = {train.store.reference("train", 0)["file_name"]}
    fewer = ReferDataset(tmp_path, "refcoco", "train", image_size=SIZE, excluded_images=names)
    assert fewer.num_empty == 2 and len(fewer) == 18 - fewer.num_excluded < 18
    scored = ReferDataset(tmp_path, "refcoco", "train", image_size=SIZE, all_sentences=True)
    assert len(scored) == scored.store.header["splits"]["train"]["sentences"]
    assert scored.num_empty == 0 and not scored.truth(0).any()
    with pytest.raises(ValueError, match=r"refcoco\.lmdb: split 'val' is empty"):
        ReferDataset(tmp_path, "refcoco", "val", image_size=SIZE)


def test_image_and_mask_stay_together(val: ReferDataset) -> None:
    for index in range(0, len(val), 17):
        image, mask = val.original(index)
        sample, box = val.info(index), val.letterbox(index)
        assert image.shape == (sample.height, sample.width, 3) and image.dtype == np.uint8
        assert mask.shape == image.shape[:2] and mask.dtype == bool
        np.testing.assert_array_equal(val.truth(index), mask)
        item = val[index]
        restored = restore_logits(item["mask"].float() - 0.5, box).numpy() > 0
        assert (restored & mask).sum() / (restored | mask).sum() > 0.9
        pixels = restore_logits(item["image"][0], box).numpy()
        assert np.abs(pixels - image[..., 0]).mean() < 8


def test_colours_are_red_green_blue(demo_root: Path, val: ReferDataset) -> None:
    path = demo_root / "demo" / "images" / val.info(0).file_name
    expected = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(val.original(0)[0], expected)


def test_workers_change_nothing(train: ReferDataset) -> None:
    train.set_epoch(4)
    expected = list(load(train))  # the parent has the images open when the workers begin
    found = list(load(train, num_workers=2, multiprocessing_context="fork"))
    for one, two in zip(expected, found, strict=True):
        for key in one:
            torch.testing.assert_close(one[key], two[key])


def test_persistent_workers_see_a_new_epoch(train: ReferDataset) -> None:
    loader = DataLoader(train, batch_size=64, num_workers=1, persistent_workers=True)
    for epoch in (1, 2):
        train.set_epoch(epoch)
        found = torch.cat([batch["ids"] for batch in loader])
        torch.testing.assert_close(found, torch.stack([train.ids(i) for i in range(len(train))]))
        expected = [train.info(index).sentence for index in range(len(train))]
        torch.testing.assert_close(found, tokenize(expected, 17)[0])


def test_a_pickled_data_set_reads_on(train: ReferDataset) -> None:
    expected = train[0]["image"]
    data = pickle.dumps(train)
    assert len(data) < 20_000, "no image and no record goes along"
    torch.testing.assert_close(pickle.loads(data)[0]["image"], expected)


def test_an_unreadable_image_is_named(packed_copy: Path, change_store: Callable) -> None:
    dataset = ReferDataset(packed_copy, "demo", "train", image_size=SIZE)
    name = dataset.info(0).file_name
    other = cv2.imencode(".jpg", np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    for damaged in (dataset.store.image(name)[:20], other):
        change_store(dataset.store.images_path, {name: damaged})
        with pytest.raises(ValueError, match=f"{name} is "):
            dataset[0]


def test_unknown_and_unpacked_data_sets(demo_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'test'"):
        ReferDataset(demo_root, "demo", "test", image_size=SIZE)
    with pytest.raises(ValueError, match=r"prepare_datasets\.py --dataset demo --root"):
        ReferDataset(tmp_path, "demo", "train", image_size=SIZE)
