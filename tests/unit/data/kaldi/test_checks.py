"""Faults beyond form and ids, what `fix` does about them, and that the quick check never overlooks
what is wrong.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data.features import ArkWriter
from asrtool.data.kaldi import checks, datadir
from asrtool.data.kaldi.checks import ASKED, Listing
from asrtool.types import Utterance


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Four utterances of two speakers with audio and features."""
    rows = []
    (tmp_path / "dump").mkdir()
    with ArkWriter(tmp_path / "dump" / "feats.1.ark") as writer:
        for n in range(4):
            path = tmp_path / f"{n}.wav"
            soundfile.write(path, np.zeros(8000), 16000)
            reference = writer.write(f"s{n % 2}-{n}", np.zeros((48, 2)))
            rows.append(
                Utterance(
                    id=f"s{n % 2}-{n}",
                    audio=str(path),
                    duration=0.5,
                    text="AB 好",
                    speaker=f"s{n % 2}",
                    features=reference,
                    num_frames=48,
                )
            )
    datadir.write(tmp_path / "set", rows)
    return tmp_path / "set"


def faults(folder: Path) -> list[str]:
    return [str(problem) for problem in datadir.check(folder) if problem.kind != "note"]


def change(name: str, old: str, new: str):
    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return apply


def without_the_last_line_break(folder: Path) -> None:
    (folder / "text").write_text((folder / "text").read_text()[:-1])


def with_segments(folder: Path) -> None:
    (folder / "segments").write_text(
        "".join(f"s{n % 2}-{n} s{n % 2}-{n} 0 0.5\n" for n in (0, 2, 1, 3))
    )


def with_wrong_segments(folder: Path) -> None:
    with_segments(folder)
    change("utt2dur", " 0.5", " 1.5")(folder)


def without_utt2spk(folder: Path) -> None:
    (folder / "utt2spk").unlink()


def without_one_archive(folder: Path) -> None:
    change("feats.scp", "feats.1.ark", "feats.2.ark")(folder)


FAULTS = {
    "wide space": (
        change("text", "AB 好", "AB\u3000好"),
        "text:1: 1 line with white space other than a plain space",
    ),
    "fixed space": (
        change("text", "AB 好", "AB\u00a0好"),
        "1 line with white space other than a plain space",
    ),
    "hidden": (
        change("text", "AB", "A\u200bB"),
        "text:1: 1 line with invisible characters",
    ),
    "control": (change("text", "AB", "A\x07B"), r"1 line with invisible characters \(U\+0007\)"),
    "selector": (change("text", "AB", "A\ufe0fB"), r"invisible characters \(U\+FE0F\)"),
    "joiner": (change("text", "AB", "A\u200dB"), r"invisible characters \(U\+200D\)"),
    "last line": (
        without_the_last_line_break,
        "text:4: the last line has no line break; .*--fix` adds it",
    ),
    "segments": (
        with_wrong_segments,
        "utt2dur:1: 1 utterance whose duration differs from the segment's.*removes the file",
    ),
    "no utt2spk": (without_utt2spk, "utt2spk is missing, only spk2utt exists; .* makes it"),
    "features": (
        without_one_archive,
        r"feats.scp:1: 1 utterance whose features do not exist, " r"first .*feats.2.ark",
    ),
}
BY_HAND = {
    "mark": (
        change("text", "AB 好", "<s> AB"),
        "1 line with a reserved word such as <s>.*; remove it from the text",
    ),
    "number": (change("text", "AB 好", "AB #0"), "1 line with a reserved word such as"),
}


@pytest.mark.parametrize("what", [*FAULTS, *BY_HAND])
def test_each_fault_is_found(made: Path, what: str) -> None:
    assert faults(made) == [] and checks.faultless(made) is not None
    damage, message = (FAULTS | BY_HAND)[what]
    damage(made)
    assert checks.faultless(made) is None
    found = faults(made)
    assert len(found) == 1
    assert re.search(message, found[0]), found


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_is_mended(made: Path, what: str) -> None:
    FAULTS[what][0](made)
    report = datadir.fix(made)
    assert faults(made) == [], str(report)
    assert report.changed and report.kept == (3 if what == "features" else 4)
    texts = [row.text for row in datadir.read(made)]
    assert texts == ["AB 好"] * report.kept
    assert {row.speaker for row in datadir.read(made)} == {"s0", "s1"}


def test_characters_that_languages_need_are_left_alone(made: Path) -> None:
    change("text", "AB 好", "می\u200cخواهم क्\u200dष ÄÖ ñ 𠮷")(made)
    assert faults(made) == []


def test_accents_are_written_in_one_way(made: Path) -> None:
    change("text", "AB", "e\u0301")(made)
    assert faults(made) == []  # all of them apart
    change("text", "AB", "\u00e9")(made)
    assert checks.faultless(made) is None
    found = faults(made)
    assert len(found) == 1 and "text:1: 1 line with accents apart from their letters" in found[0]
    datadir.fix(made)
    assert faults(made) == []
    assert sorted(row.text for row in datadir.read(made)) == ["AB 好"] * 2 + ["\u00e9 好"] * 2


def test_lost_characters_are_a_note(made: Path) -> None:
    change("text", "AB", "A\ufffd")(made)
    assert any("text:1: 1 line with U+FFFD" in note for note in notes(made))


def notes(folder: Path) -> list[str]:
    found = datadir.check(folder)
    assert all(problem.kind == "note" for problem in found)
    return [str(problem) for problem in found]


def test_notes_are_the_same_from_both_checks(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change("utt2spk", "s1-1 s1", "s1-1 a")(made)
    change("text", "s0-2 AB 好", "s0-2")(made)
    change("wav.scp", "1.wav", "0.wav")(made)
    (made / "spk2utt").unlink()
    (made / "feats.scp").unlink()
    quick = notes(made)
    assert len(quick) == 3
    assert "1 utterance with an empty transcript" in quick[0] and "(s0-2)" in quick[0]
    assert (
        "not sorted by speaker" in quick[1] and "1 line with the same audio as another" in quick[2]
    )
    with_segments(made)
    change("segments", "s0-2 s0-2", "s0-2 s0-0")(made)
    segmented = notes(made)
    assert "1 recording without a line in segments (s0-2)" in segmented[3]
    monkeypatch.setattr(checks, "faultless", lambda folder, base: None)
    assert notes(made) == segmented
    (made / "segments").unlink()
    assert notes(made) == quick


def test_the_quick_check_takes_any_folder_that_is_valid(made: Path) -> None:
    with_segments(made)
    (made / "reco2dur").write_text("".join(f"s{n % 2}-{n} 0.5\n" for n in (0, 2, 1, 3)))
    (made / "utt2accent").write_text("s1-3 north\n")
    (made / "spk2gender").write_text("s0 f\n")
    assert checks.faultless(made) == []


@pytest.mark.parametrize(
    "damage",
    [
        change("spk2utt", " s0-2", ""),
        change("spk2utt", "s1 s1-1 s1-3\n", ""),
        change("spk2utt", "s0-2", "s0-9"),
        change("wav.scp", "2.wav", "7.wav"),
        change("text", "s0-2", "s0-3"),
        change("utt2dur", "0.5", "-1"),
        change("utt2spk", "s0-2 s0\n", ""),
    ],
)
def test_the_quick_check_overlooks_nothing(made: Path, damage) -> None:
    damage(made)
    assert checks.faultless(made) is None and faults(made)


def test_segments_beyond_their_recording_are_no_quick_success(made: Path) -> None:
    with_segments(made)
    (made / "utt2dur").unlink()
    assert checks.faultless(made) == []
    change("segments", "s1-3 0 0.5", "s1-3 0 0.6")(made)
    assert checks.faultless(made) is None


def test_a_listing_knows_files_from_folders_and_follows_links(tmp_path: Path) -> None:
    for n in range(2 * ASKED):
        (tmp_path / f"{n}.wav").touch()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "1.wav")
    (tmp_path / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    listing = Listing(tmp_path)
    for _ in range(2):  # asked one by one, then from the listing
        names = [
            *(f"{n}.wav" for n in range(2 * ASKED)),
            "link.wav",
            str(tmp_path / "3.wav"),
            "x/../3.wav",
        ]
        assert [name for name in names if name not in listing] == ["x/../3.wav"]
        assert not [
            name for name in ("folder.wav", "broken.wav", "99.wav", "x/3.wav") if name in listing
        ]
