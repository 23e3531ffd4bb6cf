from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asrtool.errors import UserError
from asrtool.system import stamp


def build(out, source, options=None, text="made", force=False):
    with stamp.building(out, "toy", [source], options or {}, force=force) as target:
        if target is None:
            return "skipped"
        (target / "result").write_text(text)
    return "built"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "text").write_text("a b\n")
    return folder


def test_a_stage_with_the_same_inputs_and_options_is_skipped(tmp_path, source):
    assert [build(tmp_path / "out", source), build(tmp_path / "out", source)] == [
        "built",
        "skipped",
    ]


def test_file_times_do_not_matter_and_content_does(tmp_path, source):
    build(tmp_path / "out", source)
    (source / "text").write_text("a b\n")
    assert build(tmp_path / "out", source) == "skipped"
    (source / "text").write_text("a c\n")
    assert build(tmp_path / "out", source) == "built"


def test_a_changed_option_and_force_build_again(tmp_path, source):
    build(tmp_path / "out", source, {"size": 1})
    assert build(tmp_path / "out", source, {"size": 2}) == "built"
    assert build(tmp_path / "out", source, {"size": 2}, force=True) == "built"


def test_an_interrupted_stage_leaves_nothing_that_looks_finished(tmp_path, source):
    with (
        pytest.raises(KeyboardInterrupt),
        stamp.building(tmp_path / "out", "toy", [source]) as target,
    ):
        (target / "result").write_text("half")
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
    assert build(tmp_path / "out", source) == "built"
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != stamp.NAME] == [
        "result"
    ]


def test_an_interrupted_rebuild_keeps_the_old_result(tmp_path, source):
    build(tmp_path / "out", source, text="old")
    with (
        pytest.raises(RuntimeError),
        stamp.building(tmp_path / "out", "toy", [source], force=True) as target,
    ):
        (target / "result").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "result").read_text() == "old"


def test_audio_counts_by_name_and_size_only(tmp_path, source):
    (source / "a.flac").write_bytes(b"1234")
    build(tmp_path / "out", source)
    (source / "a.flac").write_bytes(b"12345")
    assert build(tmp_path / "out", source) == "built"


def test_a_killed_stage_is_made_again_and_its_leftovers_go(tmp_path, source):
    build(tmp_path / "out", source)
    # as a kill in the middle and one just before the end leave them
    for name in ("out.tmp", "out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    assert build(tmp_path / "out", source) == "skipped"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_result_that_was_about_to_be_replaced_at_a_kill_comes_back(tmp_path, source):
    build(tmp_path / "out", source)
    (tmp_path / "out").rename(tmp_path / "out.old")
    assert build(tmp_path / "out", source) == "skipped"
    assert (tmp_path / "out" / "result").read_text() == "made"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_leaves_nothing_behind(tmp_path, source, error):
    with pytest.raises(error), stamp.building(tmp_path / "out", "toy", [source]):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# -- locks ------------------------------------------------------------------

HOLD = """
import pathlib, sys
from asrtool.system import stamp
with stamp.locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked `out`, until its standard input is closed or it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(stamp.__file__).parents[2])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_folder_that_another_process_makes_is_refused_by_its_number(tmp_path, source, holder):
    with pytest.raises(
        UserError, match=f"out is being written by process {holder.pid} on .*; wait until"
    ):
        build(tmp_path / "out", source)
    holder.stdin.close()
    holder.wait()
    assert build(tmp_path / "out", source) == "built"
    assert not (tmp_path / "out.lock").exists()


def test_a_folder_that_is_up_to_date_needs_no_lock(tmp_path, source, holder):
    build(tmp_path / "elsewhere", source)
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    assert build(tmp_path / "out", source) == "skipped"


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path, source, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "out.lock").exists()
    assert build(tmp_path / "out", source) == "built"


def test_the_lock_of_a_stage_that_was_killed_at_its_very_end_goes(tmp_path, source):
    build(tmp_path / "out", source)
    (tmp_path / "out.lock").touch()
    assert build(tmp_path / "out", source) == "skipped"
    assert not (tmp_path / "out.lock").exists()


def test_the_lock_of_a_living_process_stays(tmp_path, holder):
    (tmp_path / "out.tmp").touch()
    stamp.sweep(tmp_path / "out")
    assert (tmp_path / "out.lock").exists() and (tmp_path / "out.tmp").exists()
    holder.kill()
    holder.wait()
    stamp.sweep(tmp_path / "out")
    assert not (tmp_path / "out.lock").exists() and not (tmp_path / "out.tmp").exists()


def test_nothing_is_swept_where_the_file_system_keeps_no_locks(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    (tmp_path / "out.tmp").touch()
    stamp.sweep(tmp_path / "out")
    assert (tmp_path / "out.tmp").exists()


def test_a_damaged_stamp_is_none(tmp_path, source):
    build(tmp_path / "out", source)
    (tmp_path / "out" / stamp.NAME).write_bytes(b"\xff\x00")
    assert build(tmp_path / "out", source) == "built"


def test_who_waits_for_a_lock_gets_it_in_the_end(tmp_path, holder):
    threading.Timer(0.2, holder.stdin.close).start()
    with stamp.locked(tmp_path / "out", wait=True):
        assert holder.wait() == 0


def test_two_inputs_of_one_name_both_count(tmp_path):
    paths = [tmp_path / place / "wav.scp" for place in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("1")
    before = stamp.describe("data", paths, {})
    paths[0].write_text("2")
    assert stamp.describe("data", paths, {}) != before


def test_a_folder_behind_a_link_counts_and_a_circle_ends(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("1")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "wav").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "corpus")
    before = stamp.digest(tmp_path / "corpus")
    (tmp_path / "elsewhere" / "a.txt").write_text("2")
    assert stamp.digest(tmp_path / "corpus") != before


def test_inputs_that_several_folders_share_are_read_once(tmp_path, monkeypatch):
    asked, digest = [], stamp.digest
    monkeypatch.setattr(stamp, "digest", lambda path: asked.append(path) or digest(path))
    (tmp_path / "in").write_text("1")
    known = {}
    for name in ("train", "dev"):
        with stamp.building(tmp_path / name, "data", [tmp_path / "in"], known=known):
            pass
    assert asked == [tmp_path / "in"]
