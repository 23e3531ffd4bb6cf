"""Faults of foreign data sets: each is named with its place, and nothing is dropped silently."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from tests.unit.data.toolkits import forms
from tests.unit.data.toolkits.forms import FORMS, Spoken, take, write_lines, write_tar


def rewritten(path: Path, change: Callable[[list[dict]], None]) -> None:
    """Change the objects of a file of JSON lines."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    change(rows)
    write_lines(path, rows)


def changed(form: str, root: Path, change: Callable[[list[dict]], None]) -> list[str]:
    """The arguments for a form whose manifest was changed."""
    arguments = FORMS[form](root / "from", forms.corpus())
    rewritten(Path(arguments[-1]), change)
    return arguments


def setting(name: str, value: object, line: int = 2) -> Callable[[list[dict]], None]:
    def change(rows: list[dict]) -> None:
        rows[line - 1][name] = value

    return change


def removing(name: str) -> Callable[[list[dict]], None]:
    return lambda rows: rows[1].pop(name)


def in_supervision(name: str, value: object) -> Callable[[list[dict]], None]:
    return lambda rows: rows[1]["supervisions"][0].update({name: value})


def in_recording(name: str, value: object) -> Callable[[list[dict]], None]:
    return lambda rows: rows[1]["recording"].update({name: value})


def in_source(**values: object) -> Callable[[list[dict]], None]:
    return lambda rows: rows[1]["recording"]["sources"][0].update(values)


# -- what stops the command -------------------------------------------------

STOPS = {
    "a key is missing": ("wenet raw list", removing("txt"), r"data.list:2: there is no 'txt'"),
    "a text is a number": ("wenet raw list", setting("txt", 5), r"data.list:2: the text is 5"),
    "a segment ends before it starts": (
        "wenet raw list of segments",
        setting("end", 0.01),
        r"data.list:2: u01.a ends at 0.01 s but starts at",
    ),
    "a negative offset": (
        "nemo with offsets",
        setting("offset", -1),
        r"manifest.json:2: 'offset' is -1, expected seconds",
    ),
    "a duration that is no number": (
        "nemo",
        setting("duration", "3 s"),
        r"manifest.json:2: 'duration' is '3 s', expected seconds",
    ),
    "a duration that is infinite": (
        "nemo",
        setting("duration", float("inf")),
        r"manifest.json:2: 'duration' is inf, expected seconds",
    ),
    "no audio_filepath": (
        "nemo",
        removing("audio_filepath"),
        r"manifest.json:2: there is no 'audio_filepath'; is it a manifest of NeMo",
    ),
    "an id twice": (
        "nemo with offsets",
        setting("utt", "u00.a"),
        r"manifest.json:2: the id 'u00.a' occurs twice, first in .*manifest.json:1",
    ),
    "a supervision without start": (
        "lhotse cuts",
        lambda rows: rows[1]["supervisions"][0].pop("start"),
        r"cuts.jsonl.gz:2: there is no 'start'",
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_fault_of_the_manifest_stops_with_file_and_line(name: str, tmp_path: Path) -> None:
    form, change, message = STOPS[name]
    arguments = changed(form, tmp_path, change)
    with pytest.raises(UserError, match=message):
        take(arguments, tmp_path / "set")
    assert not (tmp_path / "set").exists()


# -- what leaves one utterance out ------------------------------------------

LEFT_OUT = {
    "a command": ("wenet raw list", setting("wav", "touch hacked |"), "commands .* are not run"),
    "an address": ("wenet raw list", setting("wav", "s3://b/a.wav"), "not a file on this machine"),
    "a missing file": ("nemo", setting("audio_filepath", "wav/u99.wav"), "no such file"),
    "a duration beyond the audio": (
        "nemo",
        setting("duration", 5.0),
        r"s long, but the manifest wants 0.000 to 5.000 s of it",
    ),
    "an offset beyond the audio": (
        "nemo with offsets",
        setting("offset", 1000),
        r"but the manifest wants 1000.000 to",
    ),
    "a member that the archive lacks": (
        "nemo with parts of a member",
        setting("audio_filepath", "other.wav"),
        "the archive has no member other.wav",
    ),
    "half a character": ("wenet raw list", setting("txt", "\ud800"), "not valid Unicode"),
    "a mixed cut": ("lhotse cuts", setting("type", "MixedCut"), "it is a MixedCut"),
    "a padding cut": ("lhotse cuts", setting("type", "PaddingCut"), "it is a PaddingCut"),
    "several channels": ("lhotse cuts", setting("type", "MultiCut"), "it is a MultiCut"),
    "no supervision": ("lhotse cuts", setting("supervisions", []), "no supervision"),
    "no text": ("lhotse cuts", in_supervision("text", None), "the supervision has no text"),
    "features only": ("lhotse cuts", removing("recording"), "no recording, only features"),
    "a supervision that exceeds its cut": (
        "lhotse cuts",
        in_supervision("duration", 9),
        "the supervision, from 0 to 9 s, is not within its cut",
    ),
    "a supervision of another channel": (
        "lhotse cuts",
        in_supervision("channel", 1),
        "another channel than its cut",
    ),
    "another length than the file": (
        "lhotse cuts",
        in_recording("duration", 9),
        "but the manifest says 9.000 s; is it another file",
    ),
    "louder audio": (
        "lhotse cuts",
        in_recording("transforms", [{"name": "Volume", "kwargs": {"factor": 2}}]),
        "transforms the audio by Volume",
    ),
    "narrower audio": (
        "lhotse cuts",
        in_recording(
            "transforms",
            [
                {
                    "name": "Resample",
                    "kwargs": {"source_sampling_rate": 8000, "target_sampling_rate": 4000},
                }
            ],
        ),
        "transforms the audio by Resample",
    ),
    "a command of lhotse": (
        "lhotse cuts",
        in_source(type="command", source="cat x.wav"),
        "the audio is of type 'command', expected a file",
    ),
    "audio in memory": ("lhotse cuts", in_source(type="memory"), "of type 'memory'"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_unusable_utterance_is_left_out_by_name(
    name: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    form, change, message = LEFT_OUT[name]
    arguments = changed(form, tmp_path, change)
    folder = take(arguments, tmp_path / "set")
    (listed,) = (folder / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert re.search(message, listed) and f"{Path(arguments[-1]).name}:2: " in listed
    assert f"left out 1 of 12, see {folder / 'skipped.txt'}" in log.text
    assert re.search(message, log.text)
    assert len(datadir.read(folder)) == 11


def test_too_many_unusable_utterances_stop_the_command(tmp_path: Path) -> None:
    def change(rows: list[dict]) -> None:
        for row in rows[:4]:
            row["type"] = "MixedCut"

    with pytest.raises(UserError, match="4 of 12 utterances cannot be used; first u00.a-0: "):
        take(changed("lhotse cuts", tmp_path, change), tmp_path / "set")


# -- files ------------------------------------------------------------------


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tar_of(root: Path, *members: tuple[str, bytes]) -> Path:
    return write_tar(root / "a.tar", members)


SOUND = forms.encoded(np.arange(4000, dtype=np.int16))
FILES = {
    "no JSON": (
        "nemo",
        lambda r: damaged(r / "m.json", b"{'a': 1}\n"),
        "m.json:1: expected one JSON",
    ),
    "a JSON list": (
        "nemo",
        lambda r: damaged(r / "m.json", b"[1]\n"),
        "m.json:1: expected a JSON obj",
    ),
    "not UTF-8": (
        "wenet",
        lambda r: damaged(r / "a.list", b'{"k": "\xe9"}'),
        "a.list:1: expected UTF-8",
    ),
    "an incomplete gzip file": (
        "lhotse",
        lambda r: damaged(r / "cuts.jsonl.gz", gzip.compress(b"{}" * 99)[:-9]),
        "cuts.jsonl.gz: damaged or incomplete",
    ),
    "an empty list": ("wenet", lambda r: damaged(r / "a.list", b"\n"), "a.list: the list is empty"),
    "an archive that a list names but is not there": (
        "wenet",
        lambda r: damaged(r / "a.list", b"b.tar\n"),
        "a.list:1: there is no .*b.tar",
    ),
    "an address of an archive": (
        "wenet",
        lambda r: damaged(r / "a.list", b"https://x/b.tar\n"),
        "a.list:1: https://x/b.tar is not a file on this machine",
    ),
    "a compressed archive": (
        "webdataset",
        lambda r: damaged(r / "b.tar", gzip.compress(tar_of(r, ("a.wav", SOUND)).read_bytes())),
        "b.tar: compressed, .* decompress it",
    ),
    "an incomplete archive": (
        "webdataset",
        lambda r: damaged(r / "b.tar", tar_of(r, ("a.wav", SOUND)).read_bytes()[:3000]),
        "b.tar: not a whole tar archive",
    ),
    "no archive": ("webdataset", lambda r: damaged(r / "b.tar", b"x" * 2000), "not a whole tar"),
    "a key twice in a row": (
        "webdataset",
        lambda r: tar_of(r, ("a.wav", SOUND), ("a.wav", SOUND)),
        "a.tar: a.wav: a second .wav of a",
    ),
    "a key twice": (
        "webdataset",
        lambda r: tar_of(
            r,
            *(("a.wav", SOUND), ("a.txt", b"A"), ("b.wav", SOUND), ("b.txt", b"B")),
            *(("a.wav", SOUND), ("a.txt", b"C")),
        ),
        "a.tar: a.wav: the id 'a' occurs twice",
    ),
    "JSON that is none in an archive": (
        "webdataset",
        lambda r: tar_of(r, ("a.wav", SOUND), ("a.json", b"A")),
        "a.tar: a.json: expected JSON",
    ),
    "cuts in YAML": ("lhotse", lambda r: damaged(r / "cuts.yaml", b"- a"), "expected JSON lines"),
    "nothing": (
        "nemo",
        lambda r: damaged(r / "m.json", b""),
        "there is no utterance in the source",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    kind, make, message = FILES[name]
    with pytest.raises(UserError, match=message):
        take(["--from", kind, str(make(tmp_path))], tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_samples_of_archives_without_audio_or_text_are_left_out(tmp_path: Path) -> None:
    members = [
        (f"{n}.{kind}", data) for n in range(9) for kind, data in (("wav", SOUND), ("txt", b"A"))
    ]
    members += [("x.wav", SOUND), ("y.txt", b"A"), ("y.cls", b"1")]
    folder = take(
        ["--from", "webdataset", str(write_tar(tmp_path / "a.tar", members))], tmp_path / "s"
    )
    assert (folder / "skipped.txt").read_text().splitlines() == [
        f"x: {tmp_path}/a.tar: x.wav: it has no transcript: no .txt, nor a .json with 'text'",
        f"y: {tmp_path}/a.tar: y.txt: it has no audio file, only .txt, .cls",
    ]


def test_a_damaged_member_is_left_out(tmp_path: Path) -> None:
    members = [
        (f"{n}.{kind}", data) for n in range(9) for kind, data in (("wav", SOUND), ("txt", b"A"))
    ]
    members += [("x.wav", SOUND[:5000]), ("x.txt", b"A")]
    folder = take(["--from", "wenet", str(write_tar(tmp_path / "a.tar", members))], tmp_path / "s")
    assert "truncated" in (folder / "skipped.txt").read_text() and len(datadir.read(folder)) == 9


# -- channels, speed, names -------------------------------------------------


def stereo_cuts(root: Path) -> tuple[list[str], np.ndarray]:
    """Cuts of the channels of one recording."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (4000, 2)).astype(np.int16)
    soundfile.write(root / "two.wav", samples, forms.RATE)
    rows = []
    for channel in (0, 1):
        one = Spoken(text="A", samples=samples[:, channel], speaker="s")
        cut = forms.lhotse_cut(f"c{channel}", one, {"type": "file", "source": "two.wav"})
        cut["recording"]["sources"][0]["channels"] = cut["recording"]["channel_ids"] = [0, 1]
        cut["supervisions"][0]["channel"] = cut["channel"] = channel
        rows.append(cut)
    return ["--from", "lhotse", str(write_lines(root / "cuts.jsonl", rows))], samples


def test_a_channel_of_several_is_written_to_a_file_of_its_own(tmp_path: Path) -> None:
    arguments, samples = stereo_cuts(tmp_path)
    with pytest.raises(UserError, match="channel 0 of 2; give --audio"):
        take(arguments, tmp_path / "set")
    folder = take(arguments, tmp_path / "set", "--audio", str(tmp_path / "audio"))
    for channel, row in enumerate(datadir.read(folder)):
        heard = audio.read(row.audio, rate=None) * 32768
        np.testing.assert_array_equal(heard, samples[:, channel])


def test_channels_that_no_line_chooses_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "two.wav", np.zeros((4000, 2)), forms.RATE)
    row = {"key": "a", "wav": "two.wav", "txt": "A"}
    path = write_lines(tmp_path / "data.list", [row])
    with pytest.raises(UserError, match="data.list:1: .*two.wav: 2 channels, expected 1"):
        take(["--from", "wenet", str(path)], tmp_path / "set", "--audio", str(tmp_path / "audio"))
    assert not (tmp_path / "audio").exists()


def test_recordings_at_another_speed_are_computed(tmp_path: Path) -> None:
    speed = [{"name": "Speed", "kwargs": {"factor": 0.9}}]

    def change(rows: list[dict]) -> None:
        for row in rows:
            row["duration"] = round(row["duration"] / 0.9, 6)
            row["supervisions"][0]["duration"] = row["duration"]
            row["recording"] |= {"duration": row["duration"], "transforms": speed}

    spoken = forms.corpus()
    rows = datadir.read(take(changed("lhotse cuts", tmp_path, change), tmp_path / "set"))
    for row, one in zip(rows, spoken.values(), strict=True):
        expected = audio.change_speed(one.samples.astype(np.float32) / 32768, 0.9)
        np.testing.assert_allclose(
            audio.read(row.audio, *row.stretch, forms.RATE), expected, atol=1e-6
        )


def test_a_shorter_duration_of_nemo_is_the_beginning_of_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), forms.RATE)
    lines = [{"audio_filepath": "a.wav", "duration": 0.6, "text": "A"}]
    (row,) = datadir.read(
        take(["--from", "nemo", str(write_lines(tmp_path / "m.json", lines))], tmp_path / "set")
    )
    assert (row.id, row.start, row.duration, row.recording) == ("a", 0.0, 0.6, "a")


def test_files_of_the_same_name_get_ids_with_their_folders(tmp_path: Path) -> None:
    lines = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a b.wav", np.zeros(8000), forms.RATE)
        lines.append({"audio_filepath": f"{folder}/a b.wav", "duration": 1.0, "text": "A"})
    lines.append({**lines[0], "offset": 0.25, "duration": 0.5})
    path = write_lines(tmp_path / "m.json", lines)
    rows = datadir.read(take(["--from", "nemo", str(path)], tmp_path / "set"))
    assert [row.id for row in rows] == [
        "x/a_b-00000000-00001000",
        "x/a_b-00000250-00000750",
        "y/a_b",
    ]


def test_what_a_data_directory_cannot_hold_is_counted_and_said(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    line = {
        "audio_filepath": "a.wav",
        "duration": 0.5,
        "alignment": [1],
        "spk": "x",
        "text": "A\nB",
    }
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), forms.RATE)
    path = write_lines(tmp_path / "m.json", [{**line, "my-score": 0.5, "checked": True}])
    (row,) = datadir.read(take(["--from", "nemo", str(path)], tmp_path / "set"))
    assert row.labels == {"my_score": "0.5", "checked": "true"} and row.text == "A B"
    for note in (
        "'alignment' is not imported: neither a word nor a number (1)",
        "'spk' is not imported: utt2spk is another file (1)",
        "line breaks in transcripts became spaces (1)",
        "utterances without a speaker: each has one of its own (1)",
    ):
        assert note in log.text


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.wav")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match="a.wav is a link"):
        take(["--from", "webdataset", str(tmp_path / "a.tar")], tmp_path / "set")
