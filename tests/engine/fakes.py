"""A fake segmenter and a fake data set with the faces of the real ones, for quick tests."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from engine.checkpoint import load_state
from engine.trainer import Trainer
from utils.config import Config
from utils.data.dataset import MixedDataset, Sample
from utils.data.transforms import Letterbox, letterbox_image, letterbox_mask
from utils.distributed import Processes
from utils.files import read_json_lines

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
SIZE = 32


class FakeSet(Dataset):
    """Random pictures of many shapes with a box each; the sentence depends on the epoch."""

    fingerprint = "f" * 64
    length = 5
    num_truncated = num_excluded = num_empty = 0

    def __init__(self, num_samples: int = 21, seed: int = 0) -> None:
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0
        self.store = SimpleNamespace(dataset=f"fake{seed}")

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def original(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, index))
        height, width = rng.integers(8, 40, size=2)
        image = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), bool)
        mask[: rng.integers(2, height), : rng.integers(2, width)] = True
        image[mask] //= 2
        return image, mask

    def truth(self, index: int) -> np.ndarray:
        return self.original(index)[1]

    def letterbox(self, index: int) -> Letterbox:
        return Letterbox.fit(*self.original(index)[1].shape, SIZE)

    def info(self, index: int) -> Sample:
        height, width = self.original(index)[1].shape
        sentence = f"box {index}"
        return Sample(index // 2, index, sentence, index, f"{index}.jpg", height, width, 1, 4)

    def image(self, index: int) -> Tensor:
        square, _ = letterbox_image(self.original(index)[0], SIZE)
        return torch.from_numpy(square).permute(2, 0, 1).contiguous()

    def ids(self, index: int) -> Tensor:
        ids = np.random.default_rng((self.epoch, index)).integers(1, 9, self.length)
        return torch.from_numpy(ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.from_numpy(letterbox_mask(self.truth(index), self.letterbox(index)))
        image, ids = self.image(index), self.ids(index)
        return {"image": image, "ids": ids, "mask": mask, "index": index}


class FakeSegmenter(nn.Module):
    """A frozen convolution, words added, dropout, and a trained convolution.

    What sentences about an image share is the map that the first convolution makes.
    """

    backbone = {"name": "tiny", "weights": None, "sha256": "0" * 64}  # noqa: RUF012

    def __init__(self, *, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 8, 4, stride=4).requires_grad_(False)
        self.words = nn.Embedding(9, 8)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(8, 1, 3, padding=1)

    def begin(self, image: Tensor) -> Tensor:
        return self.frozen(image.float() / 255)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.finish([self.begin(image)], ids)

    def finish(self, states: list[Tensor], ids: Tensor) -> Tensor:
        x = torch.cat(states) + self.words(ids).mean(dim=1)[:, :, None, None]
        return self.head(self.dropout(self.norm(x)).relu())

    def hyperparameters(self) -> dict[str, dict[str, Any]]:
        return {}

    def trainable_state(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state_dict().items() if not k.startswith("frozen.")}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        self.load_state_dict(state, strict=False)

    def parameter_groups(
        self, *, lr: float, encoder_lr_scale: float, backbone_lr_scale: float = 0.1
    ) -> list[dict[str, Any]]:
        encoder = self.words.parameters()
        decoder = [*self.norm.parameters(), *self.head.parameters()]
        return [
            {"name": "encoder", "params": list(encoder), "lr": lr * encoder_lr_scale},
            {"name": "decoder", "params": list(decoder), "lr": lr},
        ]


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl, without what depends on the clock."""
    parsed = read_json_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in parsed]


def make_config(**sections: dict[str, Any]) -> Config:
    """Batches of 4 of 21 samples: 5 updates an epoch; a row for each, scored every epoch."""
    defaults: dict[str, dict[str, Any]] = {
        "data": {"dataset": "demo", "image_size": SIZE, "workers": 0},
        "train": {"epochs": 2, "batch_size": 4, "lr": 1e-2, "precision": "fp32"},
        "eval": {"batch_size": 4},
        "run": {"log_interval": 1},
    }
    names = {*defaults, *sections}
    return Config.from_dict({n: defaults.get(n, {}) | sections.get(n, {}) for n in names})


def make_trainer(
    folder: Path,
    config: Config,
    *,
    dropout: float = 0.0,
    norm: bool = False,
    mixed: bool = False,
    processes: Processes = ALONE,
) -> Trainer:
    """A trainer in ``folder``, which continues from its ``last.pt`` if there is one.

    On one data set, or with ``mixed`` on two.
    """
    folder.mkdir(exist_ok=True)
    last = folder / "last.pt"
    torch.manual_seed(config.train.seed)
    val_sets = {"val": FakeSet(9, seed=1)}
    if mixed:
        val_sets = {"one/val": FakeSet(9, seed=1), "two/val": FakeSet(4, seed=3)}
    return Trainer(
        FakeSegmenter(dropout=dropout, norm=norm),
        MixedDataset([FakeSet(), *([FakeSet(10, seed=2)] if mixed else [])]),
        val_sets,
        config,
        folder=folder,
        processes=processes,
        state=processes.share(load_state(last) if processes.is_main and last.exists() else None),
    )
