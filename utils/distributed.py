"""Join the processes of a run that torchrun started, and exchange values between them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.memory import keep_freed_memory


@dataclass(frozen=True)
class Processes:
    """Describe this process among all of a run: ``rank`` counts over all nodes."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Return whether there are other processes."""
        return self.world_size > 1

    def gather(self, value: Any) -> list[Any]:
        """Return ``value`` of every process in the order of ranks, on every process."""
        if not self.are_several:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def largest(self, values: list[float]) -> list[float]:
        """Return the maximum of each entry over all processes, without waiting for a GPU."""
        if not self.are_several:
            return values
        numbers = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return numbers.tolist()

    def share(self, value: Any) -> Any:
        """Return the ``value`` of rank 0 on every process."""
        values = [value]
        if self.are_several:
            distributed.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def add_up(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over all processes, on their device."""
        if self.are_several:
            distributed.all_reduce(values)
        return values

    def share_statistics(self, module: nn.Module) -> None:
        """Give every process the BatchNorm statistics of rank 0.

        On GPUs SyncBatchNorm keeps them equal. torch has none for CPUs: there each process
        normalises by its own part of the batch, and a run keeps the statistics of rank 0.
        """
        if not self.are_several:
            return
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                for statistic in norm.buffers(recurse=False):
                    distributed.broadcast(statistic, 0)


@contextmanager
def start_processes() -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one; leave them at the end.

    Gloo transfers CPU tensors, NCCL transfers GPU tensors.

    Raises:
        ValueError: a node has fewer GPUs than processes.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = _choose_device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cpu":
        keep_freed_memory()
    if world_size > 1:
        # Both: values that control the run stay on the host, so that no exchange waits for a GPU.
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        distributed.init_process_group(backend, rank=rank, world_size=world_size)
    yield Processes(rank=rank, world_size=world_size, device=device)
    # Not after an error: the others may hang in a collective, and torchrun ends them.
    if world_size > 1:
        distributed.destroy_process_group()


def _choose_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank} of this node has no GPU: {count} visible; "
            f"start torchrun with --nproc-per-node {count}, or hide them: CUDA_VISIBLE_DEVICES="
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
