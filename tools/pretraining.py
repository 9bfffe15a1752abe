"""Train the demo's small CLIPs contrastively on generated scenes; see pretrain_demo_clip.py."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from engine.results import provenance
from model.backbones import CLIP, sizes_of_name, to_openai
from model.backbones.blocks import sine_grid
from model.backbones.state import STEPS, to_tokens
from model.backbones.vit import VisionTransformer
from utils.data.tokenizer import tokenize
from utils.demo.drawing import render, visible_masks
from utils.demo.language import STYLES, Expression, caption, draw_expression, fits, parse
from utils.demo.scenes import Scene, make_scene
from utils.files import read_json_lines, write_json_lines

STREAMS = {"train": 7_001, "held out": 7_002}  # seeds of scenes that no demo data set has
PADDING = (122, 117, 104)  # CLIP's mean colour
STYLE_SHARES = (0.5, 0.25, 0.25)  # attribute, place, relation
MAX_TOKENS = 40  # the longest caption; the text tower itself keeps CLIP's 77 positions
HELD_OUT = 128  # scenes in each of the four batches that measure progress
SHARPNESS = 20.0  # of the log-sum-exp over patches: near a maximum


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Options of a run, as ``tools/pretrain_demo_clip.py --help`` explains them."""

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


class PretrainingBatches(Dataset):
    """Batch ``index`` of a stream of scenes, the same for the same seed on every machine.

    An item has, for B scenes and T expressions, one for each object:
        image: uint8 (B, 3, S, S), RGB, the scene padded to a square;
        captions, expressions: lists of B and T texts;
        owner: int64 (T,), the scene of an expression;
        target: bool (T, S, S), the visible part of the object that it singles out;
        style: int64 (T,), its place in ``STYLES``; only attributes in the first
            ``attribute_batches``;
        unrelated: bool (B, T), whether an expression is false of another's scene.
    """

    def __init__(
        self,
        *,
        stream: str,
        seed: int,
        batch_size: int,
        image_size: int,
        length: int,
        attribute_batches: int = 0,
    ):
        self.stream, self.seed, self.length = STREAMS[stream], seed, length
        self.attribute_batches = attribute_batches
        self.batch_size, self.image_size = batch_size, image_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor | list[str]]:
        rng = np.random.default_rng([self.stream, self.seed, index])
        scenes = [self.draw_scene(rng) for _ in range(self.batch_size)]
        styles = (1, 0, 0) if index < self.attribute_batches else STYLE_SHARES
        texts, owner, target, style = [], [], [], []
        for number, scene in enumerate(scenes):
            masks = visible_masks(scene)
            for position in range(len(scene.objects)):
                text, kind = draw_text(rng, scene, position, styles)
                texts.append(text)
                owner.append(number)
                target.append(self.pad(masks[position].astype(np.uint8), 0).astype(bool))
                style.append(kind)
        images = np.stack([self.pad(render(scene), PADDING) for scene in scenes])
        return {
            "image": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            "captions": [caption(rng, scene) for scene in scenes],
            "expressions": texts,
            "owner": torch.tensor(owner),
            "target": torch.from_numpy(np.stack(target)),
            "style": torch.tensor(style),
            "unrelated": torch.from_numpy(find_unrelated(scenes, texts, owner)),
        }

    def draw_scene(self, rng: np.random.Generator) -> Scene:
        """Draw a scene whose longer side is the image size; one in eight has a single object."""
        short = int(self.image_size * rng.uniform(0.62, 1.0))
        height, width = (short, self.image_size) if rng.random() < 0.5 else (self.image_size, short)
        num_objects = 1 if rng.random() < 0.125 else None
        return make_scene(rng, height=height, width=width, num_objects=num_objects)

    def pad(self, image: np.ndarray, value: int | tuple[int, int, int]) -> np.ndarray:
        """Put the image in the middle of a square of ``image_size``."""
        size = self.image_size
        square = np.full((size, size, *image.shape[2:]), value, np.uint8)
        top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
        square[top : top + image.shape[0], left : left + image.shape[1]] = image
        return square


def draw_text(
    rng: np.random.Generator, scene: Scene, position: int, shares: tuple[float, ...]
) -> tuple[str, int]:
    """Draw an expression that singles out one object, and its style; attributes if none fits."""
    style = int(rng.choice(len(STYLES), p=shares))
    text = draw_expression(rng, scene, position, STYLES[style])
    if text is None:
        style, text = 0, draw_expression(rng, scene, position, STYLES[0])
    assert text is not None, "three attributes single out every object"
    return text, style


def find_unrelated(scenes: list[Scene], texts: list[str], owner: list[int]) -> np.ndarray:
    """Find which expressions are false of which scenes, never of their own: bool (B, T)."""

    def names(shape: tuple[str, str, str], expression: Expression) -> bool:
        pairs = zip(expression[:3], shape, strict=True)
        return all(not word or word == shown for word, shown in pairs)

    expressions = [parse(text) for text in texts]
    result = np.empty((len(scenes), len(texts)), bool)
    for row, scene in enumerate(scenes):
        shown = {(shape.kind, shape.colour, shape.size) for shape in scene.objects}
        for column, expression in enumerate(expressions):
            is_true = any(names(shape, expression) for shape in shown) and fits(expression, scene)
            result[row, column] = owner[column] != row and not is_true
    return result


class Contrast(nn.Module):
    """A CLIP and the three contrastive losses that train it."""

    def __init__(self, name: str):
        super().__init__()
        sizes = sizes_of_name(name)
        self.clip = CLIP(
            sizes, image_size=sizes.native_size, max_tokens=sizes.context, norm=nn.BatchNorm2d
        )
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        initialize(self.clip)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode uint8 images and their patches as unit vectors ``(B, E)`` and ``(B, P, E)``."""
        hidden = self.clip.visual.embed(self.clip.normalize(image))
        for step in range(STEPS):
            hidden = self.clip.visual.run(step, hidden)
        pooled, patches = self.clip.visual.pool(hidden), self.clip.visual.head(hidden)
        return F.normalize(pooled.float(), dim=-1), F.normalize(to_tokens(patches).float(), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids as unit vectors ``(T, E)``."""
        return F.normalize(self.clip.embed_text(ids).float(), dim=-1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the three losses of a batch of :class:`PretrainingBatches` with token ids."""
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
    """Compute symmetric InfoNCE over pairs of image and caption, ``logits`` (B, B)."""
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def expression_loss(cosine: Tensor, owner: Tensor, unrelated: Tensor, scale: Tensor) -> Tensor:
    """Compute InfoNCE between an expression's image and all that it is false of, both ways."""
    score = scale * (SHARPNESS * cosine).logsumexp(dim=2) / SHARPNESS  # (B, T)
    own = score.gather(0, owner[None])[0]  # (T,)
    false = score.masked_fill(~unrelated, -torch.inf)
    over_images = torch.logaddexp(own, false.logsumexp(dim=0)) - own
    over_texts = torch.logaddexp(own, false.logsumexp(dim=1)[owner]) - own
    return (over_images.mean() + over_texts.mean()) / 2


def competition_loss(cosine: Tensor, owner: Tensor, scale: Tensor) -> Tensor:
    """Compute ``-log sum_p a(p|t) c(t|p)``: patches must fit their expression, not a rival.

    ``a`` is the softmax over the patches of the expression's image, ``c`` the softmax over all
    expressions of that image.
    """
    own = scale * cosine[owner, torch.arange(len(owner), device=owner.device)]  # (T, P)
    weight = (own - scale).exp()  # at most 1
    total = torch.zeros_like(cosine[:, 0]).index_add(0, owner, weight)  # (B, P): over its texts
    share = (weight / total[owner].clamp(min=1e-30)).clamp(min=1e-30)
    return -(own.log_softmax(dim=1) + share.log()).logsumexp(dim=1).mean()


def initialize(clip: CLIP) -> None:
    """Initialise as CLIP does (Radford et al., 2021), except for the positions of a ViT."""
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
        # a small ViT needs thousands of steps to learn positions; sines have the grid at once
        grid = math.isqrt(len(clip.visual.positions) - 1)
        clip.visual.positions.data[1:] = 0.5 * sine_grid(grid, clip.visual.positions.shape[1])
    nn.init.normal_(clip.text.token_embed.weight, std=0.02)
    nn.init.normal_(clip.text.proj.weight, std=clip.text.width**-0.5)


@torch.no_grad()
def pointing_accuracy(model: Contrast, batches: list[dict[str, Any]]) -> dict[str, float]:
    """Measure the share of expressions whose best patch has its centre in the target, by style.

    ``chance`` is that share for a random patch, ``chance_object`` for a random object;
    ``retrieval`` is the share of captions whose nearest image in the batch is their own.
    """
    model.eval()
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        pooled, patches = model.encode(batch["image"])
        captions = model.encode_text(batch["captions"])
        expressions = model.encode_text(batch["expressions"])
        owner, side = batch["owner"], int(patches.shape[1] ** 0.5)
        step = batch["target"].shape[-1] // side
        target = batch["target"][:, step // 2 :: step, step // 2 :: step].flatten(1)  # (T, P)
        best = torch.einsum("tpe,te->tp", patches[owner], expressions).argmax(dim=1)
        order = torch.arange(len(pooled), device=pooled.device)
        for name, values in {
            "all": target.gather(1, best[:, None])[:, 0].float(),
            "chance": target.float().mean(dim=1),
            "chance_object": 1 / torch.bincount(owner)[owner],
            "retrieval": ((captions @ pooled.T).argmax(dim=1) == order).float(),
            "style": batch["style"],
        }.items():
            columns.setdefault(name, []).append(values)
    model.train()
    joined = {name: torch.cat(values) for name, values in columns.items()}
    style = joined.pop("style")
    result = {name: joined["all"][style == i] for i, name in enumerate(STYLES)} | joined
    return {name: round(values.mean().item(), 4) for name, values in result.items()}


def rate_factor(step: int, steps: int, warmup: int = 300) -> float:
    """Compute the factor of the rate: linear warm-up, then half a cosine to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


def pretrain(options: Pretraining) -> None:
    """Train, log and write the weights in OpenAI's layout, float16; continue an earlier run."""
    torch.manual_seed(options.seed)
    model = Contrast(options.name).to(options.device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, options.lr)
    resume = options.output.with_suffix(".resume")
    first = 0
    if resume.is_file():
        state = torch.load(resume, map_location=options.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    log = ProgressLog(options, first)
    common: dict[str, int] = {"seed": options.seed, "image_size": model.clip.sizes.native_size}
    held_out = PretrainingBatches(stream="held out", length=4, batch_size=HELD_OUT, **common)
    checks = [add_ids(held_out[i], options.device) for i in range(len(held_out))]
    stream = PretrainingBatches(
        stream="train",
        batch_size=options.batch_size,
        length=options.steps,
        attribute_batches=options.attribute_steps,
        **common,
    )
    order = range(first, options.steps)
    loader = DataLoader(stream, batch_size=None, sampler=order, num_workers=options.workers)
    for step, batch in enumerate(loader, start=first + 1):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate_factor(step - 1, options.steps)
        log.add(update(model, optimizer, add_ids(batch, options.device)))
        is_last, pointing = step == options.steps, None
        if is_last or step % options.eval_interval == 0:
            pointing = pointing_accuracy(model, checks)
            save(options.output, openai_weights(model))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(resume, state | {"step": step})
        if pointing or step % options.log_interval == 0:
            log.write(step, pointing)
    resume.unlink(missing_ok=True)


def make_optimizer(model: Contrast, lr: float) -> torch.optim.Optimizer:
    """Make an AdamW that decays matrices alone, not vectors and scalars."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def add_ids(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """Replace texts by token ids, no longer than the longest of the batch; move to ``device``."""
    for key in ("captions", "expressions"):
        ids, lengths = tokenize(batch[key], MAX_TOKENS)
        batch[key] = ids[:, : max(lengths)]
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def update(
    model: Contrast, optimizer: torch.optim.Optimizer, batch: dict[str, Any]
) -> dict[str, Tensor]:
    """Take one step on the sum of the losses, and return them."""
    losses = model(batch)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses


def openai_weights(model: Contrast) -> dict[str, Tensor]:
    """Return the weights in OpenAI's layout, float16."""
    state = {key: value.half().cpu().contiguous() for key, value in to_openai(model.clip).items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    return state | {"logit_scale": model.logit_scale.detach().half().cpu()}


def save(path: Path, content: dict[str, Any]) -> None:
    """Save tensors to ``path``, whole or not at all."""
    # torch writes this name into the file: with a process number its SHA-256 would never repeat
    temporary = path.with_name(f"{path.name}.part")
    torch.save(content, temporary)
    os.replace(temporary, path)


class ProgressLog:
    """JSON lines beside the weights: how the run started, then means since the last line."""

    def __init__(self, options: Pretraining, first: int):
        self.path = options.output.with_name(f"{options.output.stem}-pretraining.jsonl")
        self.batch_size = options.batch_size
        rows = read_json_lines(self.path) if first else []
        kept = [row for row in rows if row.get("step", 0) <= first]
        start = {"started_at_step": first, **provenance(torch.device(options.device))}
        write_json_lines(self.path, [*kept, start])
        self._restart(first)

    def _restart(self, step: int) -> None:
        self.last_step, self.started = step, time.perf_counter()
        self.sums: dict[str, float] = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step."""
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + value.item()

    def write(self, step: int, pointing: dict[str, float] | None) -> None:
        """Write and print a line."""
        count, seconds = step - self.last_step, time.perf_counter() - self.started
        row: dict[str, Any] = {"step": step}
        row |= {key: round(value / count, 4) for key, value in self.sums.items()}
        row["scenes_per_second"] = round(count * self.batch_size / seconds, 1)
        row |= {"pointing": pointing} if pointing else {}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        self._restart(step)
