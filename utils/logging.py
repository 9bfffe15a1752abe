"""What a run says: lines for people on the terminal and in ``run.log``, rows in JSON lines."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from loguru import logger
from tqdm import tqdm

Row = Mapping[str, Any]
WandbMode = Literal["off", "offline", "online"]


def start_logging(folder: Path | None = None, *, rank: int = 0) -> None:
    """Log to stderr and, on rank 0, to ``folder/run.log``; other ranks only warn."""
    logger.remove()
    if rank:
        logger.add(sys.stderr, level="WARNING", format=f"rank {rank}: {{level}}: {{message}}")
        return
    # Through tqdm, so that a line never tears the progress bar.
    logger.add(
        lambda text: tqdm.write(text, file=sys.stderr, end=""), format="{time:HH:mm:ss} {message}"
    )
    if folder is not None:
        logger.add(folder / "run.log", format="{time:YYYY-MM-DD HH:mm:ss} {level} {message}")


def progress_bar(*, shown: bool = True, **options: Any) -> tqdm:
    """A tqdm bar on stderr, where that is a terminal and ``shown`` is true."""
    return tqdm(disable=not (shown and sys.stderr.isatty()), dynamic_ncols=True, **options)


def write_text(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all: aside first, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all: aside first, then renamed."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise


def check_output(option: str, path: Path, endings: Sequence[str] = ()) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Raises:
        ValueError: another ending than ``endings``, a folder, or a place that cannot be written to.
    """
    if endings and path.suffix not in endings:
        raise ValueError(
            f"{option} {path} should end in {'one of ' * (len(endings) > 1)}{', '.join(endings)}"
        )
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}, the folder of {option}, is not there; make it")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} {path}: its folder cannot be written to; name another")


def write_json_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` to ``path``, one JSON object a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of ``path``, without a last line that a crash cut short.

    Raises:
        ValueError: naming the first line that is no JSON object.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_read_row(path, number, line) for number, line in enumerate(lines[:-1], 1) if line]


def _read_row(path: Path, number: int, line: str) -> dict[str, Any]:
    with suppress(json.JSONDecodeError):
        if isinstance(row := json.loads(line), dict):
            return row
    raise ValueError(
        f"{path}: line {number} is no JSON object: {line[:40]!r}; take it out or move the file away"
    )


class MetricsLog:
    """Rows such as ``{"step": 20, "train/loss": 0.2}`` in ``metrics.jsonl`` and, if asked, wandb.

    A run goes on from ``step``, scored last at ``scored_step``. Rows that it wrote after its last
    save are taken out, since it will write them again.
    """

    def __init__(
        self, folder: Path, *, config: Row, wandb: WandbMode, step: int, scored_step: int
    ) -> None:
        self.path = folder / "metrics.jsonl"
        rows = read_json_lines(self.path) if self.path.exists() else []
        kept = (r for r in rows if r["step"] <= (step if "train/loss" in r else scored_step))
        write_json_lines(self.path, kept)
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
            self.wandb.log(
                {key: value for key, value in row.items() if key != "step"}, step=row["step"]
            )

    def close(self) -> None:
        """End the wandb run, if there is one."""
        if self.wandb is not None:
            self.wandb.finish()
