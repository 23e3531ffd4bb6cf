"""The file in which the columns of a large data directory are kept for all processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from asrtool.data.kaldi import cache, datadir, reading
from asrtool.system import stamp
from asrtool.types import Utterance

SOME = Utterance(id="", audio="a.wav", duration=1.0, text="ÉIN", speaker="s", labels={"style": "x"})


def rows(count: int) -> list[Utterance]:
    return [replace(SOME, id=f"u{n:03}", text="" if n == 3 else f"É {n}") for n in range(count)]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory that counts as large, and that nobody has changed for long."""
    monkeypatch.setattr(cache, "LARGE", 0)
    monkeypatch.setattr(cache, "RECENT", -1.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    datadir.write(tmp_path / "set", rows(20))
    return tmp_path / "set"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The data directories whose tables were read."""
    folders, read = [], reading.columns
    monkeypatch.setattr(
        reading, "columns", lambda folder: (folders.append(folder), read(folder))[1]
    )
    return folders


def kept(folder: Path) -> Path:
    return folder / stamp.COLUMNS


def test_tables_are_read_once_until_one_changes(made: Path, readings: list[Path]) -> None:
    before = stamp.digest(made)
    assert datadir.read(made) == rows(20) == datadir.read(made)
    assert len(readings) == 1 and stamp.digest(made) == before
    text = (made / "text").read_text()
    (made / "text").write_text(text.replace("É 7", "É 8"))  # of the same size
    assert [row.text for row in datadir.read(made)[6:9]] == ["É 6", "É 8", "É 8"]
    datadir.write(made, rows(30))
    assert datadir.read(made) == rows(30) == datadir.read(made)
    assert len(readings) == 3
    assert not [path.name for path in made.iterdir() if path.name.startswith(".columns.")]


def test_small_tables_are_not_kept(made: Path, readings: list[Path], monkeypatch) -> None:
    monkeypatch.setattr(cache, "LARGE", 1 << 24)
    datadir.read(made), datadir.read(made)
    assert len(readings) == 2 and not kept(made).exists()


def test_the_file_is_one_of_safetensors(made: Path) -> None:
    datadir.read(made)
    arrays = load_file(kept(made))
    assert arrays["durations"].tolist() == [1.0] * 20
    assert arrays["ids.buffer"].tobytes() == "".join(row.id for row in rows(20)).encode()


@pytest.mark.parametrize("recent", [False, True])
def test_a_copy_of_the_folder_brings_its_file_along(
    made: Path, readings: list[Path], recent: bool, monkeypatch
) -> None:
    monkeypatch.setattr(cache, "RECENT", 1e6 if recent else -1.0)
    datadir.read(made)
    shutil.copytree(made, made.parent / "copy")
    assert datadir.read(made.parent / "copy") == rows(20) and len(readings) == 1


def test_a_file_that_has_just_been_written_is_compared_by_content(made: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache, "RECENT", 1e6)
    state = cache._state(made)
    monkeypatch.setattr(cache, "_state", lambda folder: state)  # which shows no change
    datadir.read(made)
    (made / "text").write_text((made / "text").read_text().replace("É 7", "É 8"))
    assert datadir.read(made)[7].text == "É 8"


@pytest.mark.parametrize("how", ["cut", "empty", "garbage", "version", "longer"])
def test_a_damaged_file_is_made_again(
    made: Path, readings: list[Path], how: str, monkeypatch
) -> None:
    if how == "version":
        monkeypatch.setattr(cache, "VERSION", 0)
    datadir.read(made)
    monkeypatch.setattr(cache, "VERSION", 1)
    content = kept(made).read_bytes()
    changed = {"cut": content[:-1], "empty": b"", "garbage": b"x" * 99, "longer": content + b"x"}
    kept(made).write_bytes(changed.get(how, content))
    assert datadir.read(made) == rows(20)
    assert len(kept(made).read_bytes()) == len(content) and load_file(kept(made))


@pytest.fixture
def unwritable(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # a superuser may write into any folder, so modes of files would not show it
    is_writable = cache._is_writable
    monkeypatch.setattr(cache, "_is_writable", lambda path: path != made and is_writable(path))
    return made


def test_what_cannot_be_kept_beside_the_tables_is_with_temporary_files(
    unwritable: Path, readings: list[Path]
) -> None:
    assert datadir.read(unwritable) == rows(20) == datadir.read(unwritable)
    assert len(readings) == 1 and not kept(unwritable).exists()
    own = unwritable.parent / "tmp" / f"asrtool-{os.getuid()}"
    (file,) = own.iterdir()
    assert file.name.endswith(stamp.COLUMNS) and own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["open to all", "a link", "no folder"])
def test_a_temporary_folder_of_somebody_else_is_not_used(
    unwritable: Path, readings: list[Path], what: str
) -> None:
    own = unwritable.parent / "tmp" / f"asrtool-{os.getuid()}"
    if what == "open to all":
        own.mkdir()
        own.chmod(0o777)
    elif what == "a link":
        (unwritable.parent / "theirs").mkdir()
        own.symlink_to(unwritable.parent / "theirs")
    else:
        own.write_text("")
    assert datadir.read(unwritable) == rows(20) == datadir.read(unwritable)
    assert len(readings) == 2 and not list(unwritable.parent.glob("t*/**/*.columns"))


def test_a_full_disk_is_no_reason_to_stop(made: Path, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.atomic, "put", full)
    assert datadir.read(made) == rows(20)
    assert "no space left on device; each process holds the tables by itself" in caplog.text
    assert {path.name for path in made.iterdir()} == {path.name for path in made.glob("[a-z]*")}


READ = """
import sys
from pathlib import Path
from asrtool.data.kaldi import cache, datadir
from asrtool.log import set_up
set_up()
cache.LARGE = 0
print(sum(len(row.text) for row in datadir.read(Path(sys.argv[1]))))
"""


def test_of_several_processes_one_reads_and_the_others_wait(made: Path) -> None:
    command = [sys.executable, "-c", READ, str(made)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(3)]
    ended = [process.communicate() for process in started]
    assert {out for out, _ in ended} == {f"{sum(len(row.text) for row in rows(20))}\n"}
    assert sum("kept in" in said for _, said in ended) == 1


def test_faults_are_told_however_large_the_tables_are(made: Path) -> None:
    datadir.read(made)
    with open(made / "text", "a") as stream:
        stream.write("zoe A\n")
    with pytest.raises(datadir.UserError, match=r"text:21: 1 utterance without audio \(zoe\)"):
        datadir.read(made)
    assert not kept(made).with_name(".columns.lock").exists()
