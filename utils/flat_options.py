"""Options in the form of CRIS and ETRIS, ``--opts TRAIN.batch_size 16``, and their equivalents."""

from collections.abc import Sequence

# The last part of their keys, which alone counts there, and what takes its place here: a key,
# or how else the same is said.
KEYS = {
    "dataset": "data.dataset",
    "clip_pretrain": "model.backbone.weights",
    "input_size": "data.image_size",
    "word_len": "data.max_words",
    "ladder_dim": "model.bridges.0.dim",
    "nhead": "model.bridges.0.heads",
    "vis_dim": "model.decoder.dim",
    "num_layers": "model.decoder.layers",
    "num_head": "model.decoder.heads",
    "dim_ffn": "model.decoder.feedforward",
    "dropout": "model.decoder.dropout",
    "workers": "data.workers",
    "epochs": "train.epochs",
    "milestones": "train.milestones",
    "batch_size": "train.batch_size",
    "batch_size_val": "eval.batch_size",
    "base_lr": "train.lr",
    "lr_decay": "train.gamma",
    "weight_decay": "train.weight_decay",
    "max_norm": "train.max_norm",
    "manual_seed": "train.seed",
    "print_freq": "run.log_interval",
    "val_split": "eval.split",
}
LMDB = "data.root=FOLDER, below which tools/prepare_datasets.py packs"
FOLDER = "run.folder=FOLDER, which is output_folder/exp_name there"
TORCHRUN = "torchrun, see docs/several-gpus.md"
WAYS = {
    "lr_multi": "train.backbone_lr_scale=VALUE for CRIS, lr_scale: VALUE among the options of a "
    "module for ETRIS",
    "multi_stage": "model.bridges.0.stages=[0, 1, 2], the stages themselves",
    "train_lmdb": LMDB,
    "val_lmdb": LMDB,
    "test_lmdb": LMDB,
    "test_split": "test.py --splits VALUE",
    "visualize": "test.py --pictures N",
    "weight": "test.py --checkpoint FILE",
    "resume": "nothing, since train.py goes on where a run stopped",
    "exp_name": FOLDER,
    "output_folder": FOLDER,
    "workers_val": "data.workers=VALUE, for training and scoring",
    "dist_url": TORCHRUN,
    "world_size": TORCHRUN,
    "rank": TORCHRUN,
}
SECTIONS = ("DATA", "TRAIN", "TEST", "Distributed")


def is_flat(key: str) -> bool:
    """Whether a key begins with a section of CRIS's and ETRIS's files."""
    return key.partition(".")[0] in SECTIONS


def refuse_flat(options: Sequence[str]) -> None:
    """``ValueError`` with the equivalents if options are in the form of CRIS and ETRIS.

    There a key and its value are two words; here they are one, with a sign of equality.
    """
    lines = []
    for place, word in enumerate(options):
        key, equals, value = word.partition("=")
        if not is_flat(key):
            continue
        if not equals:
            following = options[place + 1 : place + 2]
            value = following[0] if following and "=" not in following[0] else ""
        lines.append(f"--opts {key} {value}: a key of CRIS and ETRIS; here: {_way(key, value)}")
    if lines:
        raise ValueError("\n".join(lines))


def _way(key: str, value: str) -> str:
    name = key.rpartition(".")[2]
    if name in KEYS:
        return f"--opts {KEYS[name]}={value or 'VALUE'}"
    if name in WAYS:
        value = "val" if value == "val-test" else value  # what CRIS calls val where it tests
        return WAYS[name].replace("VALUE", value or "VALUE")
    return "nothing takes its place; config/base.yaml has all keys"
