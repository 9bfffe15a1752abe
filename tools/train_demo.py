"""Run the demo: prepare data, train for six minutes, test, and compare with guessing.

Every command is shown before it runs. Finished commands are not repeated; a stopped one continues.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import Commands, make_parser, run_command  # noqa: E402

if TYPE_CHECKING:
    from engine.metrics import Metrics
    from utils.config import Config

EXAMPLES = """\
  python tools/train_demo.py
  python tools/train_demo.py --fresh"""
CONFIG = "config/demo/etris.yaml"
CHECKPOINT = "pretrain/demo-etris.safetensors"
SPLITS = ("val", "testA", "testB")
COLUMNS = ("oIoU", "mIoU", "Pr@0.5")
Scores = Mapping[str, Mapping[str, float]]  # by split, then by measure, in percent


def run_demo(
    config_path: Path, checkpoint: Path, *, options: Sequence[str] = (), fresh: bool = False
) -> str:
    """Run the commands that are not done yet; return a table of scores and the paths of pictures.

    The table has the model trained here from ``config_path``, the given ``checkpoint``, and two
    ways of guessing. ``options`` override the config of both models. Raises ``ValueError`` for a
    user's mistake, ``CalledProcessError`` for a command that fails.
    """
    from tabulate import tabulate

    from utils.config import load_config
    from utils.data.store import ReferStore

    config = load_config(config_path, options)
    if config.data.dataset != "demo":
        raise ValueError(f"{config_path}: data.dataset: {config.data.dataset!r}: should be 'demo'")
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint} is missing; it belongs to the project: git restore it")
    run_script(["tools/prepare_datasets.py", "--dataset", "demo", "--root", config.data.root])
    fingerprint = ReferStore(config.data.root, "demo").header["fingerprint"]

    overrides = ["--opts", *options] if options else []
    folder = Path(config.run.folder or f"runs/{config_path.stem}")
    outputs = (folder / "test", Path(f"{folder}-committed"))
    test = ["test.py", "--checkpoint", _shown(folder / "best.safetensors")]
    test += ["--config", _shown(config_path), "--splits", *SPLITS, "--output", _shown(outputs[0])]
    test += overrides
    if fresh or read_scores(test, fingerprint, config) is None:
        train = ["train.py", "--config", _shown(config_path), *["--fresh"] * fresh, *overrides]
        run_script(train)
    scores = {"trained here": run_test(test, fingerprint, config, fresh=fresh)}
    test = ["test.py", "--checkpoint", _shown(checkpoint), "--splits", *SPLITS]
    test += ["--output", _shown(outputs[1]), *overrides]
    scores[f"committed {checkpoint.name}"] = run_test(test, fingerprint, fresh=fresh)

    rows: list[list[Any]] = []
    for split in SPLITS:
        values = {name: one[split] for name, one in scores.items()}
        values |= {n: m.to_dict() for n, m in guess_scores(config.data.root, split).items()}
        for name, measures in values.items():
            label = split if name == "trained here" else ""
            rows.append([label, name, *(measures[column] for column in COLUMNS)])
    table = tabulate(rows, headers=["split", "", *COLUMNS], tablefmt="plain", floatfmt=".2f")
    pictures = " ".join(f"{_shown(output / split)}.png" for output in outputs for split in SPLITS)
    return f"{table}\n\npictures: {pictures}"


def run_script(words: Sequence[str]) -> None:
    """Show a command of ours and run it to its end; ``CalledProcessError`` if it fails."""
    command = shlex.join(["python", *words])
    print(f"\n$ {command}", flush=True)
    with Commands() as commands:
        code = commands.run(words)
    if code:
        raise subprocess.CalledProcessError(code, command)


def run_test(
    command: Sequence[str], fingerprint: str, config: "Config | None" = None, *, fresh: bool
) -> Scores:
    """Return the scores of a ``test.py`` command; run it unless they exist."""
    scores = None if fresh else read_scores(command, fingerprint, config)
    if scores is not None:
        print(f"done already: {shlex.join(['python', *command])} (--fresh repeats it)")
        return scores
    run_script(command)
    scores = read_scores(command, fingerprint, config)
    assert scores is not None, "test.py writes the command, data and config that it had"
    return scores


def read_scores(
    command: Sequence[str], fingerprint: str, config: "Config | None" = None
) -> Scores | None:
    """Read the results of a ``test.py`` command, or return None if they are of something else.

    The command, its checkpoint, the data and, if given, the config must be the same as now.
    """
    from utils.files import sha256_of

    values = dict(pairwise(command))
    checkpoint, path = Path(values["--checkpoint"]), Path(values["--output"], "results.json")
    if not checkpoint.is_file() or not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    is_same = (
        results["command"] == shlex.join(["python", *command])
        and results["checkpoint"]["sha256"] == sha256_of(checkpoint)
        and results["data"]["fingerprint"] == fingerprint
        and (config is None or results["config"] == config.to_dict())
    )
    return results["splits"] if is_same else None


def guess_scores(root: str | Path, split: str, *, seed: int = 0) -> dict[str, "Metrics"]:
    """Score two predictors that know the objects of a picture but not the sentence.

    One answers with the union of all objects, the other with a random object, drawn from ``seed``
    and the sentence. Masks are those of ``instances.json``, at the original size.
    """
    from pycocotools import mask as coco_mask

    from engine.metrics import Record, metrics_from_records

    all_objects: list[Record] = []
    one_object: list[Record] = []
    for index, (reference, sentence, objects) in enumerate(read_sentences(Path(root), split)):
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


def read_sentences(
    root: Path, split: str
) -> Iterator[tuple[dict[str, Any], tuple[int, str], dict[int, Any]]]:
    """Yield every reference and sentence of ``split`` with the masks (RLE) of its picture."""
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
        if entry.record["split"] == split:
            for number, sentence in entry.record["sentences"]:
                yield entry.record, (number, sentence), objects[entry.record["image_id"]]


def _shown(path: Path) -> str:
    """``path`` as a user writes it in the project's folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("--config", type=Path, default=ROOT / CONFIG, help=f"of the run ({CONFIG})")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / CHECKPOINT, help=f"tested too ({CHECKPOINT})"
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="key=value", help="keys that override the config's"
    )
    parser.add_argument("--fresh", action="store_true", help="repeat training and tests")
    arguments = parser.parse_args(argv)
    config, checkpoint = arguments.config.resolve(), arguments.checkpoint.resolve()
    os.chdir(ROOT)  # configs name weights and data from there

    def run() -> int:
        try:
            report = run_demo(config, checkpoint, options=arguments.opts, fresh=arguments.fresh)
        except subprocess.CalledProcessError as error:
            print(f"\nstopped in: {error.cmd}\nrun the demo again to continue", file=sys.stderr)
            return error.returncode
        print(f"\n{report}")
        return 0

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
