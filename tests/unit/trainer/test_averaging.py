"""Averages: of which checkpoints they are, and that a damaged one is made anew or refused, never
used.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from asrtool.errors import UserError
from asrtool.system import stamp
from asrtool.trainer import averaging, checkpoint, folder, records


def save(
    phase: Path, step: int, value: float = 0.0, loss: float | None = None, by: str = "best"
) -> Path:
    tensors = {"w": torch.full((3,), value), "count": torch.tensor(step)}
    metrics = {} if loss is None else {"valid/loss": loss}
    state = {"metrics": metrics, "ranking": {"metric": "valid/loss", "average_by": by}}
    return checkpoint.save(phase, step, {checkpoint.MODEL: tensors}, state)


def weights(average: Path) -> list[float]:
    return checkpoint.load(average)["w"].tolist()


@pytest.mark.parametrize(("by", "expected"), [("best", 1.5), ("last", 4.0)])
def test_the_average_is_of_the_best_or_the_last(tmp_path, by, expected):
    for step, (value, loss) in enumerate([(1.0, 0.1), (2.0, 0.2), (5.0, 0.9), (3.0, 0.5)], start=1):
        save(tmp_path, step, value, loss, by)
    assert weights(averaging.average(tmp_path, 2)) == [expected] * 3


def test_checkpoints_that_do_not_say_how_they_are_ranked_go_by_the_pointer(tmp_path):
    for step, loss in enumerate((0.1, 0.2), start=1):
        tensors = {checkpoint.MODEL: {"w": torch.full((3,), float(step))}}
        checkpoint.save(tmp_path, step, tensors, {"metrics": {"valid/loss": loss}})
    records.point(
        tmp_path, "best", tmp_path / "step-00000001", metric="valid/loss", average_by="last"
    )
    assert weights(averaging.average(tmp_path, 1)) == [2.0] * 3


def test_counters_are_not_averaged(tmp_path):
    save(tmp_path, 4, 1.0, 0.1)
    save(tmp_path, 8, 2.0, 0.2)
    assert checkpoint.load(averaging.average(tmp_path, 2))["count"].item() == 4


def test_an_average_of_fewer_than_asked_is_made_with_a_warning(tmp_path, caplog):
    save(tmp_path, 1, 1.0, 0.1)
    assert averaging.average(tmp_path, 10).name == "average-10.safetensors"
    assert "has only 1 checkpoint with" in caplog.text


def test_an_average_is_made_again_when_better_checkpoints_came(tmp_path):
    save(tmp_path, 1, 1.0, 0.5)
    averaging.average(tmp_path, 1)
    save(tmp_path, 2, 2.0, 0.4)
    assert weights(averaging.average(tmp_path, 1)) == [2.0] * 3


def test_checkpoints_without_the_metric_and_torn_ones_are_not_averaged(tmp_path):
    save(tmp_path, 1, 1.0, 0.5)
    save(tmp_path, 2, 2.0)
    (save(tmp_path, 3, 3.0, 0.1) / checkpoint.MODEL).write_bytes(b"")
    (save(tmp_path, 4, 4.0, 0.1) / checkpoint.STATE).write_bytes(b"")
    assert weights(averaging.average(tmp_path, 3)) == [1.0] * 3


def test_a_checkpoint_that_cannot_be_read_is_not_left_out(tmp_path):
    save(tmp_path, 1, 1.0, 0.5)
    file = save(tmp_path, 2, 2.0, 0.4) / checkpoint.MODEL
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=f"{file} cannot be read: Is a directory"):
        averaging.average(tmp_path, 2)


def test_averaging_before_the_first_validation_says_so(tmp_path):
    with pytest.raises(UserError, match="no validated checkpoint yet"):
        averaging.average(tmp_path, 3)
    save(tmp_path, 1)
    with pytest.raises(
        UserError,
        match="no intact checkpoint with a value of valid/loss; continue the training first",
    ):
        averaging.average(tmp_path, 3)


# -- damage ----------------------------------------------------------------


def cut(average: Path) -> None:
    average.write_bytes(average.read_bytes()[:-1])


def empty(average: Path) -> None:
    average.write_bytes(b"")


def flip(average: Path) -> None:
    content = bytearray(average.read_bytes())
    content[-1] ^= 1
    average.write_bytes(content)


def lose(average: Path) -> None:
    average.unlink()


def take_another(average: Path) -> None:
    shutil.copy(average.with_name("step-00000001") / checkpoint.MODEL, average)


def lose_the_note(average: Path) -> None:
    average.with_suffix(".json").unlink()


def damage_the_note(average: Path) -> None:
    average.with_suffix(".json").write_text('{"path"')


DAMAGE = [cut, empty, flip, lose, take_another, lose_the_note, damage_the_note]


@pytest.fixture
def phase(tmp_path) -> Path:
    for step, value in enumerate((1.0, 2.0, 3.0), start=1):
        save(tmp_path, step, value, 0.5 - 0.1 * step)
    return tmp_path


def finish(phase: Path) -> Path:
    average = averaging.average(phase, 2)
    records.point(phase, "finished", average, sources=averaging.averaged_from(average))
    return average


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "make", [lambda phase: averaging.average(phase, 2), finish], ids=["unfinished", "finished"]
)
def test_a_damaged_average_is_made_anew(phase, make, damage):
    average = make(phase)
    content = average.read_bytes()
    damage(average)
    assert averaging.average(phase, 2) == average
    assert average.read_bytes() == content
    assert records.damage(average) is None


def test_the_average_of_a_finished_phase_needs_no_checkpoints(phase):
    content = finish(phase).read_bytes()
    for path in checkpoint.every(phase):
        shutil.rmtree(path)
    assert averaging.average(phase, 2).read_bytes() == content
    with pytest.raises(
        UserError, match="it is finished, and has the average average-2.safetensors"
    ):
        (phase / "best.json").write_text(
            '{"path": "", "metric": "valid/loss", "average_by": "best"}'
        )
        averaging.average(phase, 1)


def test_the_average_of_a_finished_phase_is_not_made_of_fewer_checkpoints(phase):
    average = finish(phase)
    content = average.read_bytes()
    shutil.rmtree(phase / "step-00000003")
    assert averaging.average(phase, 2).read_bytes() == content
    flip(average)
    with pytest.raises(UserError) as error:
        averaging.average(phase, 2)
    assert "average-2.safetensors is not what was written (its SHA-256 does not match)" in str(
        error.value
    )
    assert "step-00000003: state.json is missing" in str(error.value)
    assert f"Restore it from a backup, or move {phase} away to train the phase again" in str(
        error.value
    )


def test_an_average_that_cannot_be_read_is_not_made_anew(phase):
    average = finish(phase)
    average.unlink()
    average.mkdir()
    with pytest.raises(UserError, match=f"{average} cannot be read: Is a directory"):
        averaging.average(phase, 2)


def test_what_a_kill_left_of_any_average_goes(phase):
    average = finish(phase)
    for name in (
        "average-2.safetensors.lock",
        "average-5.safetensors.lock",
        "average-5.safetensors.tmp",
    ):
        (phase / name).touch()
    assert averaging.average(phase, 2) == average
    assert not [path for path in phase.iterdir() if path.suffix in (".lock", ".tmp")]


def test_an_average_that_another_process_writes_is_left_alone(phase, monkeypatch):
    average = finish(phase)
    (phase / "average-5.safetensors.tmp").touch()
    (phase / "average-5.safetensors.lock").touch()

    def taken(*_: object) -> None:
        raise stamp.StageError

    with monkeypatch.context() as patch:
        patch.setattr(stamp, "_take", taken)
        assert averaging.average(phase, 2) == average
    assert (phase / "average-5.safetensors.tmp").exists()


def test_a_full_disk_leaves_the_average_that_was_there(phase, monkeypatch):
    average = averaging.average(phase, 2)
    content = average.read_bytes()
    save(phase, 4, 4.0, 0.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(averaging, "save_file", full)
    with pytest.raises(
        UserError,
        match="cannot write .*No space left on device; free some disk space and run the same",
    ):
        averaging.average(phase, 2)
    assert average.read_bytes() == content
    assert not list(phase.glob("*.tmp")) and not list(phase.glob("*.lock"))


def test_a_phase_whose_end_cannot_be_read_is_not_unfinished(phase):
    finish(phase)
    (phase / "finished.json").unlink()
    assert not folder.finished(phase)
    (phase / "finished.json").mkdir()
    with pytest.raises(UserError, match="finished.json cannot be read: Is a directory"):
        folder.finished(phase)
