"""Update the weights once: forward, backward and Adam over a batch; the learning rate of a step."""

import math
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
from utils.config import TrainConfig
from utils.distributed import Processes


class GuardedAdam(torch.optim.Adam):
    """Adam that changes no weight, moment or step count while ``found_inf`` is 1.

    The fused kernel reads ``found_inf`` on the device (torch's own GradScaler sets it), so that a
    bad update is skipped without the host waiting for the device.
    """

    found_inf: Tensor

    def __init__(self, groups: list[dict[str, Any]], *, weight_decay: float) -> None:
        super().__init__(groups, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group["base_lr"] = group["lr"]

    def scale_rates(self, factor: float) -> None:
        """Set every group's rate to ``factor`` times its first one."""
        for group in self.param_groups:
            group["lr"] = factor * group["base_lr"]


class Update:
    """``update(batch)`` takes one step along the mean loss over the batches of all processes."""

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
        # 1 from the first loss or gradient on that is not finite: all later updates are skipped.
        self.non_finite = torch.zeros((), device=self.device)
        self.parallel: DistributedDataParallel | None = None
        if processes.are_several:
            self.parallel = DistributedDataParallel(
                segmenter,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                # only gradients are sent: statistics are shared when a run saves
                broadcast_buffers=False,
            )
        self.forward: Callable[[Tensor, Tensor], Tensor] = self.parallel or segmenter
        if compiles:
            self.forward = torch.compile(self.forward)

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Make one update from ``image (B, 3, S, S)``, ``ids (B, L)`` and ``mask (B, S, S)``.

        Nothing here waits for the device. Once a loss or a gradient is not finite, that update and
        all later ones are skipped. In fp16 a gradient that overflows is no such case: the scaler
        skips that update and continues with a smaller scale.

        Returns:
            ``[loss, norm of the gradient, 1 if one was not finite]``, and whether the logits of
            each sample of this process are finite: bool (B,).
        """
        local_loss, finite = self._accumulate(batch)
        loss = self.processes.add_up(local_loss) / self.processes.world_size
        self._skip_unless(loss.isfinite())
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.scaler.is_enabled():
            # The scaler checks only gradients, and those of an infinite loss may be finite.
            gradients[0] += torch.where(self.non_finite > 0, torch.nan, 0.0)
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm(gradients)
        if self.max_norm:
            clip_grads_with_norm_(self.parameters, self.max_norm, norm)
        if not self.scaler.is_enabled():
            self._skip_unless(norm.isfinite())
            self.optimizer.found_inf = self.non_finite
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss, norm, self.non_finite]), finite

    def _skip_unless(self, is_finite: Tensor) -> None:
        self.non_finite = torch.maximum(self.non_finite, (~is_finite).float())

    def _accumulate(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the mean loss over ``batch``; return loss and finite samples."""
        size = len(batch["image"])
        num_parts = -(-size // (self.micro_batch or size))
        chunks = (batch[key].tensor_split(num_parts) for key in ("image", "ids", "mask"))
        total, finite = torch.zeros((), device=self.device), []
        for number, part in enumerate(zip(*chunks, strict=True), 1):
            image, ids, mask = (tensor.to(self.device, non_blocking=True) for tensor in part)
            # The processes add up their gradients once, after the last part.
            is_last = number == num_parts
            with nullcontext() if is_last or not self.parallel else self.parallel.no_sync():
                with autocast(self.precision, self.device):
                    logits = self.forward(image, ids)  # (b, 1, h, w)
                loss = text_to_pixel_loss(logits, mask, target=self.target)
                share = len(image) / size
                self.scaler.scale(loss * share).backward()
            total += loss.detach() * share
            finite.append(logits.detach().isfinite().flatten(1).all(dim=1))  # (b,)
        return total, torch.cat(finite)


def rate_factor(
    step: int,
    options: TrainConfig,
    *,
    total_steps: int,
    steps_per_epoch: int,
    time_share: float = 0.0,
) -> float:
    """Return the factor on every group's rate for update ``step``, counted from 0.

    ``step``: ``gamma`` to the number of ``milestones`` (epochs) passed. ``cosine``:
    ``(1 + cos(pi p)) / 2`` with ``p`` the share of ``total_steps`` done or ``time_share``, the
    share of the time limit used, whichever is larger: a run that ends by the clock cools down too.
    Both rise linearly over the first ``warmup_steps``. Nothing of it needs saving.
    """
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    if options.schedule == "cosine":
        progress = max(step / total_steps, time_share)
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    epoch = step // steps_per_epoch
    return options.gamma ** sum(epoch >= milestone for milestone in options.milestones)
