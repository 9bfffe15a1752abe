"""Refuse options in the form of CRIS and ETRIS, such as ``--opts TRAIN.batch_size 16``."""

from collections.abc import Sequence
from itertools import zip_longest

SECTIONS = ("DATA", "TRAIN", "TEST", "Distributed")
# The last part of a key of theirs -> the key here.
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
LMDB = "data.root=FOLDER, in which tools/prepare_datasets.py packs"
FOLDER = "run.folder=FOLDER, which is output_folder/exp_name there"
TORCHRUN = "torchrun, see docs/several-gpus.md"
# The last part of a key of theirs -> what has the same effect here, where that is not one key.
EQUIVALENTS = {
    "lr_multi": "train.backbone_lr_scale=VALUE for CRIS, lr_scale: VALUE among the options of a "
    "module for ETRIS",
    "multi_stage": "model.bridges.0.stages=[0, 1, 2], the stages themselves",
    "train_lmdb": LMDB,
    "val_lmdb": LMDB,
    "test_lmdb": LMDB,
    "test_split": "test.py --splits VALUE",
    "visualize": "test.py --pictures N",
    "weight": "test.py --checkpoint FILE",
    "resume": "nothing, since train.py continues a run by itself",
    "exp_name": FOLDER,
    "output_folder": FOLDER,
    "workers_val": "data.workers=VALUE, for training and scoring",
    "dist_url": TORCHRUN,
    "world_size": TORCHRUN,
    "rank": TORCHRUN,
}


def refuse_flat_options(options: Sequence[str]) -> None:
    """Raise ``ValueError`` with the equivalents of options in the form of CRIS and ETRIS.

    There a key and its value are two words, ``KEY VALUE``; here they are one, ``key=value``.
    """
    lines = []
    for word, following in zip_longest(options, options[1:], fillvalue=""):
        key, equals, value = word.partition("=")
        section, name = key.partition(".")[0], key.rpartition(".")[2]
        if section not in SECTIONS:
            continue
        if not equals and "=" not in following:
            value = following
        way = f"--opts {KEYS[name]}=VALUE" if name in KEYS else EQUIVALENTS.get(name)
        way = way or "nothing takes its place; config/base.yaml has all keys"
        shown = "val" if value == "val-test" else value  # CRIS's name of val in its test.py
        way = way.replace("VALUE", shown or "VALUE")
        lines.append(f"--opts {key} {value}: a key of CRIS and ETRIS; here: {way}")
    if lines:
        raise ValueError("\n".join(lines))
