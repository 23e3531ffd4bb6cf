from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import describe
from asrtool.data import tokenizers
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.types import Utterance

TRAIN = [
    ("a-1", "a", 1.0, "GOOD DAY"),
    ("a-2", "a", 2.0, "GOOD  DAY"),
    ("b-1", "b", 3.5, "今天 A"),
    ("b-2", "b", 0.5, ""),
]
TEST = [("a-9", "a", 1.0, "GOOD DAY"), ("c-1", "c", 40.0, "NEW 今明明")]


def write(folder: Path, name: str, rows: list) -> Path:
    (folder / "audio").mkdir(exist_ok=True)
    utterances = []
    for number, (key, speaker, seconds, text) in enumerate(rows):
        path = folder / "audio" / f"{key}.wav"
        noise = np.random.default_rng(number).normal(0, 0.1, round(seconds * 8000))
        soundfile.write(path, noise, 8000)
        labels = {"accent": "north"} if speaker == "a" else {}
        utterances.append(
            Utterance(
                id=key, audio=str(path), duration=seconds, text=text, speaker=speaker, labels=labels
            )
        )
    datadir.write(folder / name, utterances)
    return folder / name


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path, "train", TRAIN), write(tmp_path, "test", TEST)


def report(tmp_path: Path, *arguments: object) -> dict:
    describe.main([*map(str, arguments), "--json", str(tmp_path / "report.json")])
    return json.loads((tmp_path / "report.json").read_text())


def test_one_set(sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = report(tmp_path, sets[0])
    (one,) = found["sets"]
    assert (one["utterances"], one["speakers"], one["hours"]) == (4, 2, round(7 / 3600, 4))
    assert (
        one["seconds"]["0%"] == 0.5
        and one["seconds"]["100%"] == 3.5
        and one["seconds"]["50%"] == 1.5
    )
    assert [(first, count) for first, _, count in one["histogram"] if count] == [
        (0.5, 1),
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    assert (one["characters"], one["different_characters"]) == (17, 7)
    assert (one["words"], one["different_words"]) == (6, 4)
    assert (one["empty_transcripts"], one["repeated_transcripts"], one["repeated_audio"]) == (
        1,
        1,
        0,
    )
    assert one["labels"] == {"accent": {"north": 2, "(none)": 2}}
    assert one["characters_per_second"]["100%"] == 7.0
    text = capsys.readouterr().out
    assert (
        "hours                   0.00" in text and "3 to 4 s  ######" in text and "accent" in text
    )


def test_sets_are_compared_with_the_first(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found = report(tmp_path, *sets)
    unknown = found["unknown"]["sets"][str(sets[1])]
    assert unknown["characters"]["examples"] == {"明": 2, "E": 1, "N": 1, "W": 1}
    assert unknown["characters"]["kinds"] == 4 and unknown["characters"]["share"] == round(
        5 / 13, 6
    )
    assert unknown["words"]["examples"] == {"NEW": 1, "今明明": 1}
    (pair,) = found["overlaps"]
    assert pair["speakers"] == {"common": 1, "examples": ["a"]}
    assert pair["texts"] == {"utterances": 1, "share": 0.5} and pair["audio"] == {
        "utterances": 0,
        "share": 0.0,
    }
    text = capsys.readouterr().out
    assert "characters that it lacks4 (5 occurrences, 38.462%): 明 (2x), E (1x)" in text.replace(
        "lacks ", "lacks"
    )
    assert "texts                   1 utterance, 50.00%" in text


def test_a_vocabulary_is_what_sets_are_compared_with(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "vocab").mkdir()
    tokenizers.train(["GOD AY今"], "char", 0, tmp_path / "vocab")
    unknown = report(tmp_path, *sets, "--vocab", tmp_path / "vocab")["unknown"]
    assert unknown["reference"] == str(tmp_path / "vocab")
    assert unknown["sets"][str(sets[0])] == {
        "characters": {
            "kinds": 1,
            "occurrences": 1,
            "share": round(1 / 17, 6),
            "examples": {"天": 1},
        }
    }


def test_the_same_audio_is_found_by_its_path_and_its_copies_by_their_content(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    wav = (sets[1] / "wav.scp").read_text()
    (sets[1] / "wav.scp").write_text(wav.replace("a-9.wav", "../audio/a-2.wav"))
    assert report(tmp_path, *sets)["overlaps"][0]["audio"]["utterances"] == 1
    shutil.copy(tmp_path / "audio" / "b-1.wav", tmp_path / "audio" / "c-1.wav")
    assert report(tmp_path, *sets)["overlaps"][0]["audio"]["utterances"] == 1
    assert report(tmp_path, *sets, "--content")["overlaps"][0]["audio"]["utterances"] == 2


def test_lengths_that_no_file_tells_are_measured(sets: tuple[Path, Path], tmp_path: Path) -> None:
    expected = report(tmp_path, sets[0])
    (sets[0] / "utt2dur").unlink()
    assert report(tmp_path, sets[0]) == expected
    (tmp_path / "audio" / "b-1.wav").write_bytes(b"no audio")
    (one,) = report(tmp_path, sets[0])["sets"]
    assert one["unmeasured"] == ["b-1"] and one["utterances"] == 4 and one["seconds"]["100%"] == 2.0


def test_a_plot_is_a_png_file(sets: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report(tmp_path, *sets, "--plot", tmp_path / "sets.png")
    assert (tmp_path / "sets.png").read_bytes().startswith(b"\x89PNG") and not (
        tmp_path / "sets.png.tmp"
    ).exists()


def test_without_matplotlib_one_sentence_says_so(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"^--plot needs matplotlib, which is not " r"installed: pip install",
    ):
        report(tmp_path, *sets, "--plot", tmp_path / "sets.png")
    assert not (tmp_path / "report.json").exists()
