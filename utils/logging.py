"""Log lines for people on the terminal and in ``run.log``, and rows for programs in JSON lines."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

from loguru import logger
from tqdm import tqdm

from utils.files import Row, read_json_lines, write_json_lines

WandbMode = Literal["off", "offline", "online"]


def start_logging(folder: Path | None = None, *, rank: int = 0) -> None:
    """Log to stderr and, on rank 0, to ``folder/run.log``; other ranks only warn."""
    logger.remove()
    if rank:
        logger.add(sys.stderr, level="WARNING", format=f"rank {rank}: {{level}}: {{message}}")
        return
    # Through tqdm, so that a line never breaks the progress bar.
    logger.add(
        lambda text: tqdm.write(text, file=sys.stderr, end=""), format="{time:HH:mm:ss} {message}"
    )
    if folder is not None:
        logger.add(folder / "run.log", format="{time:YYYY-MM-DD HH:mm:ss} {level} {message}")


def progress_bar(*, shown: bool = True, **options: Any) -> tqdm:
    """Make a tqdm bar on stderr, hidden unless that is a terminal and ``shown`` is true."""
    return tqdm(disable=not (shown and sys.stderr.isatty()), dynamic_ncols=True, **options)


class MetricsLog:
    """Write rows such as ``{"step": 20, "train/loss": 0.2}`` to ``metrics.jsonl`` and to wandb.

    A run continues from ``step`` and scored last at ``scored_step``: later rows are removed, since
    it will write them again.
    """

    def __init__(
        self, folder: Path, *, config: Row, wandb: WandbMode, step: int, scored_step: int
    ) -> None:
        self.path = folder / "metrics.jsonl"
        rows = read_json_lines(self.path) if self.path.exists() else []
        rows = [r for r in rows if r["step"] <= (step if "train/loss" in r else scored_step)]
        write_json_lines(self.path, rows)
        self.wandb = None
        if wandb != "off":
            import wandb as service

            self.wandb = service.init(
                project="referring-segmentation",
                group=folder.name,
                dir=folder,
                config=dict(config),
                mode=wandb,
            )

    def write(self, row: Row) -> None:
        """Append one row; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.wandb is not None:
            values = {key: value for key, value in row.items() if key != "step"}
            self.wandb.log(values, step=row["step"])

    def close(self) -> None:
        """End the wandb run, if there is one."""
        if self.wandb is not None:
            self.wandb.finish()
