"""Checkpoints: all or nothing, found again, averaged, loaded."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from asrtool.errors import UserError
from asrtool.trainer import checkpoint
from asrtool.types import Trainable
from tests.toy_training import ToyLinear, ToyModules


def save(folder, step, value=0.0, metrics=None):
    tensors = {"w": torch.full((3,), value), "count": torch.tensor(step)}
    files = {checkpoint.MODEL: tensors, checkpoint.OPTIMIZER: {"w/exp_avg": torch.zeros(3)}}
    return checkpoint.save(folder, step, files, {"metrics": metrics or {}})


class Tied(Trainable):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4, bias=False)
        self.out.weight = self.embedding.weight


def test_the_newest_whole_checkpoint_is_chosen(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 10)
    assert checkpoint.latest(tmp_path).name == "step-00000010"


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_one_cut_at_any_file_is_passed_over(tmp_path, name, share, caplog):
    save(tmp_path, 1)
    torn = save(tmp_path, 2) / name
    content = torn.read_bytes()
    torn.write_bytes(content[: int(len(content) * share)])
    assert checkpoint.latest(tmp_path).name == "step-00000001"
    assert "step-00000002 is skipped" in caplog.text


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_one_cut_at_any_byte_is_passed_over(tmp_path, name):
    save(tmp_path, 1)
    torn = save(tmp_path, 2) / name
    content = torn.read_bytes()
    # the last byte of state.json is its line end, without which it says the same
    for length in range(len(content) - (name == checkpoint.STATE)):
        torn.write_bytes(content[:length])
        assert checkpoint.latest(tmp_path).name == "step-00000001", length
    torn.write_bytes(content)
    assert checkpoint.latest(tmp_path).name == "step-00000002"


def fill_the_disk(folder, room: int) -> str:
    """What saving a second checkpoint says where no file may become longer than `room` bytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            save(folder, 2)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        return said.read()


def test_a_disk_that_is_full_after_any_byte_leaves_the_earlier_one(tmp_path):
    whole = max(file.stat().st_size for file in save(tmp_path, 1).iterdir())
    for room in [*range(0, whole, 7), whole - 1]:
        said = fill_the_disk(tmp_path, room)
        assert re.match(
            "UserError: cannot write checkpoint .*step-00000002.*earlier checkpoints are",
            said,
        ), room
        assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"], room
        assert checkpoint.latest(tmp_path).name == "step-00000001"
    assert fill_the_disk(tmp_path, whole) == ""
    assert checkpoint.latest(tmp_path).name == "step-00000002"


def test_a_changed_byte_is_noticed(tmp_path):
    file = save(tmp_path, 1) / checkpoint.MODEL
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint.defect(file.parent) == (
        "model.safetensors is not what was written (its SHA-256 does not match)"
    )


FILES = [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE]


def refuse(monkeypatch, victim: Path, number: int) -> None:
    """Make the system refuse to open a file, or to list a folder."""

    def refusing(call):
        def refused(path, *given, **named):
            if isinstance(path, str | Path) and Path(path) == victim:
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *given, **named)

        return refused

    monkeypatch.setattr(io, "open", refusing(io.open))
    monkeypatch.setattr(builtins, "open", refusing(builtins.open))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOTCONN])
def test_what_the_system_does_not_read_is_not_torn(tmp_path, monkeypatch, name, number):
    save(tmp_path, 1)
    victim = save(tmp_path, 2) / name
    refuse(monkeypatch, victim, number)
    with pytest.raises(UserError, match=f"{victim} cannot be read: {os.strerror(number)}"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_not_torn(tmp_path, name):
    victim = save(tmp_path, 1) / name
    victim.unlink()
    victim.mkdir()
    with pytest.raises(UserError, match=f"{victim} cannot be read: Is a directory"):
        checkpoint.latest(tmp_path)


def test_a_phase_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    save(tmp_path, 1)
    refuse(monkeypatch, tmp_path, errno.EIO)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: Input/output error"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("what", ["a file", "a broken link"])
@pytest.mark.parametrize(
    "find",
    [
        checkpoint.latest,
        lambda folder: checkpoint.rank(folder, "valid/loss", "best"),
        lambda folder: save(folder, 12),
    ],
    ids=["latest", "rank", "save"],
)
def test_what_is_no_folder_in_the_place_of_a_checkpoint_is_said(tmp_path, what, find):
    save(tmp_path, 1)
    path = tmp_path / "step-00000012"
    if what == "a file":
        path.touch()
    else:
        path.symlink_to("/nowhere")
    with pytest.raises(UserError, match=f"{path} is {what}, .*; move it away"):
        find(tmp_path)
    assert path.is_file() or path.is_symlink()


def test_checkpoints_behind_a_link_count(tmp_path):
    os.rename(save(tmp_path, 1), tmp_path / "elsewhere")
    (tmp_path / "step-00000001").symlink_to("elsewhere")
    assert checkpoint.latest(tmp_path).name == "step-00000001"


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EACCES, "fix this"), (errno.EDQUOT, "free some disk space")]
)
def test_a_save_that_fails_says_what_to_do(tmp_path, monkeypatch, number, advice):
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "save_file", failing)
    with pytest.raises(
        UserError, match=f"{os.strerror(number)}; .*: {advice} and run the same command again"
    ):
        save(tmp_path, 2)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_was_about_to_be_replaced_at_a_kill_comes_back(tmp_path):
    os.rename(save(tmp_path, 1), tmp_path / "step-00000001.old")
    os.rename(save(tmp_path, 2), tmp_path / "step-00000002.old")
    save(tmp_path, 2, value=2.0)
    checkpoint.bring_back(tmp_path)
    assert [path.name for path in checkpoint.every(tmp_path)] == ["step-00000001", "step-00000002"]
    assert checkpoint.load(tmp_path / "step-00000002" / checkpoint.MODEL)["w"].tolist() == [2.0] * 3


def test_the_newest_and_the_whole_one_before_it_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    for step in (3, 5):  # 5 is ahead of the training, which went on from 2
        (tmp_path / f"step-{step:08}" / checkpoint.OPTIMIZER).write_bytes(b"")
    (tmp_path / "step-00000006.tmp").mkdir()
    (tmp_path / "step-00000004.old").write_bytes(b"")
    checkpoint.prune(tmp_path, [], tmp_path / "step-00000004")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08}" for step in (2, 4, 5)
    ]
    save(tmp_path, 6)
    checkpoint.prune(tmp_path, [tmp_path / "step-00000002"], tmp_path / "step-00000006")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08}" for step in (2, 4, 6)
    ]
    assert not (tmp_path / "step-00000002" / checkpoint.OPTIMIZER).exists()


def test_a_folder_that_was_not_renamed_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-00000002.tmp").mkdir()
    assert [path.name for path in checkpoint.every(tmp_path)] == ["step-00000001"]


def test_a_save_that_fails_says_so_and_leaves_the_earlier_one(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device.*earlier checkpoints are intact"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, value=1.0)
    path = save(tmp_path, 1, value=2.0)
    assert checkpoint.load(path / checkpoint.MODEL)["w"].tolist() == [2.0, 2.0, 2.0]


def test_a_model_comes_back_from_a_folder_and_from_a_file(tmp_path):
    model, other = ToyLinear(2, 3), ToyLinear(2, 3)
    path = checkpoint.save(tmp_path, 1, {checkpoint.MODEL: checkpoint.model_tensors(model)}, {})
    for source in (path, path / checkpoint.MODEL):
        checkpoint.load_model(other, source)
        assert torch.equal(other.weight, model.weight)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    model, other = Tied(), Tied()
    path = checkpoint.save(tmp_path, 1, {checkpoint.MODEL: checkpoint.model_tensors(model)}, {})
    checkpoint.load_model(other, path)
    assert list(checkpoint.load(path / checkpoint.MODEL)) == ["embedding.weight"]
    assert torch.equal(other.out.weight, model.embedding.weight)
    assert other.out.weight is other.embedding.weight


def test_a_mismatch_lists_names_and_shapes(tmp_path):
    path = checkpoint.save(
        tmp_path, 1, {checkpoint.MODEL: {"weight": torch.zeros(3, 5), "old": torch.zeros(1)}}, {}
    )
    with pytest.raises(UserError) as error:
        checkpoint.load_model(ToyLinear(2, 3), path, missing=["nothing"])
    assert "not in the file: bias" in str(error.value)
    assert "not in the model: old" in str(error.value)
    assert "weight (3, 5), expected (3, 2)" in str(error.value)


def test_allowed_differences_pass(tmp_path):
    path = checkpoint.save(
        tmp_path, 1, {checkpoint.MODEL: {"weight": torch.ones(3, 2), "old": torch.zeros(1)}}, {}
    )
    model = ToyLinear(2, 3)
    checkpoint.load_model(model, path, missing=["b*"], unused=["old"])
    assert torch.equal(model.weight, torch.ones(3, 2))


def test_the_optimizer_comes_back_by_parameter_name():
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    returned = torch.optim.AdamW([{"params": [other.bias]}, {"params": [other.weight]}], lr=0.1)
    checkpoint.load_optimizer(returned, other, checkpoint.optimizer_tensors(optimizer, model))
    for key, value in optimizer.state[model.weight].items():
        assert torch.equal(returned.state[other.weight][key], value)


def test_the_optimizer_state_keeps_the_memory_layout_of_its_parameter():
    model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.ones(1, 2, 3, 3)).sum().backward()
    optimizer.step()
    tensors = {
        key: value.contiguous()
        for key, value in checkpoint.optimizer_tensors(optimizer, model).items()
    }
    checkpoint.load_optimizer(optimizer, model, tensors)
    assert optimizer.state[model.weight]["exp_avg"].stride() == model.weight.stride()


def test_nothing_in_a_checkpoint_needs_unpickling(tmp_path):
    path = save(tmp_path, 1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / checkpoint.STATE).read_text())["files"].keys() == {
        checkpoint.MODEL,
        checkpoint.OPTIMIZER,
    }


def test_a_module_may_start_as_a_copy_of_another_that_is_gone(tmp_path):
    old, new = nn.ModuleDict({"ctc": nn.Linear(2, 3)}), ToyModules({"aligned": nn.Linear(2, 3)})
    path = checkpoint.save(tmp_path, 1, {checkpoint.MODEL: old.state_dict()}, {})
    checkpoint.load_model(new, path, unused=["ctc.*"], copy={"aligned": "ctc"})
    assert torch.equal(new["aligned"].weight, old["ctc"].weight) and torch.equal(
        new["aligned"].bias, old["ctc"].bias
    )
    with pytest.raises(UserError, match="not in the file: aligned"):
        checkpoint.load_model(new, path, unused=["ctc.*"], copy={"aligned": "attention"})
    wider = ToyModules({"aligned": nn.Linear(4, 3)})
    with pytest.raises(UserError, match="of a different shape: aligned.weight"):
        checkpoint.load_model(wider, path, unused=["ctc.*"], copy={"aligned": "ctc"})
