"""What ``predict.py`` does: all pictures one after the other, and the files for each sentence."""

import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.picture_files import read_image
from engine.prediction import Predictor
from engine.prediction_inputs import Inputs, Question
from engine.prediction_outputs import (
    INDEX,
    KINDS,
    box_of,
    coco_rle,
    describe,
    folder_names,
    write_png,
)
from engine.threshold import found
from utils.files import write_text
from utils.logging import progress_bar


@dataclass
class Job:
    """Sentences about pictures, and where to write what is found.

    ``kinds`` are those of ``KINDS``, and ``rle``. ``tell`` gets a line for each sentence,
    ``complain`` one for each picture that cannot be read.
    """

    predictor: Predictor
    inputs: Inputs
    output: Path
    kinds: Collection[str]
    logits_path: Path | None
    tell: Callable[[str], None]
    complain: Callable[[str], None]
    num_done: int = field(default=0, init=False)
    num_replaced: int = field(default=0, init=False)

    def run(self) -> int:
        """Write the files and ``predictions.json``; return how many pictures could not be read.

        The n-th sentence's files are ``<n>-mask.png`` and so on: in ``output`` where one picture
        was given by its name, otherwise in a folder for each picture. ``predictions.json`` says
        which file belongs to which sentence, with area, box and the COCO RLE if that is asked for.
        """
        questions, single = self.inputs.questions, self.inputs.is_single
        names = [""] if single else folder_names(question.path for question in questions)
        entries: list[dict[str, Any]] = []
        # OpenCV's own lines about broken files say less than ours
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            for question, name in self._shown(questions, names):
                try:
                    entries += self._answer(question, self.output / name)
                    self.num_done += 1
                except ValueError as error:
                    self.complain(str(error))
        finally:
            cv2.utils.logging.setLogLevel(level)
            if entries:
                lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
                write_text(self.output / INDEX, f"[\n{lines}\n]\n")
        return len(questions) - self.num_done

    def _shown(self, questions: list[Question], names: list[str]) -> Iterator[tuple[Question, str]]:
        with progress_bar(total=len(questions), desc="pictures", leave=False) as bar:
            for pair in zip(questions, names, strict=True):
                yield pair
                bar.update()

    def _answer(self, question: Question, folder: Path) -> Iterator[dict[str, Any]]:
        image = read_image(question.path)
        folder.mkdir(parents=True, exist_ok=True)
        kept = []
        answers = self.predictor.each(image, question.texts)
        for number, (text, logits) in enumerate(zip(question.texts, answers, strict=True), 1):
            yield self._write(question, number, text, image, logits, folder)
            if self.logits_path is not None:
                kept.append(logits.cpu())
        if self.logits_path is not None:
            _write_array(self.logits_path, torch.stack(kept).numpy())

    def _write(
        self,
        question: Question,
        number: int,
        text: str,
        image: np.ndarray,
        logits: Tensor,
        folder: Path,
    ) -> dict[str, Any]:
        mask = found(logits, self.predictor.threshold).cpu().numpy()
        probability = logits.sigmoid().cpu().numpy()
        files = {}
        for kind in (kind for kind in KINDS if kind in self.kinds):
            path = folder / f"{number}-{kind}.png"
            self.num_replaced += path.exists()
            write_png(path, KINDS[kind](image, mask, probability))
            files[kind] = path.relative_to(self.output).as_posix()
        num_tokens, most = self.predictor.num_tokens(text), self.predictor.max_words
        note = f"  (cut to {most} tokens)" if num_tokens > most else ""
        place = self.output / next(iter(files.values())) if files else question.path
        self.tell(f"{place}  {text!r}: {describe(mask)}{note}")
        return {
            "image": str(question.path),
            "sentence": text,
            "number": number,
            "height": mask.shape[0],
            "width": mask.shape[1],
            "threshold": self.predictor.threshold,
            "area": int(mask.sum()),
            "bbox": box_of(mask),
            "files": files,
            **({"segmentation": coco_rle(mask)} if "rle" in self.kinds else {}),
        }


def _write_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    with aside.open("wb") as file:
        np.save(file, array)
    os.replace(aside, path)
