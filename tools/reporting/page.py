"""The page itself: what was read, counted and drawn, filled into a template."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.differences import differences
from model.backbones import sha256_of
from utils.data.dataset import ReferDataset

from .drawing import NUM_COLOURS
from .gallery import Case, Chosen, choose, choose_randomly, draw_cases
from .runs import Run
from .samples import Pair, changes, check_comparable, compare, open_sets, pair_up
from .sections import curves, distributions, facts, groups, parameters, scores
from .statistics import RESAMPLES


def make_page(runs: Sequence[Run], *, num_cases: int, device: torch.device) -> str:
    """The report of one run, or of two side by side, as HTML.

    ``num_cases`` sentences of each kind and split are shown with their masks. What cannot be shown
    yet, or not without the data, is left out, and the page says so.

    Raises:
        ValueError: two runs are of different data, or a checkpoint does not fit its configuration.
    """
    check_comparable(runs)
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    labels = list(dict.fromkeys(label for run in runs for label in run.records))
    sets: list[dict[str, ReferDataset]] = []
    try:
        sets = [open_sets(run, labels if run.results else []) for run in runs]
    except ValueError as error:
        notes.append(f"No sizes of objects and no pictures: {error}")
    cases = []
    if sets and num_cases:
        cases = _cases(runs, sets, num_cases, device, notes)
    configs = [run.config.to_dict() for run in runs]
    template = _environment().get_template("page.html")
    return template.render(
        title=" and ".join(run.name for run in runs),
        runs=runs,
        notes=notes,
        facts=facts(runs),
        curves=curves(runs),
        scores=scores(runs),
        resamples=RESAMPLES,
        distributions=distributions(runs, labels),
        groups=groups(runs, labels, sets[0] if sets else {}),
        comparisons={label: compare(pairs) for label, pairs in _pairs(runs).items()},
        cases=cases,
        parameters=parameters(runs),
        changed=differences(*configs) if len(runs) == 2 else {},
        num_colours=NUM_COLOURS,
    )


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # sentences and names of files are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _pairs(runs: Sequence[Run]) -> dict[str, list[Pair]]:
    return pair_up(*runs) if len(runs) == 2 else {}


def _cases(
    runs: Sequence[Run],
    sets: Sequence[Mapping[str, ReferDataset]],
    num: int,
    device: torch.device,
    notes: list[str],
) -> list[Case]:
    """The gallery; adds to ``notes`` what is missing in it."""
    missing = [run.checkpoint for run in runs if not run.checkpoint.exists()]
    if missing:
        notes.append(f"No pictures: {missing[0]} is not there yet.")
        return []
    for run in runs:
        tested = (run.results or {}).get("checkpoint", {}).get("sha256")
        if tested and tested != sha256_of(run.checkpoint):
            notes.append(
                f"{run.name}: its best checkpoint is not the one that was tested, so the pictures "
                "may differ from the scores; run test.py again."
            )
    chosen = _choose(runs, sets, num)
    shared = {label: kinds for label, kinds in chosen.items() if all(label in s for s in sets)}
    return draw_cases(runs, sets, shared, device)


def _choose(runs: Sequence[Run], sets: Sequence[Mapping[str, ReferDataset]], num: int) -> Chosen:
    """By change between two tested runs, by IoU of a tested one, else at random."""
    seed = runs[0].config.train.seed
    if pairs := _pairs(runs):
        return {
            label: choose(changes(both), num, ("improved", "got worse"), seed)
            for label, both in pairs.items()
        }
    if records := runs[0].records:
        return {
            label: choose({row.index: row.iou for row in rows}, num, ("best", "worst"), seed)
            for label, rows in records.items()
        }
    return {
        label: choose_randomly(range(len(one)), 3 * num, seed) for label, one in sets[0].items()
    }
