"""Whatever is rewritten: a full disk and a kill leave what was there."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from asrtool import plots, training
from asrtool.bin import recognize
from asrtool.data import corpus, features
from asrtool.data.kaldi import tables
from asrtool.models import Model
from asrtool.score import stored
from asrtool.system import atomic, journal, stamp
from asrtool.trainer import records
from tests.toy_crashes import DEATH, Faults, child, die

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")


class Figure:
    """Draws its text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def savefig(self, path: Path, **_: object) -> None:
        path.write_text(self._text)


class Closing:
    @staticmethod
    def close(figure: Figure) -> None: ...


def draw(path: Path, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "pyplot", Closing)
        plots.save(Figure(value), path)


# name of the file -> writes something that depends on `value`
class Sized(Model):
    frame_shift = 0.04

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, size)


WRITERS: dict[str, Callable[[Path, str], object]] = {
    "any.txt": atomic.write_text,
    "RESULTS.md": stored.replace_text,
    "utt2spk": lambda path, value: tables.write(path, {"a": value}),
    "cmvn.json": lambda path, value: features.Cmvn(np.ones(1), np.ones(1), len(value)).save(path),
    "test_sets": lambda path, value: corpus.write_test_sets(path.parent, [value]),
    "best.json": lambda path, value: records.point(path.parent, "best", path, value=value),
    "a.txt": lambda path, value: recognize.write(
        None, "a", SimpleNamespace(text=value), "text", path, False
    ),
    "model.json": lambda path, value: training.describe(Sized(len(value)), path.parent),
    "curves.png": draw,
}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_the_former_file(tmp_path, monkeypatch, name, moment):
    path, write = tmp_path / name, WRITERS[name]
    write(path, "one")
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, moment, full)
        write(path, "another")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [name]
    write(path, "another")
    assert path.read_bytes() != before


@LINUX
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, name):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    WRITERS[name](tmp_path / name, "one")
    assert done == [f"{name}.tmp", "renamed", tmp_path.name]


def test_what_a_kill_left_of_a_file_is_written_over(tmp_path):
    (tmp_path / "a.txt.tmp").write_text("half a fi")
    atomic.write_text(tmp_path / "a.txt", "whole\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "whole\n"}


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    def refusing(handle: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refusing)
    atomic.write_text(tmp_path / "a.txt", "whole\n")
    assert (tmp_path / "a.txt").read_text() == "whole\n"


@LINUX
def test_a_kill_before_any_change_leaves_the_former_folder_or_the_new_one(tmp_path):
    def make(text: str) -> None:
        with stamp.building(tmp_path / "out", "toy", [], {"text": text}) as target:
            if target is not None:
                (target / "a").write_text(text)

    def killed(change: int) -> int:
        faults = Faults(change, die)
        make("another")
        return 0 if faults.count < change else 1

    make("one")
    for change in itertools.count(1):
        status = child(lambda number=change: killed(number))
        found = tmp_path / "out" if (tmp_path / "out").exists() else tmp_path / "out.old"
        assert (found / "a").read_text() in ("one", "another"), change
        make("another")
        assert (tmp_path / "out" / "a").read_text() == "another"
        assert os.listdir(tmp_path) == ["out"], change
        make("one")
        if status != DEATH:
            break
    assert change > 12 and status == 0


def test_a_journal_whose_first_file_is_empty_is_begun_anew(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / journal.ABOUT).touch()
    (tmp_path / "out.part" / "0.0.0.jsonl").write_text('{"id": "a"}\n')
    assert journal.Journal.begin(tmp_path / "out.part", {"a": 1}) == 0
    assert journal.Journal.begin(tmp_path / "out.part", {"a": 1}) == 0
    journal.Journal(tmp_path / "out.part", 0).write(0, [{"id": "a"}])
    assert journal.Journal.begin(tmp_path / "out.part", {"a": 1}) == 1


def test_a_full_disk_does_not_empty_what_a_journal_is_about(tmp_path, monkeypatch):
    out = tmp_path / "out.part"
    journal.Journal.begin(out, {"a": 1})
    journal.Journal(out, 0).write(0, [{"id": "a"}])
    for fresh in (out, tmp_path / "another.part"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                journal.Journal.begin(fresh, {"a": 1})
            except OSError as error:
                assert fresh != out and error.errno == errno.ENOSPC
        assert journal.Journal.begin(fresh, {"a": 1}) == (fresh == out)
