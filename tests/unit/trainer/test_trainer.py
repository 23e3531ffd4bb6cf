"""The loop: resume, signals, validation, what is kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from asrtool.errors import UserError
from asrtool.trainer import checkpoint, records
from asrtool.trainer.config import TrainerConfig
from tests.toy_training import ToyModel, ToySteps, toy_batch, toy_trainer, weights_of


def read_log(folder: Path, event: str) -> list[dict]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def same(first: dict, second: dict) -> bool:
    return set(first) == set(second) and all(
        torch.equal(first[name], second[name]) for name in first
    )


class Killed(BaseException):
    """Stands for kill -9: nothing of the trainer runs after it."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    trainer = toy_trainer(tmp_path_factory.mktemp("undisturbed"), ema=0.9)
    assert trainer.run() == 0
    return {
        "weights": weights_of(trainer),
        "average": checkpoint.load(trainer.folder / "average-2.safetensors"),
    }


def test_training_lowers_the_loss_and_the_error_rate(tmp_path):
    trainer = toy_trainer(tmp_path, epochs=30)
    trainer.run()
    values = read_log(tmp_path, "valid")
    assert values[-1]["valid/loss"] < 0.5 * values[0]["valid/loss"]
    assert values[-1]["valid/wer"] <= values[0]["valid/wer"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("moment", [(0, 1), (1, 0), (2, 2)])
def test_a_run_that_a_signal_stopped_ends_with_the_same_bits(tmp_path, undisturbed, moment, number):
    def send(epoch: int, index: int) -> None:
        if (epoch, index) == moment:
            os.kill(os.getpid(), number)

    stopped = toy_trainer(tmp_path, ToySteps(before=send), ema=0.9).run()
    resumed = toy_trainer(tmp_path, ema=0.9)

    assert stopped == (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
    assert resumed.run() == 0
    assert same(weights_of(resumed), undisturbed["weights"])
    assert same(checkpoint.load(tmp_path / "average-2.safetensors"), undisturbed["average"])


@pytest.mark.parametrize("moment", [(0, 0), (1, 1), (2, 2)])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, undisturbed, moment):
    def kill(epoch: int, index: int) -> None:
        if (epoch, index) == moment:
            raise Killed

    with pytest.raises(Killed):
        toy_trainer(tmp_path, ToySteps(before=kill), ema=0.9).run()
    resumed = toy_trainer(tmp_path, ema=0.9)

    assert resumed.run() == 0
    assert same(weights_of(resumed), undisturbed["weights"])
    assert same(checkpoint.load(tmp_path / "average-2.safetensors"), undisturbed["average"])


def test_a_validation_that_a_signal_interrupted_is_done_after_the_restart(tmp_path, undisturbed):
    class Interrupting(list):
        def __iter__(self):
            for batch in super().__iter__():
                if trainer.state.step == 6:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    trainer = toy_trainer(tmp_path, ema=0.9)
    trainer.valid = Interrupting(trainer.valid)
    assert trainer.run() == signal.SIGTERM
    resumed = toy_trainer(tmp_path, ema=0.9)

    assert resumed.run() == 0
    assert [record["step"] for record in read_log(tmp_path, "valid")] == [3, 6, 9]
    assert same(checkpoint.load(tmp_path / "average-2.safetensors"), undisturbed["average"])


def test_saving_between_validations_changes_nothing(tmp_path, undisturbed):
    trainer = toy_trainer(tmp_path, ema=0.9, save_every_seconds=0.0)
    trainer.run()
    assert same(weights_of(trainer), undisturbed["weights"])
    assert same(checkpoint.load(tmp_path / "average-2.safetensors"), undisturbed["average"])


def test_a_torn_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    tmp_path, undisturbed, caplog
):
    def kill(epoch: int, index: int) -> None:
        if (epoch, index) == (2, 1):
            raise Killed

    with pytest.raises(Killed):
        toy_trainer(tmp_path, ToySteps(before=kill), ema=0.9).run()
    torn = tmp_path / "step-00000006" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    resumed = toy_trainer(tmp_path, ema=0.9)

    assert resumed.run() == 0
    assert "step-00000006 is skipped: optimizer.safetensors is not what was written" in caplog.text
    assert same(weights_of(resumed), undisturbed["weights"])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_none_of_whose_checkpoints_is_whole_stops_and_changes_nothing(tmp_path):
    toy_trainer(tmp_path).run()
    for path in checkpoint.every(tmp_path):
        (path / checkpoint.MODEL).write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        toy_trainer(tmp_path).run()
    for step in (6, 9):
        assert (
            f"step-{step:08}: model.safetensors is not what was written (its size is 0 bytes"
        ) in str(error.value)
    assert f"move {tmp_path} away" in str(error.value)
    assert contents(tmp_path) == before


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path):
    toy_trainer(tmp_path).run()
    for path in checkpoint.every(tmp_path):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="step-00000009: it is missing"):
        toy_trainer(tmp_path).run()


def test_a_checkpoint_that_cannot_be_read_is_not_passed_over(tmp_path):
    toy_trainer(tmp_path).run()
    newest = checkpoint.latest(tmp_path) / checkpoint.OPTIMIZER
    newest.unlink()
    newest.symlink_to(newest)  # a file that no system can open
    before = set(tmp_path.rglob("*"))
    with pytest.raises(
        UserError,
        match=f"{newest} cannot be read: Too many levels of symbolic links",
    ):
        toy_trainer(tmp_path).run()
    assert set(tmp_path.rglob("*")) == before


def test_a_torn_checkpoint_stays_until_a_whole_one_has_its_place(tmp_path, undisturbed):
    def kill(epoch: int, index: int) -> None:
        if (epoch, index) == (2, 1):
            raise Killed

    def look(epoch: int, index: int) -> None:
        seen.append((3 * epoch + index, checkpoint.defect(torn)))

    with pytest.raises(Killed):
        toy_trainer(tmp_path, ToySteps(before=kill), ema=0.9).run()
    torn, seen = tmp_path / "step-00000006", []
    (torn / checkpoint.OPTIMIZER).write_bytes(b"")
    problem = checkpoint.defect(torn)
    resumed = toy_trainer(tmp_path, ToySteps(before=look), ema=0.9, save_every_seconds=0.0)
    assert resumed.run() == 0
    assert seen[:4] == [(3, problem), (4, problem), (5, problem), (6, None)]
    assert same(weights_of(resumed), undisturbed["weights"])


def test_a_kill_between_the_only_validation_and_its_pointer_is_made_good(tmp_path, monkeypatch):
    def dying(folder: Path, name: str, *given: object, **named: object) -> None:
        if name == "best":
            raise Killed
        point(folder, name, *given, **named)

    point = records.point
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(records, "point", dying)
        toy_trainer(tmp_path, steps=2).run()
    assert not (tmp_path / "best.json").exists()
    assert toy_trainer(tmp_path, steps=2).run() == 0
    assert json.loads((tmp_path / "best.json").read_text())["path"] == "step-00000002"
    assert (tmp_path / "finished.json").exists()


def test_the_dry_run_changes_neither_weights_nor_gradients(tmp_path):
    trainer = toy_trainer(tmp_path)
    before = weights_of(trainer)
    trainer.stepper.dry_run(trainer.train.longest())
    assert same(weights_of(trainer), before)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_what_the_average_needs_and_the_two_newest_checkpoints_stay(tmp_path):
    toy_trainer(tmp_path, epochs=6, average=2, average_by="last", best="valid/classes").run()
    best = json.loads((tmp_path / "best.json").read_text())
    kept = {path.name for path in checkpoint.every(tmp_path)}
    assert kept == {"step-00000015", "step-00000018", best["path"]}
    assert json.loads((tmp_path / "latest.json").read_text())["path"] == "step-00000018"


def test_older_checkpoints_are_kept_without_their_optimizer(tmp_path):
    toy_trainer(tmp_path, epochs=4, average=4).run()
    with_optimizer = [
        path.name for path in checkpoint.every(tmp_path) if (path / checkpoint.OPTIMIZER).exists()
    ]
    assert len(checkpoint.every(tmp_path)) == 4
    assert with_optimizer == ["step-00000009", "step-00000012"]


def test_steps_end_in_the_middle_of_an_epoch_with_a_validation(tmp_path):
    trainer = toy_trainer(tmp_path, steps=4)
    trainer.run()
    assert (trainer.state.step, trainer.state.validated, trainer.state.epoch) == (4, 4, 1)


def test_early_stop_ends_after_so_many_validations_without_a_better_value(tmp_path):
    trainer = toy_trainer(tmp_path, epochs=50, early_stop=2, optim={"lr": 1e-12})
    trainer.run()
    assert trainer.state.epoch < 50
    assert trainer.state.stale == 2


def test_a_finished_run_is_marked_and_trains_no_further(tmp_path):
    toy_trainer(tmp_path).run()
    again = toy_trainer(
        tmp_path, ToySteps(before=lambda epoch, index: pytest.fail("a step was asked for"))
    )
    assert again.run() == 0
    assert json.loads((tmp_path / "finished.json").read_text())["path"] == "average-2.safetensors"


def test_an_utterance_without_a_finite_loss_is_named_once(tmp_path, caplog):
    steps = ToySteps(change=lambda number, inputs: inputs[:1] if number == 5 else inputs)
    # which is not among those looked at before the first step
    steps.densest = lambda: iter([toy_batch([3])])
    toy_trainer(tmp_path, steps).run()
    assert [record["ids"] for record in read_log(tmp_path, "skipped")] == [["utt5"]]
    assert "1 utterance without a finite loss" in caplog.text


def test_a_metric_that_is_not_measured_is_refused_before_training(tmp_path):
    with pytest.raises(
        UserError, match="'valid/cer' is not measured.*valid/classes, valid/loss, valid/wer"
    ):
        toy_trainer(tmp_path, best="valid/cer")


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        toy_trainer(tmp_path, precision="fp16")


@pytest.mark.parametrize("settings", [{}, {"epochs": 1, "steps": 1}])
def test_exactly_one_of_epochs_and_steps_is_given(settings):
    with pytest.raises(ValueError, match="either epochs or steps"):
        TrainerConfig(**settings)


def test_the_log_holds_what_a_plot_needs(tmp_path):
    toy_trainer(tmp_path, log_every=3).run()
    records = read_log(tmp_path, "step")
    assert [record["step"] for record in records] == [3, 6, 9]
    needed = {
        "epoch",
        "rate",
        "loss",
        "classes",
        "norm",
        "audio_seconds_per_second",
        "data_wait",
        "seconds",
    }
    assert needed <= set(records[0])


def test_the_log_says_where_the_time_went(tmp_path):
    toy_trainer(tmp_path, ToySteps(before=lambda epoch, index: time.sleep(0.05)), log_every=3).run()
    seconds = [record["seconds"] for record in read_log(tmp_path, "step")]
    assert all(
        set(split) == {"data", "forward", "backward", "wait", "update", "other"}
        for split in seconds
    )
    assert all(split["data"] >= 0.05 for split in seconds)
    assert all(split["forward"] > 0 for split in seconds)
    assert read_log(tmp_path, "step")[0]["data_wait"] > 0.5


def test_waiting_for_data_brings_advice_once(tmp_path, caplog):
    caplog.set_level("INFO", "asrtool")
    toy_trainer(tmp_path, ToySteps(before=lambda epoch, index: time.sleep(0.02)), log_every=1).run()
    assert caplog.text.count("of the time is spent waiting for data; raise data.workers") == 1


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler"
)
def test_a_compiled_model_trains_alike(tmp_path):
    """The same loss without dropout, which compiled code draws otherwise."""
    losses = []
    for compiled in (False, True):
        trainer = toy_trainer(
            tmp_path / str(compiled), model=ToyModel(dropout=0.0), epochs=1, compile=compiled
        )
        trainer.run()
        losses.append(read_log(trainer.folder, "valid")[-1]["valid/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
