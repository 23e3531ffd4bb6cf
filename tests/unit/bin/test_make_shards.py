"""What make_shards writes, and that it is read anywhere."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import audio, features
from asrtool.data.kaldi import datadir
from asrtool.data.shards.index import FILE, ShardIndex
from tests.unit.data.sharded import NUM, make, write_packed, write_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_packed(source, tmp_path_factory.mktemp("packed"))


def test_the_data_directory_in_shards_holds_the_same(source: Path, packed: dict[str, Path]) -> None:
    before, after = datadir.read(source), datadir.read(packed["audio"])
    assert not [problem for problem in datadir.check(packed["audio"]) if problem.kind == "error"]
    for old, new in zip(before, after, strict=True):
        assert replace(new, audio=old.audio, features=old.features) == old
        np.testing.assert_array_equal(audio.read(new.audio), audio.read(old.audio))
    for old, new in zip(before, datadir.read(packed["features"]), strict=True):
        np.testing.assert_array_equal(
            features.read_features(new.features), features.read_features(old.features)
        )


def test_any_tar_program_can_unpack_shards(packed: dict[str, Path], source: Path) -> None:
    members = {}
    for path in sorted(packed["audio"].glob("shard-*.tar")):
        with tarfile.open(path) as archive:
            members |= {
                item.name: archive.extractfile(item).read() for item in archive.getmembers()
            }
    rows = datadir.read(source)
    expected = {f"{row.id}{Path(row.audio).suffix}": Path(row.audio).read_bytes() for row in rows}
    expected |= {f"{row.id}.txt": row.text.encode() for row in rows}
    assert {name: members[name] for name in expected} == expected
    assert members.keys() - expected.keys() == {f"{row.id}.json" for row in rows}


def test_shards_are_as_large_as_asked_for_and_no_larger(packed: dict[str, Path]) -> None:
    sizes = [path.stat().st_size for path in packed["audio"].glob("shard-*.tar")]
    assert len(sizes) > 4 and max(sizes) < 0.2e6 + 2 * tarfile.RECORDSIZE


def test_shards_are_written_once_and_the_same_again(source: Path, tmp_path: Path) -> None:
    first = make(source, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in first.glob("shard-*.tar")}
    made = (first / FILE).stat().st_mtime_ns
    make(source, first)
    assert (first / FILE).stat().st_mtime_ns == made
    make(source, first, "--force")
    assert {path.name: path.read_bytes() for path in first.glob("shard-*.tar")} == before
    make(source, first, "--seed", 1)
    assert {path.name: path.read_bytes() for path in first.glob("shard-*.tar")} != before


def test_segments_and_commands_become_utterances_of_their_own(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 32000).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "wav.scp").write_text(
        f"long {tmp_path / 'long.wav'}\npiped cat {tmp_path / 'long.wav'} |\n"
    )
    (tmp_path / "set" / "segments").write_text("a long 0.5 1\nb piped 1 2\n")
    (tmp_path / "set" / "text").write_text("a ONE\nb TWO\n")
    (tmp_path / "set" / "reco2dur").write_text("long 2\npiped 2\n")
    make(tmp_path / "set", tmp_path / "out")
    rows = datadir.read(tmp_path / "out")
    assert [(row.id, row.duration, row.text, row.recording) for row in rows] == [
        ("a", 0.5, "ONE", None),
        ("b", 1.0, "TWO", None),
    ]
    np.testing.assert_array_equal(audio.read(rows[0].audio) * 32768, samples[8000:16000])
    assert (
        not (tmp_path / "out" / "segments").exists()
        and not (tmp_path / "out" / "reco2dur").exists()
    )


def test_what_cannot_be_read_is_left_out_and_named(source: Path, tmp_path: Path) -> None:
    wav = (source / "wav.scp").read_text().splitlines()
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "bad.wav").write_bytes(b"RIFF no audio")
    (folder / "wav.scp").write_text("\n".join([f"u00 {tmp_path / 'bad.wav'}", *wav[1:]]) + "\n")
    make(folder, tmp_path / "out")
    assert [row.id for row in datadir.read(tmp_path / "out")] == [f"u{n:02}" for n in range(1, NUM)]
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("u00 ")


def test_a_moved_folder_is_read_where_it_lies(
    source: Path, packed: dict[str, Path], tmp_path: Path
) -> None:
    moved = make(source, tmp_path / "first").rename(tmp_path / "second")
    row = datadir.read(moved)[0]
    assert row.audio.startswith(str(moved)) and len(audio.read(row.audio))
    assert all(str(moved) in name for name in ShardIndex(moved, ["u00", "u01"]).archives)


def test_a_reference_to_something_else_is_refused(packed: dict[str, Path]) -> None:
    row = datadir.read(packed["audio"])[0]
    archive, offset = audio.member(row.audio)
    with pytest.raises(audio.AudioError, match="no member of the archive starts at this byte"):
        audio.read(f"{archive}:{offset + 7}")
    with pytest.raises(audio.AudioError, match="no such file"):
        audio.read(f"{archive}x.tar:512")
