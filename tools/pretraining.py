"""Contrastive training of the demo's small CLIPs; see ``tools/pretrain_demo_clip.py``."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from engine.provenance import provenance
from model.backbones import CLIP, sizes_of_name, to_openai
from model.backbones.blocks import STEPS, sine_grid, to_tokens
from model.backbones.vit import VisionTransformer
from tools.pretraining_data import PretrainingBatches
from utils.data.tokenizer import tokenize
from utils.demo.language import STYLES
from utils.files import read_json_lines, write_json_lines

MAX_TOKENS = 40  # the longest caption; the text tower itself keeps CLIP's 77 positions
HELD_OUT = 128  # scenes in each of the four batches that measure progress
SHARPNESS = 20.0  # of the log-sum-exp over patches: near a maximum


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Options of one run, as ``tools/pretrain_demo_clip.py --help`` explains them."""

    name: str
    output: Path
    steps: int
    batch_size: int
    lr: float
    seed: int
    workers: int
    attribute_steps: int
    log_interval: int
    eval_interval: int
    device: str


class Contrast(nn.Module):
    """A CLIP and the three contrastive losses that train it."""

    def __init__(self, name: str):
        super().__init__()
        sizes = sizes_of_name(name)
        self.clip = CLIP(
            sizes, image_size=sizes.native_size, max_words=sizes.context, norm=nn.BatchNorm2d
        )
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        initialize(self.clip)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images -> unit embeddings of images ``(B, E)`` and their patches ``(B, P, E)``."""
        hidden = self.clip.visual.embed(self.clip.normalize(image))
        for step in range(STEPS):
            hidden = self.clip.visual.run(step, hidden)
        pooled, patches = self.clip.visual.pool(hidden), self.clip.visual.head(hidden)
        return F.normalize(pooled.float(), dim=-1), F.normalize(to_tokens(patches).float(), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids -> unit embeddings ``(T, E)``."""
        return F.normalize(self.clip.embed_text(ids).float(), dim=-1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The three losses of a batch of :class:`PretrainingBatches` with token ids for texts."""
        with torch.autocast(batch["image"].device.type, torch.bfloat16):
            pooled, patches = self.encode(batch["image"])
            captions = self.encode_text(batch["captions"])
            expressions = self.encode_text(batch["expressions"])
        scale = self.logit_scale.exp().clamp(max=100)
        cosine = torch.einsum("bpe,te->btp", patches, expressions)  # (B, T, P)
        return {
            "caption": caption_loss(scale * pooled @ captions.T),
            "expression": expression_loss(cosine, batch["owner"], batch["unrelated"], scale),
            "competition": competition_loss(cosine, batch["owner"], scale),
        }


def caption_loss(logits: Tensor) -> Tensor:
    """Symmetric InfoNCE over pairs of image and caption, ``logits`` (B, B)."""
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def expression_loss(cosine: Tensor, owner: Tensor, unrelated: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE between an expression's own image and all that it is false of, in both directions."""
    score = scale * (SHARPNESS * cosine).logsumexp(dim=2) / SHARPNESS  # (B, T)
    own = score.gather(0, owner[None])[0]  # (T,)
    false = score.masked_fill(~unrelated, -torch.inf)
    over_images = torch.logaddexp(own, false.logsumexp(dim=0)) - own
    over_texts = torch.logaddexp(own, false.logsumexp(dim=1)[owner]) - own
    return (over_images.mean() + over_texts.mean()) / 2


def competition_loss(cosine: Tensor, owner: Tensor, scale: Tensor) -> Tensor:
    """``-log sum_p a(p|t) c(t|p)``: the patches an expression points at must mean it, not a rival.

    ``a`` is the softmax over the patches of the expression's image, ``c`` the softmax over all
    expressions of that image.
    """
    own = scale * cosine[owner, torch.arange(len(owner), device=owner.device)]  # (T, P)
    weight = (own - scale).exp()  # at most 1
    total = torch.zeros_like(cosine[:, 0]).index_add(0, owner, weight)  # (B, P): over its texts
    share = (weight / total[owner].clamp(min=1e-30)).clamp(min=1e-30)
    return -(own.log_softmax(dim=1) + share.log()).logsumexp(dim=1).mean()


def initialize(clip: CLIP) -> None:
    """CLIP's initialisation (Radford et al., 2021), but for the positions of a ViT."""
    for tower in (clip.visual, clip.text):
        blocks = getattr(tower, "blocks", [])
        for block in blocks:
            width, depth = block.attention.width, len(blocks)
            narrow, deep = width**-0.5, (2 * depth) ** -0.5
            for name in ("q_proj", "k_proj", "v_proj"):
                nn.init.normal_(getattr(block.attention.branch, name).weight, std=narrow)
            nn.init.normal_(block.attention.branch.out_proj.weight, std=narrow * deep)
            nn.init.normal_(block.mlp.branch.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.branch.fc2.weight, std=narrow * deep)
    if isinstance(clip.visual, VisionTransformer):
        # learned positions take a small ViT thousands of steps to find; sines have the grid at once
        grid = math.isqrt(len(clip.visual.positions) - 1)
        clip.visual.positions.data[1:] = 0.5 * sine_grid(grid, clip.visual.positions.shape[1])
    nn.init.normal_(clip.text.token_embed.weight, std=0.02)
    nn.init.normal_(clip.text.proj.weight, std=clip.text.width**-0.5)


def add_ids(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """Token ids in place of texts, no longer than the longest of the batch."""
    for key in ("captions", "expressions"):
        ids, lengths = tokenize(batch[key], MAX_TOKENS)
        batch[key] = ids[:, : max(lengths)]
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


@torch.no_grad()
def pointing_accuracy(model: Contrast, batches: list[dict[str, Any]]) -> dict[str, float]:
    """The share of expressions whose arg-max patch has its centre in the target, by style.

    ``chance`` is that share for a patch drawn at random, ``chance_object`` for an object drawn at
    random; ``retrieval`` the share of captions whose nearest image in the batch is their own.
    """
    model.eval()
    hits, chance, styles, rivals, found = [], [], [], [], []
    for batch in batches:
        pooled, patches = model.encode(batch["image"])
        captions = model.encode_text(batch["captions"])
        expressions = model.encode_text(batch["expressions"])
        owner, side = batch["owner"], int(patches.shape[1] ** 0.5)
        step = batch["target"].shape[-1] // side
        target = batch["target"][:, step // 2 :: step, step // 2 :: step].flatten(1)  # (T, P)
        best = torch.einsum("tpe,te->tp", patches[owner], expressions).argmax(dim=1)
        hits.append(target.gather(1, best[:, None])[:, 0].float())
        chance.append(target.float().mean(dim=1))
        rivals.append(1 / torch.bincount(owner)[owner])
        styles.append(batch["style"])
        order = torch.arange(len(pooled), device=pooled.device)
        found.append(((captions @ pooled.T).argmax(dim=1) == order).float())
    model.train()
    hit, style = torch.cat(hits), torch.cat(styles)
    result = {name: hit[style == i].mean().item() for i, name in enumerate(STYLES)}
    result |= {"all": hit.mean().item(), "chance": torch.cat(chance).mean().item()}
    result["chance_object"] = torch.cat(rivals).mean().item()
    result["retrieval"] = torch.cat(found).mean().item()
    return {key: round(value, 4) for key, value in result.items()}


def rate(step: int, steps: int, warmup: int = 300) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


def pretrain(options: Pretraining) -> None:
    """Train, log and write the weights in OpenAI's layout, in float16; continue an earlier run."""
    torch.manual_seed(options.seed)
    model = Contrast(options.name).to(options.device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, options.lr)
    resume = options.output.with_suffix(".resume")
    first = restore(resume, model, optimizer, options.device)
    log = ProgressLog(options, first)
    common = {"seed": options.seed, "image_size": model.clip.sizes.native_size}
    held_out = PretrainingBatches(stream="held out", length=4, batch_size=HELD_OUT, **common)
    checks = [add_ids(held_out[i], options.device) for i in range(len(held_out))]
    stream = PretrainingBatches(
        stream="train",
        batch_size=options.batch_size,
        length=options.steps,
        attribute_batches=options.attribute_steps,
        **common,
    )
    for step, batch in enumerate(loader(stream, first, options.workers), start=first):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(step, options.steps)
        log.add(update(model, optimizer, add_ids(batch, options.device)))
        done = step + 1
        is_last = done == options.steps
        pointing = None
        if is_last or done % options.eval_interval == 0:
            pointing = pointing_accuracy(model, checks)
            save_weights(options.output, model)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            write(resume, state | {"step": done})
        if is_last or done % options.log_interval == 0 or pointing:
            log.write(done, pointing)
    resume.unlink(missing_ok=True)


def make_optimizer(model: Contrast, lr: float) -> torch.optim.Optimizer:
    """AdamW that leaves vectors and scalars undecayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def update(
    model: Contrast, optimizer: torch.optim.Optimizer, batch: dict[str, Any]
) -> dict[str, Tensor]:
    """One step on the sum of the losses, which are returned."""
    losses = model(batch)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses


class ProgressLog:
    """JSON lines beside the weights: how the run was started, then means since the last line."""

    def __init__(self, options: Pretraining, first: int):
        self.path = options.output.with_name(f"{options.output.stem}-pretraining.jsonl")
        self.batch_size = options.batch_size
        rows = read_json_lines(self.path) if first else []
        kept = [row for row in rows if row.get("step", 0) <= first]
        start = {"started_at_step": first, **provenance(torch.device(options.device))}
        write_json_lines(self.path, [*kept, start])
        self.restart(first)

    def restart(self, step: int) -> None:
        self.shown, self.started = step, time.perf_counter()
        self.sums: dict[str, float] = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + value.item()

    def write(self, step: int, pointing: dict[str, float] | None) -> None:
        count, seconds = step - self.shown, time.perf_counter() - self.started
        row: dict[str, Any] = {"step": step}
        row |= {key: round(value / count, 4) for key, value in self.sums.items()}
        row["scenes_per_second"] = round(count * self.batch_size / seconds, 1)
        row |= {"pointing": pointing} if pointing else {}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        self.restart(step)


def loader(stream: PretrainingBatches, first: int, workers: int) -> Iterator[dict[str, Any]]:
    order = range(first, len(stream))
    return iter(DataLoader(stream, batch_size=None, sampler=order, num_workers=workers))


def save_weights(path: Path, model: Contrast) -> None:
    state = {key: value.half().cpu().contiguous() for key, value in to_openai(model.clip).items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    state["logit_scale"] = model.logit_scale.detach().half().cpu()
    write(path, state)


def write(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f"{path.name}.part")
    torch.save(content, aside)
    os.replace(aside, path)


def restore(path: Path, model: Contrast, optimizer: torch.optim.Optimizer, device: str) -> int:
    """Load an interrupted run; the step to continue at, 0 if there is none."""
    if not path.is_file():
        return 0
    content = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])
