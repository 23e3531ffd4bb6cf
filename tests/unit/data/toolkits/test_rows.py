"""Rows of Hugging Face datasets, without the package; tests/interop reads real ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.data.toolkits import huggingface, taking
from asrtool.data.toolkits.entries import Entry, LeftOut, Source
from asrtool.errors import UserError
from tests.unit.data.toolkits import forms

USUAL = {"audio": "audio", "text": "text", "speaker": "speaker_id", "id": "id"}


def entry(row: dict, chosen: dict[str, str] = USUAL) -> Entry | LeftOut:
    return huggingface.entry("data: row 7", 7, row, chosen, Counter())


def test_a_row_with_bytes_is_an_utterance_and_the_rest_are_labels() -> None:
    row = {"audio": {"bytes": b"x", "path": "a.wav"}, "text": " HELLO ", "speaker_id": 12}
    made = entry(row | {"id": "u 1", "gender": "f", "votes": 3, "extra": None, "tokens": [1]})
    assert (made.id, made.audio, made.text, made.speaker) == ("u_1", b"x", "HELLO", "12")
    assert made.labels == {"gender": "f", "votes": "3"} and made.where == "data: row 7"


def test_without_ids_the_name_of_the_file_or_the_row_is_the_id() -> None:
    chosen = {"audio": "audio", "text": "text"}
    row = {"audio": {"bytes": b"x", "path": "clips/common_1.mp3"}, "text": "A"}
    assert entry(row, chosen).id == "common_1"
    assert entry({"audio": {"bytes": b"x", "path": None}, "text": "A"}, chosen).id == "row-00000007"


def test_a_path_stays_where_it_is(tmp_path: Path) -> None:
    row = {"audio": {"bytes": None, "path": str(tmp_path / "a.wav")}, "text": "A"}
    made = entry(row, {"audio": "audio", "text": "text"})
    assert made.audio == str(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"audio": None, "text": "A"}, "no audio, neither bytes nor a path"),
        ({"audio": {"bytes": b"x", "path": None}, "text": None}, "no transcript"),
        ({"audio": {"bytes": None, "path": "rm x |"}, "text": "A"}, "are not run"),
        ({"audio": {"bytes": None, "path": "https://x/a.wav"}, "text": "A"}, "not a file on this"),
    ],
)
def test_rows_without_audio_or_text_are_left_out(row: dict, reason: str) -> None:
    made = entry(row, {"audio": "audio", "text": "text"})
    assert isinstance(made, LeftOut) and reason in made.reason


def test_columns_are_found_by_their_usual_names_or_named() -> None:
    columns = ["client_id", "path", "audio", "sentence", "raw"]
    assert huggingface.chosen("d", columns, {}) == {
        "audio": "audio",
        "text": "sentence",
        "speaker": "client_id",
    }
    assert huggingface.chosen("d", columns, {"text": "raw"})["text"] == "raw"
    with pytest.raises(UserError, match="d: no column 'x'; it has client_id, path"):
        huggingface.chosen("d", columns, {"text": "x"})
    with pytest.raises(UserError, match=r"no column 'text'; name it by --fields 'text=COLUMN'"):
        huggingface.chosen("d", ["audio", "raw"], {})


def source(rows: list[dict]) -> Source:
    return Source(lambda notes: map(entry, rows), [])


def test_bytes_need_a_folder_to_be_written_to(tmp_path: Path) -> None:
    samples = np.arange(4000, dtype=np.int16)
    sound = {"bytes": forms.encoded(samples, "flac"), "path": None}
    rows = [{"audio": sound, "text": "A", "speaker_id": 1, "id": f"a/{n}"} for n in range(3)]
    for name in ("set", "audio"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="data: row 7: the audio is inside the file.* --audio"):
        taking.take(source(rows), tmp_path / "set", tmp_path / "set", None)
    folder = taking.Folder(tmp_path / "audio", tmp_path / "audio")
    taking.take(source(rows), tmp_path / "set", tmp_path / "set", folder)
    for row in datadir.read(tmp_path / "set"):
        assert row.audio.startswith(f"{tmp_path}/audio/a%2F") and row.audio.endswith(".flac")
        assert Path(row.audio).read_bytes() == sound["bytes"]
        np.testing.assert_array_equal(audio.read(row.audio, rate=None) * 32768, samples)


def test_bytes_that_are_no_audio_are_left_out_by_name(tmp_path: Path) -> None:
    good = {"bytes": forms.encoded(np.arange(4000, dtype=np.int16)), "path": None}
    bad = {"bytes": good["bytes"][:5000], "path": None}
    rows = [
        {"audio": sound, "text": "A", "speaker_id": 1, "id": f"u{n}"}
        for n, sound in enumerate([good, good, bad])
    ]
    (tmp_path / "set").mkdir()
    (tmp_path / "audio").mkdir()
    folder = taking.Folder(tmp_path / "audio", tmp_path / "audio")
    taking.take(source(rows), tmp_path / "set", tmp_path / "set", folder)
    assert "u2: data: row 7: audio of u2: truncated" in (tmp_path / "set/skipped.txt").read_text()
