"""Training: rates, parts of batches, stops, exact continuation, and what is not finite."""

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeSegmenter, make_config, make_trainer, rows
from safetensors.torch import load_file

from engine.checkpoint import load_state, read_checkpoint, save_state
from engine.stop import Stopped
from engine.trainer import NonFiniteError, Trainer


def stop_after(trainer: Trainer, step: int, number: int = signal.SIGTERM) -> None:
    """Make the signal arrive in the middle of update ``step``."""
    update = trainer.update

    def wrapped(batch: Any) -> Any:
        if trainer.step + 1 == step:
            signal.raise_signal(number)
        return update(batch)

    wrapped.precision, wrapped.scaler = update.precision, update.scaler
    trainer.update = wrapped


@pytest.mark.parametrize(("workers", "log_interval"), [(0, 1), (0, 4), (2, 4)])
def test_stopped_anywhere_the_run_continues_bit_for_bit(
    tmp_path: Path, workers: int, log_interval: int
) -> None:
    config = make_config(
        data={"workers": workers},
        run={"log_interval": log_interval},
        train={"epochs": 3, "batch_size": 4, "lr": 1e-2, "warmup_steps": 3, "schedule": "cosine"},
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reference = make_trainer(whole, config, dropout=0.5, norm=True)
    reference.fit()
    # the first, the end of an epoch, inside two others; fewer where processes have to start
    for step in (1, 5, 7, 13)[:: workers + 1]:
        trainer = make_trainer(parts, config, dropout=0.5, norm=True)
        stop_after(trainer, step)
        with pytest.raises(Stopped) as stopped:
            trainer.fit()
        assert stopped.value.exit_code == 143 and trainer.step == step
    trainer = make_trainer(parts, config, dropout=0.5, norm=True)
    trainer.fit()
    assert rows(parts) == rows(whole)
    assert trainer.best == reference.best
    for name, value in reference.segmenter.state_dict().items():
        assert torch.equal(value, trainer.segmenter.state_dict()[name]), name


def test_rows_after_the_last_save_are_written_once(tmp_path: Path) -> None:
    config, path = make_config(), tmp_path / "run"
    trainer = make_trainer(path, config)
    stop_after(trainer, 3)
    with pytest.raises(Stopped):
        trainer.fit()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/loss": 9.0}\n{"step": 5, "tra')  # a crash while writing
    make_trainer(path, config).fit()
    assert [row["step"] for row in rows(path) if "train/loss" in row] == list(range(1, 11))
    assert [row["step"] for row in rows(path) if "val/oIoU" in row] == [5, 10]


def test_a_stop_while_scoring_keeps_the_score_due(tmp_path: Path) -> None:
    config, path = make_config(), tmp_path / "run"
    trainer = make_trainer(path, config)
    val_set = trainer.val_sets["val"]
    original = val_set.letterbox
    val_set.letterbox = lambda i: (signal.raise_signal(signal.SIGINT), original(i))[1]
    with pytest.raises(Stopped) as stopped:
        trainer.fit()
    assert stopped.value.exit_code == 130
    assert not [row for row in rows(path) if "val/oIoU" in row]
    make_trainer(path, config).fit()
    assert [row["step"] for row in rows(path) if "val/oIoU" in row] == [5, 10]


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_parts_of_a_batch_train_like_the_whole(tmp_path: Path, micro_batch: int) -> None:
    options = {"epochs": 1, "batch_size": 4, "lr": 1e-2, "max_norm": 0.1, "precision": "fp32"}
    losses = []
    for name, size in (("whole", None), ("parts", micro_batch)):
        path = tmp_path / name
        make_trainer(path, make_config(train=options | {"micro_batch": size})).fit()
        losses.append([row["train/loss"] for row in rows(path) if "train/loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_groups_keep_their_rates(tmp_path: Path, monkeypatch: Any) -> None:
    given: list[dict[str, float]] = []
    groups = FakeSegmenter.parameter_groups
    monkeypatch.setattr(
        FakeSegmenter, "parameter_groups", lambda self, **x: given.append(x) or groups(self, **x)
    )
    options = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "milestones": [1]}
    scales = {"encoder_lr_scale": 10.0, "backbone_lr_scale": 0.5}
    trainer = make_trainer(tmp_path / "run", make_config(train=options | scales))
    trainer.fit()
    assert given == [{"lr": 1e-3} | scales]
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == pytest.approx({"encoder": 1e-3, "decoder": 1e-4})


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_is_not_finite_stops_before_the_update(tmp_path: Path, where: str) -> None:
    path = tmp_path / "run"
    trainer = make_trainer(path, make_config(eval={"every_steps": 2}))
    head = trainer.segmenter.head
    snapshots: list[torch.Tensor] = []

    def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        snapshots.append(head.weight.detach().clone())
        if len(snapshots) < 4:
            return output
        factor = torch.ones(len(output), 1, 1, 1)
        factor[1] = torch.nan
        if where == "forward":
            return output * factor
        output.register_hook(lambda gradient: gradient * factor)
        return output

    head.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError) as error:
        trainer.fit()
    assert not trainer.unchecked
    assert torch.equal(head.weight, snapshots[3])
    assert "step 4" in str(error.value) and "ref " in str(error.value)
    assert str(error.value).count("ref ") == (1 if where == "forward" else 4)
    state = torch.load(path / "last.pt", weights_only=True)
    assert state["step"] == 2


def test_later_updates_are_skipped_too(tmp_path: Path) -> None:
    """A GPU goes on until somebody looks; nothing may move in the meantime."""
    trainer = make_trainer(tmp_path / "run", make_config())
    batch = torch.utils.data.default_collate([trainer.train_set[i] for i in range(4)])
    trainer.update(batch)
    before = [p.detach().clone() for p in trainer.update.parameters]
    hook = trainer.segmenter.head.register_forward_hook(lambda *args: args[2] * torch.nan)
    assert trainer.update(batch)[0][2] == 1
    hook.remove()
    row, finite = trainer.update(batch)
    assert row[0].isfinite() and row[2] == 1 and finite.all()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.update.parameters, strict=True))
    assert trainer.optimizer.state[trainer.update.parameters[0]]["step"] == 1


def test_time_ends_a_run_with_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"epochs": 50, "batch_size": 4, "max_minutes": 1.0, "schedule": "cosine"}
    path = tmp_path / "run"
    clock = itertools.count(0, 2)  # seconds
    monkeypatch.setattr("engine.trainer.time.monotonic", lambda: float(next(clock)))
    trainer = make_trainer(path, make_config(train=options))
    before = signal.getsignal(signal.SIGTERM)
    trainer.fit()
    assert signal.getsignal(signal.SIGTERM) is before
    first, *_, last, score = rows(path)
    assert 5 < trainer.step == last["step"] == score["step"] < 30 and "val/oIoU" in score
    assert last["train/lr"] < 0.05 * first["train/lr"]  # cooled down with the clock


def test_best_is_the_best_by_the_chosen_measure(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer = make_trainer(path, make_config(eval={"every_steps": 1, "metric": "mIoU"}))
    trainer.fit()
    scores = {row["step"]: row["val/mIoU"] for row in rows(path) if "val/mIoU" in row}
    best = max(scores, key=lambda step: (scores[step], step))  # of equals the later
    assert trainer.best is not None and trainer.best["step"] == best
    story = read_checkpoint(path / "best.safetensors").metadata
    saved = load_file(path / "best.safetensors")
    assert set(saved) == set(trainer.segmenter.trainable_state())
    assert story["step"] == best and story["scores"]["val"]["mIoU"] == scores[best]
    assert story["selected_by"] == {"split": "val", "metric": "mIoU"}
    assert story["backbone"]["sha256"] == "0" * 64


def test_several_data_sets_are_scored_together_and_each(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer = make_trainer(path, make_config(), mixed=True)
    trainer.fit()
    assert trainer.steps_per_epoch == 31 // 4
    scored = [row for row in rows(path) if "val/oIoU" in row]
    assert len(scored) == 2
    for row in scored:
        assert [row[f"{label}/count"] for label in ("val", "one/val", "two/val")] == [13, 9, 4]
        for key in ("intersection", "union"):
            assert row[f"val/{key}"] == row[f"one/val/{key}"] + row[f"two/val/{key}"]
        assert row["val/oIoU"] == 100 * row["val/intersection"] / row["val/union"]
        together = 9 * row["one/val/mIoU"] + 4 * row["two/val/mIoU"]
        assert 13 * row["val/mIoU"] == pytest.approx(together)
    story = read_checkpoint(path / "best.safetensors").metadata
    assert set(story["scores"]) == {"val", "one/val", "two/val"}
    assert story["scores"]["val"]["oIoU"] == max(row["val/oIoU"] for row in scored)
    assert story["data"]["scored_images"] == "left out"
    counts = {name: one["references"] for name, one in story["data"]["datasets"].items()}
    assert counts == {"fake0": 21, "fake2": 10}
    assert story["data_fingerprint"] == trainer.train_set.fingerprint


def test_what_is_not_finite_names_its_data_set_among_several(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", make_config(), mixed=True)
    trainer.segmenter.head.register_forward_hook(lambda *args: args[2] * torch.nan)
    with pytest.raises(NonFiniteError, match=r"samples: fake[02] ref \d+ 'box \d+' \("):
        trainer.fit()


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size: 22 is more than the 21"):
        make_trainer(tmp_path / "run", make_config(train={"batch_size": 22}))


def test_time_and_memory_of_all_parts_of_a_run_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer = make_trainer(path, make_config())
    stop_after(trainer, 3)
    with pytest.raises(Stopped):
        trainer.fit()
    first = load_state(path / "last.pt")
    assert first["peak_memory"]["host"] > 2**20 and first["peak_memory"]["gpu"] == 0
    huge = {"host": 2**50, "gpu": 2**40}  # as if the first part had needed more
    save_state(path / "last.pt", first | {"elapsed": 1000.0, "peak_memory": huge})
    make_trainer(path, make_config()).fit()
    state = load_state(path / "last.pt")
    assert state["peak_memory"] == huge and 1000 < state["elapsed"] < 1060
