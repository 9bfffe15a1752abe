"""Show that a change of the code changes no number: train and score two trees, compare the bits.

Eight small configurations train for 20 steps in float32 on one thread, in a worktree of BASE and in
this tree, on the same generated data, and are scored. Losses, norms and rates of every step, the
tensors of the best checkpoint, scores and rows must be the same. The results of BASE are stored in
runs/same/, so that the next comparison with it trains this tree alone.
"""

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

from utils.cli import make_parser, run_command  # noqa: E402

EXAMPLES = """\
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
    "train.max_steps=20 train.max_minutes=null train.warmup_steps=4 train.batch_size=4 "
    "train.precision=fp32 eval.every_steps=10 data.workers=0 run.log_interval=1"
)
MEASURED_TIMES = ("samples_per_second", "seconds")  # in rows of metrics.jsonl and in scores
Outcome = dict[str, dict[str, Any]]  # kind -> name -> what must be the same


def write_data(folder: Path, *, seed: int, num_train: int = 24, num_val: int = 8) -> None:
    """Draw pictures of a box and a circle, and write ``annotations.jsonl`` about them."""
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
        circle = np.array([[x + 20 * np.cos(a), y + 20 * np.sin(a)] for a in np.arange(12) / 2])
        split = "train" if number < num_train else "val"
        for polygon, texts in (
            (box, ["the blue box", "the large thing on the right"]),
            (circle.round(2).flatten().tolist(), ["a red circle", "left", "the round one"]),
        ):
            line = {"image": f"{seed}-{number}.png", "polygon": polygon, "sentences": texts}
            lines.append(json.dumps(line | {"split": split}) + "\n")
    (folder / "annotations.jsonl").write_text("".join(lines), encoding="utf-8")


def run_script(tree: Path, *words: str) -> None:
    """Run a script of ``tree`` on one thread; ``ValueError`` with its last lines if it fails."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-12:])
        raise ValueError(f"{tree}: python {' '.join(words)} ended with {done.returncode}:\n{tail}")


def measure(tree: Path, folder: Path, data: Path) -> None:
    """Pack the data, and train and score every case with the code of ``tree``, into ``folder``."""
    from tqdm import tqdm

    root = folder / "datasets"
    for name in ("one", "two"):
        words = ["--custom", str(data / name / "annotations.jsonl"), "--name", name]
        words += ["--images", str(data / name / "images"), "--root", str(root)]
        run_script(tree, "tools/prepare_datasets.py", *words)
    for case, (config, datasets) in tqdm(CASES.items(), desc=folder.name, unit="case"):
        options = [*OPTIONS.split(), f"data.root={root}", f"data.dataset={datasets}"]
        options.append(f"run.folder={folder / case}")
        run_script(tree, "train.py", "--config", f"config/demo/{config}.yaml", "--opts", *options)
        checkpoint = str(folder / case / "best.safetensors")
        run_script(tree, "test.py", "--checkpoint", checkpoint, "--splits", "val", "--pictures=0")


def measure_base(commit: str, folder: Path, data: Path) -> None:
    """:func:`measure` a worktree of ``commit``, unless ``folder`` has its results already."""
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


def read_outcome(folder: Path) -> Outcome:
    """Read the steps, tensors, scores and rows of a case, without measured times."""
    from safetensors.numpy import load_file

    def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key not in MEASURED_TIMES}

    steps = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    results = json.loads((folder / "test/results.json").read_text("utf-8"))
    tensors = load_file(folder / "best.safetensors")
    return {
        "rows of metrics.jsonl": {
            str(place): without_times(json.loads(step)) for place, step in enumerate(steps)
        },
        "tensors": {name: (value.shape, value.tobytes()) for name, value in tensors.items()},
        "scores": {name: without_times(score) for name, score in results["splits"].items()},
        "files": {path.name: path.read_text("utf-8") for path in (folder / "test").glob("*.jsonl")},
    }


def find_differences(ours: Outcome, theirs: Outcome) -> Iterator[str]:
    """Yield a line for each kind of thing that differs, with the first place."""
    for kind, mine in ours.items():
        before = theirs[kind]
        names = [name for name in mine | before if mine.get(name) != before.get(name)]
        if names:
            line = f"{len(names)} of {len(mine | before)} {kind}, such as {names[0]}"
            values = f": {mine.get(names[0])}, before {before.get(names[0])}"
            yield line + (values if kind in ("rows of metrics.jsonl", "scores") else "")


def find_commit(base: str) -> str:
    """Return the hash of the commit that ``base`` names; ``ValueError`` if there is none."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"--base {base}: no such commit; name one, such as HEAD~1 or main")
    return done.stdout.strip()


def compare_with(base: str) -> int:
    """Measure ``base`` and this tree, print what differs; return 1 if anything does."""
    import torch

    commit = find_commit(base)
    data, here = FOLDER / "data", FOLDER / "here"
    before = FOLDER / f"{commit[:12]}-torch{torch.__version__}"
    if not (data / "two/annotations.jsonl").exists():
        shutil.rmtree(data, ignore_errors=True)
        for seed, name in enumerate(("one", "two")):
            write_data(data / name, seed=seed)
    measure_base(commit, before, data)
    shutil.rmtree(here, ignore_errors=True)
    measure(ROOT, here, data)
    num_different = 0
    for case in CASES:
        lines = [*find_differences(read_outcome(here / case), read_outcome(before / case))]
        num_different += bool(lines)
        print("\n    ".join([f"{case:12}{'DIFFERS' if lines else 'same'}", *lines]))
    same = len(CASES) - num_different
    print(f"{same} of {len(CASES)} cases are the same as at {commit[:12]}")
    return 1 if num_different else 0


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("--base", required=True, metavar="COMMIT", help="what to compare with")
    base = parser.parse_args(argv).base
    return run_command(lambda: compare_with(base))


if __name__ == "__main__":
    sys.exit(main())
