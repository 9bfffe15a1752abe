"""The latest updates: what the next log row averages, and what an error has to name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.data.dataset import MixedDataset
from utils.distributed import Processes


class NotFinite(ArithmeticError):  # noqa: N818 - reads as what it says
    """A loss or gradient was not finite; the message names the step and the samples."""


@dataclass(frozen=True)
class Entry:
    """One update: ``row`` is ``[loss, norm, spoiled]``, ``finite (B,)`` tells of local samples."""

    step: int
    indices: list[int]
    row: Tensor
    finite: Tensor

    def explain(self, train_set: MixedDataset, processes: Processes) -> str:
        """What to tell of a spoiled update; names samples with bad logits, or all if none had."""
        parts = processes.gather((self.indices, self.finite.tolist()))
        seen = [pair for part in parts for pair in zip(*part, strict=True)]
        named = [index for index, finite in seen if not finite] or [index for index, _ in seen]
        listed = ", ".join(_name(train_set, index) for index in named)
        loss, norm, _ = self.row.tolist()
        return (
            f"step {self.step}: the loss ({loss:g}) or the norm of its gradient ({norm:g}) is not "
            f"finite; samples: {listed}; the update was left out and last.pt keeps an earlier, "
            "good state; try a lower train.lr, train.max_norm: 1.0 or train.precision: fp32"
        )


def _name(train_set: MixedDataset, index: int) -> str:
    """A sample for people; identifiers are those of its data set, so it is named among several."""
    sample = train_set.info(index)
    dataset = train_set.locate(index)[0].store.dataset if len(train_set.parts) > 1 else ""
    return f"{dataset} ref {sample.ref_id} {sample.sentence!r} ({sample.file_name})".lstrip()


class History:
    """Keeps device tensors as they are until somebody looks, so that a GPU can run ahead."""

    def __init__(self, rows: Sequence[Sequence[float]] = ()) -> None:
        self._earlier = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
        self._rows: list[Tensor] = []
        self._unseen: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Remember one update."""
        self._rows.append(entry.row)
        self._unseen.append(entry)

    def first_spoiled(self) -> Entry | None:
        """The first update since the last call whose loss or gradient was not finite, if any."""
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return None
        flags = torch.stack([entry.row[2] for entry in unseen]).tolist()
        return next((entry for entry, flag in zip(unseen, flags, strict=True) if flag), None)

    def take_means(self) -> tuple[float, float] | None:
        """Mean loss and mean norm of the updates since the last call, if there are any."""
        rows = self._table()
        self._earlier, self._rows = rows[:0], []
        return tuple(rows.mean(dim=0)[:2].tolist()) if len(rows) else None

    def to_list(self) -> list[list[float]]:
        """What ``History`` takes to go on with the next log row."""
        return self._table().tolist()

    def _table(self) -> Tensor:
        """``(N, 3)`` on the host."""
        if not self._rows:
            return self._earlier
        return torch.cat([self._earlier, torch.stack(self._rows).double().cpu()])
