"""Shards hold the text beside the audio, as WebDataset and WeNet expect it; older ones are read."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import audio
from asrtool.data.kaldi import datadir, tables
from asrtool.data.shards import index, packing
from asrtool.types import Utterance
from tests.unit.data.sharded import make, write_source

KEYS = {
    "plain": "ann-1",
    "with full stops": "sp0.9-ann.1",
    "with a slash": "a/b",
    "of a script": "ü語",
}


def write_set(folder: Path, ids: dict[str, str]) -> Path:
    """Two utterances an id, of which the second has neither text nor label."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, key in enumerate(ids.values()):
        path = folder / f"{number}.wav"
        soundfile.write(path, np.full(4000 + number, 0.1), 16000)
        more = {"text": f"HELLO {number}", "labels": {"accent": "north", "id": "x"}}
        for name, facts in ((key, more), (f"{key}~", {})):
            rows.append(Utterance(id=name, audio=str(path), duration=0.25, speaker="ann", **facts))
    datadir.write(folder / "set", rows)
    return folder / "set"


def groups(folder: Path, split: Callable[[str], tuple[str, str]]) -> dict[str, dict[str, bytes]]:
    """Members that follow each other and have the same key, as stream readers see them."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("shard-*.tar")):
        before = None
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r|*") as archive:
            for item in archive:
                key, kind = split(item.name)
                assert key == before or key not in found, "a key must not come back"
                before = key
                assert kind not in found.setdefault(key, {})
                found[key][kind] = archive.extractfile(item).read()
    return found


def at_first_stop(name: str) -> tuple[str, str]:
    """How WebDataset and Hugging Face datasets split names."""
    return re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", name).groups()


def at_last_stop(name: str) -> tuple[str, str]:
    """How WeNet splits them."""
    return name[: name.rfind(".")], name[name.rfind(".") + 1 :]


@pytest.mark.parametrize("split", [at_first_stop, at_last_stop])
def test_both_rules_find_the_same_samples(split: Callable, tmp_path: Path) -> None:
    source = write_set(tmp_path, KEYS)
    found = groups(make(source, tmp_path / "out"), split)
    rows = {row.id: row for row in datadir.read(source)}
    assert len(found) == len(rows)
    for members in found.values():
        assert members.keys() == {"txt", "json", "wav"}
        facts = json.loads(members["json"])
        row = rows.pop(facts["id"])
        assert members["txt"].decode() == row.text
        assert members["wav"] == Path(row.audio).read_bytes()
        assert facts == {
            "id": row.id,
            "speaker": "ann",
            "duration": pytest.approx(0.25, abs=0.01),
            "accent": row.labels.get("accent", ""),
            "utt2id": row.labels.get("id", ""),
        }


def test_features_have_their_text_beside_them_too(tmp_path: Path) -> None:
    found = groups(make(write_source(tmp_path), tmp_path / "out", of="features"), at_first_stop)
    assert all(members.keys() == {"txt", "json", "mat"} for members in found.values())
    assert found["u01"]["txt"] == b"ab"


@pytest.mark.parametrize(
    ("kind", "subtype", "expected"),
    [
        ("WAV", "PCM_24", "wav"),
        ("WAVEX", "PCM_16", "wav"),
        ("RF64", "PCM_16", "wav"),
        ("OGG", "VORBIS", "ogg"),
        ("AIFF", "PCM_16", "flac"),
        ("AIFF", "PCM_24", "flac"),
        ("NIST", "PCM_16", "flac"),
        ("AU", "ULAW", "flac"),
        ("W64", "PCM_16", "flac"),
    ],
)
def test_formats_that_others_do_not_know_become_flac_with_the_same_samples(
    kind: str, subtype: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.audio"
    noise = np.random.default_rng(0).normal(0, 0.1, 4000)
    soundfile.write(path, noise, 16000, format=kind, subtype=subtype)
    row = Utterance(id="a", audio=str(path), duration=0.25, speaker="a")
    data, name, seconds = packing.audio_content(row)
    assert (name, seconds) == (expected, 0.25)
    np.testing.assert_array_equal(audio.decode(data, "a")[0], audio.load(str(path))[0])


def test_shards_of_the_audio_alone_are_still_read(tmp_path: Path) -> None:
    """As they were written before there was text beside it."""
    source = write_set(tmp_path, {"plain": "ann-1"})
    rows = datadir.read(source)
    members, paths = {}, {}
    with tarfile.open(tmp_path / "old.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for row in rows:
            archive.add(row.audio, f"{row.id}.wav")
    with tarfile.open(tmp_path / "old.tar") as archive:
        for row, info in zip(rows, archive.getmembers(), strict=True):
            paths[row.id] = f"{tmp_path}/old.tar:{info.offset_data}"
            members[row.id] = index.Member(f"{tmp_path}/old.tar", info.offset_data, info.size, 0)
    tables.write(source / "wav.scp", paths)
    tables.write(source / index.FILE, {key: str(member) for key, member in members.items()})
    for old, new in zip(rows, datadir.read(source), strict=True):
        np.testing.assert_array_equal(audio.read(new.audio), audio.read(old.audio))
    assert index.ShardIndex(source, [row.id for row in rows]).size.tolist() == [8044, 8044]


def test_several_formats_in_one_set_are_said(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    make(write_source(tmp_path), tmp_path / "out")
    assert "the audio is flac and ogg and wav; Hugging Face datasets reads" in log.text
