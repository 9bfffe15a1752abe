"""One update of the weights: forward, backward and Adam over a batch that may come in parts."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from engine.precision import autocast
from model import Segmenter
from model.loss import text_to_pixel_loss
from utils.distributed import Processes


class GuardedAdam(torch.optim.Adam):
    """Adam that leaves weights, moments and step counts alone while ``found_inf`` is 1.

    The fused kernel reads ``found_inf`` on the device (torch's own GradScaler sets it), so that a
    bad update is left out without the host waiting for the device to tell.
    """

    found_inf: Tensor

    def __init__(self, groups: list[dict[str, Any]], *, weight_decay: float) -> None:
        super().__init__(groups, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group["base_lr"] = group["lr"]

    def scale_rates(self, factor: float) -> None:
        """Set every group's rate to ``factor`` times the one it was made with."""
        for group in self.param_groups:
            group["lr"] = factor * group["base_lr"]


class Update:
    """``update(batch)`` moves the weights along the mean loss over the batches of all processes."""

    def __init__(
        self,
        segmenter: Segmenter,
        optimizer: GuardedAdam,
        *,
        processes: Processes,
        precision: str,
        micro_batch: int | None = None,
        max_norm: float = 0.0,
        target: str = "majority",
        compiles: bool = False,
    ) -> None:
        self.optimizer, self.processes, self.precision = optimizer, processes, precision
        self.micro_batch, self.max_norm, self.target = micro_batch, max_norm, target
        self.device = processes.device
        self.parameters = [p for p in segmenter.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        # Set for good by the first loss or gradient that is not finite: no later update counts.
        self.spoiled = torch.zeros((), device=self.device)
        self.parallel: DistributedDataParallel | None = None
        if processes.are_several:
            self.parallel = DistributedDataParallel(
                segmenter,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                # gradients alone travel: what moves besides is shared when a run saves
                broadcast_buffers=False,
            )
        self.forward: Callable[[Tensor, Tensor], Tensor] = self.parallel or segmenter
        if compiles:
            self.forward = torch.compile(self.forward)

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``[loss, norm of the gradient, 1 if spoiled]`` and which local samples are finite.

        ``batch``: ``image (B, 3, S, S)``, ``ids (B, L)``, ``mask (B, S, S)``. Nothing here waits
        for the device. Once the loss or, but for fp16, the gradient is not finite, that update and
        all later ones are left out. In fp16 the scaler leaves out an update whose scaled gradient
        overflows and goes on with a smaller scale.
        """
        local_loss, finite = self._accumulate(batch)
        loss = self.processes.add_up(local_loss) / self.processes.world_size
        self._spoil_unless(loss.isfinite())
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.scaler.is_enabled():
            # The scaler looks at gradients alone, and one of an infinite loss may be finite.
            gradients[0] += torch.where(self.spoiled > 0, torch.nan, 0.0)
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm(gradients)
        if self.max_norm:
            clip_grads_with_norm_(self.parameters, self.max_norm, norm)
        if not self.scaler.is_enabled():
            self._spoil_unless(norm.isfinite())
            self.optimizer.found_inf = self.spoiled
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss, norm, self.spoiled]), finite

    def _spoil_unless(self, fine: Tensor) -> None:
        self.spoiled = torch.maximum(self.spoiled, (~fine).float())

    def _accumulate(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Add up the gradient of the mean loss over ``batch``; the loss and the finite samples."""
        size = len(batch["image"])
        num_parts = -(-size // (self.micro_batch or size))
        chunks = {key: batch[key].tensor_split(num_parts) for key in ("image", "ids", "mask")}
        total, finite = torch.zeros((), device=self.device), []
        for part in range(num_parts):
            image, ids, mask = (
                chunks[key][part].to(self.device, non_blocking=True)
                for key in ("image", "ids", "mask")
            )
            # The processes add up their gradients once, with the last part's.
            is_last = part == num_parts - 1
            with nullcontext() if is_last or not self.parallel else self.parallel.no_sync():
                with autocast(self.precision, self.device):
                    logits = self.forward(image, ids)
                loss = text_to_pixel_loss(logits, mask, target=self.target)
                share = len(image) / size
                self.scaler.scale(loss * share).backward()
            total += loss.detach() * share
            finite.append(logits.detach().isfinite().flatten(1).all(dim=1))  # (B,)
        return total, torch.cat(finite)
