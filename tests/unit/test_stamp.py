from __future__ import annotations

import pytest

from asrtool import stamp


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
    assert [build(tmp_path / "out", source), build(tmp_path / "out", source)] == ["built", "skipped"]


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
    with pytest.raises(KeyboardInterrupt), stamp.building(tmp_path / "out", "toy", [source]) as target:
        (target / "result").write_text("half")
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
    assert build(tmp_path / "out", source) == "built"
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != stamp.NAME] == ["result"]


def test_an_interrupted_rebuild_keeps_the_old_result(tmp_path, source):
    build(tmp_path / "out", source, text="old")
    with pytest.raises(RuntimeError), stamp.building(tmp_path / "out", "toy", [source], force=True) as target:
        (target / "result").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "result").read_text() == "old"


def test_audio_counts_by_name_and_size_only(tmp_path, source):
    (source / "a.flac").write_bytes(b"1234")
    build(tmp_path / "out", source)
    (source / "a.flac").write_bytes(b"12345")
    assert build(tmp_path / "out", source) == "built"
