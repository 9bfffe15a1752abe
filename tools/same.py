"""Show that a change of the code changes no number: train and score two trees, compare the bits.

Eight small configurations train for 20 steps in float32 on one thread, in a worktree of BASE and in
this tree, on the same generated data, and are scored. Losses, norms and rates of every step, the
tensors of the best checkpoint, scores and rows must be the same. What BASE gave is kept in
runs/same/, so that the next comparison with it trains this tree alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EXAMPLE = """examples:
  python tools/same.py --base HEAD~1
  make same BASE=main"""
FOLDER = ROOT / "runs/same"
# A configuration of config/demo and the data sets that it trains on.
CASES = {
    "etris": ("etris", "one"),
    "etris_vit": ("etris_vit", "one"),
    "barleria": ("barleria_vit", "one"),
    "lora": ("lora", "one"),
    "compacter": ("compacter_vit", "one"),
    "coop": ("coop_vit", "one"),
    "cris": ("cris", "one"),
    "mixed": ("etris_vit", "[one, two]"),
}
OPTIONS = (
    "train.max_steps=20",
    "train.max_minutes=null",
    "train.warmup_steps=4",
    "train.batch_size=4",
    "train.precision=fp32",
    "eval.every_steps=10",
    "data.workers=0",
    "run.log_interval=1",
)
# Of a row of metrics.jsonl or of a score, what is of the clock.
OF_THE_CLOCK = ("samples_per_second", "seconds")
Outcome = dict[str, Any]


def write_data(folder: Path, *, seed: int, num_train: int = 24, num_val: int = 8) -> None:
    """Pictures of a box and a circle each, and ``annotations.jsonl`` that names them."""
    import cv2
    import numpy as np

    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(num_train + num_val):
        image = random.integers(0, 256, (120, 160, 3), np.uint8)
        x, y = (int(n) for n in random.integers(30, 60, 2))
        cv2.circle(image, (x, y), 20, (0, 0, 255), -1)
        cv2.rectangle(image, (x + 40, y), (x + 90, y + 40), (255, 0, 0), -1)
        cv2.imwrite(str(folder / f"images/{seed}-{number}.png"), image)
        box = [x + 40, y, x + 91, y, x + 91, y + 41, x + 40, y + 41]
        round_one = np.array([[x + 20 * np.cos(a), y + 20 * np.sin(a)] for a in np.arange(12) / 2])
        split = "train" if number < num_train else "val"
        for polygon, texts in (
            (box, ["the blue box", "the large thing on the right"]),
            (round_one.round(2).flatten().tolist(), ["a red circle", "left", "the round one"]),
        ):
            line = {"image": f"{seed}-{number}.png", "polygon": polygon, "sentences": texts}
            lines.append(json.dumps(line | {"split": split}) + "\n")
    (folder / "annotations.jsonl").write_text("".join(lines), encoding="utf-8")


def run(tree: Path, *words: str) -> None:
    """Run a script of ``tree`` there, on one thread; ``ValueError`` with its output if it fails."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise ValueError(f"{tree}: python {' '.join(words)} ended with {done.returncode}:\n{tail}")


def measure(tree: Path, folder: Path, data: Path) -> None:
    """Pack the data and train and score every case with the code of ``tree``, into ``folder``."""
    from tqdm import tqdm

    root = folder / "datasets"
    for name in ("one", "two"):
        words = ["--custom", str(data / name / "annotations.jsonl"), "--name", name]
        words += ["--images", str(data / name / "images"), "--root", str(root)]
        run(tree, "tools/prepare_datasets.py", *words)
    for case, (config, datasets) in tqdm(CASES.items(), desc=folder.name, unit="case"):
        options = [*OPTIONS, f"data.root={root}", f"data.dataset={datasets}"]
        options.append(f"run.folder={folder / case}")
        run(tree, "train.py", "--config", f"config/demo/{config}.yaml", "--opts", *options)
        checkpoint = str(folder / case / "best.safetensors")
        run(tree, "test.py", "--checkpoint", checkpoint, "--splits", "val", "--pictures", "0")


def read(folder: Path) -> Outcome:
    """What a case left, without what is of the clock: steps, tensors, scores, rows."""
    from safetensors.numpy import load_file

    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    results = json.loads((folder / "test/results.json").read_text("utf-8"))
    return {
        "steps": [without_clock(json.loads(line)) for line in lines],
        "tensors": load_file(folder / "best.safetensors"),
        "scores": {name: without_clock(score) for name, score in results["splits"].items()},
        "rows": {
            path.name: path.read_text("utf-8") for path in sorted((folder / "test").glob("*.jsonl"))
        },
    }


def without_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in OF_THE_CLOCK}


def differences(ours: Outcome, theirs: Outcome) -> Iterator[str]:
    """A line for each kind of thing that is not the same, with the first place."""
    for step, (mine, other) in enumerate(zip(ours["steps"], theirs["steps"], strict=False)):
        if mine != other:
            yield f"row {step} of metrics.jsonl: {mine}, before {other}"
            break
    if len(ours["steps"]) != len(theirs["steps"]):
        yield f"{len(ours['steps'])} rows of metrics.jsonl, before {len(theirs['steps'])}"
    mine, other = ours["tensors"], theirs["tensors"]
    if names := sorted(mine.keys() ^ other.keys()):
        yield f"tensors in one checkpoint alone: {', '.join(names[:4])}"
    unequal = [
        name
        for name in sorted(mine.keys() & other.keys())
        if mine[name].shape != other[name].shape or mine[name].tobytes() != other[name].tobytes()
    ]
    if unequal:
        yield f"{len(unequal)} of {len(mine)} tensors, such as {unequal[0]}"
    for kind in ("scores", "rows"):
        if ours[kind] != theirs[kind]:
            names = [name for name in ours[kind] if ours[kind][name] != theirs[kind].get(name)]
            yield f"{kind} of {', '.join(names) or 'another number of splits'}"


def commit_of(base: str) -> str:
    """The commit that ``base`` names; ``ValueError`` if there is none."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"--base {base}: no such commit; name one, such as HEAD~1 or main")
    return done.stdout.strip()


def measure_base(commit: str, folder: Path, data: Path) -> None:
    """:func:`measure` a worktree of ``commit``, unless it was measured before."""
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tree = folder / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--force", "--detach", str(tree), commit], check=True)
    try:
        measure(tree, folder, data)
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    (folder / "done").touch()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, metavar="COMMIT", help="what to compare with")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        import torch

        commit = commit_of(arguments.base)
        data = FOLDER / "data"
        if not (data / "two/annotations.jsonl").exists():
            shutil.rmtree(data, ignore_errors=True)
            for seed, name in enumerate(("one", "two")):
                write_data(data / name, seed=seed)
        base = FOLDER / f"{commit[:12]}-torch{torch.__version__}"
        measure_base(commit, base, data)
        here = FOLDER / "here"
        shutil.rmtree(here, ignore_errors=True)
        measure(ROOT, here, data)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wrong = 0
    for case in CASES:
        lines = [*differences(read(here / case), read(base / case))]
        wrong += bool(lines)
        print(f"{case:12}{'same' if not lines else 'DIFFERS'}")
        for line in lines:
            print(f"    {line}")
    print(f"{len(CASES) - wrong} of {len(CASES)} cases are the same as at {commit[:12]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
