"""The demo, end to end: prepare data, train for six minutes, test, and compare with guessing.

Every command is shown before it runs. What is finished stays, what was stopped goes on.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from engine.metrics import Metrics
    from utils.config import Config

EXAMPLE = """example:
  python tools/train_demo.py
  python tools/train_demo.py --fresh"""
CONFIG = ROOT / "config/demo/etris.yaml"
CHECKPOINT = ROOT / "pretrain/demo-etris.safetensors"
SPLITS = ("val", "testA", "testB")
COLUMNS = ("oIoU", "mIoU", "Pr@0.5")
Scores = Mapping[str, Mapping[str, float]]  # by split, then by measure, in percent


class CommandError(Exception):
    """A command of the demo ended early; it has said why itself."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(command)
        self.command, self.code = command, code


def run_demo(
    config_path: Path, checkpoint: Path, *, options: Sequence[str] = (), fresh: bool = False
) -> str:
    """Do what is not done yet; return a table of two checkpoints and two ways of guessing.

    One checkpoint is trained here from ``config_path``, the other is given; ``options`` go over
    the config of both. Raises ``ValueError`` for a user's mistake, ``CommandError`` for a command
    that fails.
    """
    from utils.config import load_config
    from utils.data.store import ReferStore

    config = load_config(config_path, options)
    if config.data.dataset != "demo":
        raise ValueError(f"{config_path}: data.dataset: {config.data.dataset!r}: should be 'demo'")
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint} is missing; it belongs to the project: git restore it")
    run_command(["tools/prepare_datasets.py", "--dataset", "demo", "--root", config.data.root])
    fingerprint = ReferStore(config.data.root, "demo").header["fingerprint"]

    over = ["--opts", *options] if options else []
    folder = Path(config.run.folder or f"runs/{config_path.stem}")
    outputs = (folder / "test", Path(f"{folder}-committed"))
    test = _test_command(folder / "best.safetensors", outputs[0], ["--config", config_path])
    scores = {}
    if fresh or read_scores(test + over, fingerprint, config) is None:
        run_command(["train.py", "--config", _shown(config_path), *["--fresh"] * fresh, *over])
    scores["trained here"] = _tested(test + over, fingerprint, config, fresh=fresh)
    test = _test_command(checkpoint, outputs[1], [])
    scores[f"committed {checkpoint.name}"] = _tested(test + over, fingerprint, fresh=fresh)

    rows = {
        split: {name: scores[name][split] for name in scores}
        | {name: guess.to_dict() for name, guess in guess_scores(config.data.root, split).items()}
        for split in SPLITS
    }
    pictures = " ".join(f"{_shown(output / split)}.png" for output in outputs for split in SPLITS)
    return f"{table(rows)}\n\npictures: {pictures}"


def run_command(words: Sequence[str]) -> None:
    """Show a command of ours, run it and wait for it; ``CommandError`` if it fails."""
    from utils.cli import Commands

    command = shlex.join(["python", *words])
    print(f"\n$ {command}", flush=True)
    with Commands() as commands:
        code = commands.run(words)
    if code:
        raise CommandError(command, code)


def _test_command(checkpoint: Path, output: Path, extra: Sequence[str | Path]) -> list[str]:
    words = ["test.py", "--checkpoint", checkpoint, *extra, "--splits", *SPLITS, "--output", output]
    return [_shown(word) if isinstance(word, Path) else word for word in words]


def _tested(
    command: Sequence[str], fingerprint: str, config: "Config | None" = None, *, fresh: bool
) -> Scores:
    """Scores of a ``test.py`` command, which runs unless they are there."""
    scores = None if fresh else read_scores(command, fingerprint, config)
    if scores is None:
        run_command(command)
        scores = read_scores(command, fingerprint, config)
        assert scores is not None, "test.py leaves results of the command, data and config it had"
    else:
        print(f"done already: {shlex.join(['python', *command])} (--fresh does it again)")
    return scores


def read_scores(
    command: Sequence[str], fingerprint: str, config: "Config | None" = None
) -> Scores | None:
    """What a ``test.py`` command left, None unless all it depends on is still the same.

    That is the command itself, its checkpoint, the data and, if it is given, the config.
    """
    values = dict(pairwise(command))
    checkpoint, path = Path(values["--checkpoint"]), Path(values["--output"], "results.json")
    if not checkpoint.is_file() or not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    with checkpoint.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    fits = (
        results["command"] == shlex.join(["python", *command])
        and results["checkpoint"]["sha256"] == sha256
        and results["data"]["fingerprint"] == fingerprint
        and (config is None or results["config"] == config.to_dict())
    )
    return results["splits"] if fits else None


def guess_scores(root: str | Path, split: str, *, seed: int = 0) -> dict[str, "Metrics"]:
    """Scores of two predictors that know the objects of a picture but not the sentence.

    One answers with the union of all objects, the other with one of them, chosen by ``seed`` and
    the sentence. Masks are those of ``instances.json``, at the original size.
    """
    from pycocotools import mask as coco_mask

    from engine.metrics import Record, metrics_from_records

    all_objects: list[Record] = []
    one_object: list[Record] = []
    for index, (reference, sentence, objects) in enumerate(_sentences(Path(root), split)):
        truth = objects[reference["ann_id"]]
        chance = hashlib.sha256(f"{seed} {sentence[0]}".encode()).digest()
        names = sorted(objects)
        for records, answer in (
            (all_objects, coco_mask.merge(list(objects.values()))),
            (one_object, objects[names[int.from_bytes(chance) % len(names)]]),
        ):
            intersection = int(coco_mask.area(coco_mask.merge([truth, answer], intersect=True)))
            union = int(coco_mask.area(coco_mask.merge([truth, answer])))
            records.append(Record(index, reference["ref_id"], *sentence, intersection, union))
    return {
        "guess: mask of all objects": metrics_from_records(all_objects),
        "guess: a random object": metrics_from_records(one_object),
    }


def _sentences(
    root: Path, split: str
) -> Iterator[tuple[dict[str, Any], tuple[int, str], dict[int, Any]]]:
    """Every reference and sentence of ``split`` with the masks (RLE) of its picture's objects."""
    from utils.prepare.masks import encode_mask
    from utils.prepare.refer import read_instances, refer_source

    source = refer_source(root, "demo")
    instances = read_instances(source.files[1])
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    objects: dict[int, dict[int, Any]] = {}
    for annotation in instances["annotations"]:
        image_id, size = annotation["image_id"], sizes[annotation["image_id"]]
        counts = encode_mask(annotation["segmentation"], *size, f"annotation {annotation['id']}")
        masks = objects.setdefault(image_id, {})
        masks[annotation["id"]] = {"size": list(size), "counts": counts.encode()}
    for entry in source.read():
        reference = entry.record
        if reference["split"] == split:
            for number, sentence in reference["sentences"]:
                yield reference, (number, sentence), objects[reference["image_id"]]


def table(rows: Mapping[str, Scores]) -> str:
    """Scores as text: ``rows[split][who][measure]``, in percent."""
    width = max(len(who) for scores in rows.values() for who in scores) + 2
    lines = [f"{'split':<8}{'':<{width}}" + "".join(f"{name:>8}" for name in COLUMNS)]
    for split, scores in rows.items():
        for position, (who, values) in enumerate(scores.items()):
            label = split if position == 0 else ""
            numbers = "".join(f"{values[name]:8.2f}" for name in COLUMNS)
            lines.append(f"{label:<8}{who:<{width}}{numbers}")
    return "\n".join(lines)


def _shown(path: Path) -> str:
    """``path`` as one writes it in the project's folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help=f"of the run ({CONFIG.relative_to(ROOT)})"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=CHECKPOINT,
        help=f"tested too ({CHECKPOINT.relative_to(ROOT)})",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that go over the config's"
    )
    parser.add_argument("--fresh", action="store_true", help="train and test anew")
    arguments = parser.parse_args(argv)
    config, checkpoint = arguments.config.resolve(), arguments.checkpoint.resolve()
    os.chdir(ROOT)  # configs name weights and data from there
    try:
        report = run_demo(config, checkpoint, options=arguments.opts, fresh=arguments.fresh)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CommandError as error:
        print(f"\nstopped in: {error.command}\nrun the demo again to go on there", file=sys.stderr)
        return error.code
    print(f"\n{report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
