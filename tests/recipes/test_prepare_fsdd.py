"""Stage 0 of fsdd: sets and digit strings, from noise in the official layout and real digits."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from tests.recipes.preparation import content, load, prepare, real

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
# of each digit: a fraction, the rule is in its ends
INDICES = {"test": (0, 4), "dev": (5, 9), "train": (10, 49)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout with 6 of the 50 recordings of each digit, each 0.15 s of noise at 8
    kHz.
    """
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    first = folder / "0_george_0.wav"
    soundfile.write(first, np.random.default_rng(0).normal(0, 0.1, 1200), 8000)
    for speaker in SPEAKERS:
        for digit in range(10):
            for index in sum(INDICES.values(), ()):
                (folder / f"{digit}_{speaker}_{index}.wav").write_bytes(first.read_bytes())
    return folder.parent


@pytest.fixture(scope="module")
def out(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 0 makes of the tree."""
    folder = tmp_path_factory.mktemp("data")
    prepare("fsdd", tree, folder)
    return folder


@pytest.fixture
def damaged(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree that a test may change."""
    return Path(shutil.copytree(tree, tmp_path / "copy"))


def words(folder: Path) -> Counter[str]:
    return Counter(word for row in datadir.read(folder) for word in row.text.split())


def test_the_sets_are_sound_divided_by_the_rule_and_use_every_recording_equally_often(
    out: Path,
) -> None:
    expected = {
        "train": 4 * 5 * 2,
        "dev": 4 * 5 * 2,
        "test": 4 * 5 * 2,
        "test_speaker": 2 * 6,
    }  # passes, speakers, indices
    for name, count in expected.items():
        assert not datadir.check(out / name)
        assert set(words(out / name).values()) == {count}
        speakers = {row.speaker for row in datadir.read(out / name)}
        assert speakers == ({"theo"} if name == "test_speaker" else set(SPEAKERS) - {"theo"})
    assert (out / "test_sets").read_text() == "test test_speaker\n"


def test_the_audio_is_what_the_data_directory_says_and_lies_at_its_final_place(out: Path) -> None:
    for row in datadir.read(out / "test"):
        info = soundfile.info(row.audio)
        assert Path(row.audio).parent == out / "test" / "audio"
        assert (info.samplerate, info.channels) == (16000, 1)
        assert abs(info.duration - row.duration) < 1e-6  # utt2dur holds microseconds
        # 0.15 s each, of which the cross-fades take 5 ms at both ends
        clips = 0.14 * len(row.text.split())
        assert clips + 0.1 < row.duration < clips + 0.6 + 0.5 * len(row.text.split())


def test_an_unchanged_corpus_is_skipped_and_another_folder_gets_the_same_bytes(
    tree: Path, out: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    prepare("fsdd", tree, out)
    assert log.text.count("is up to date") == 4
    prepare("fsdd", tree, tmp_path)
    first, second = content(out), content(tmp_path)
    assert first.keys() == second.keys()
    differ = {Path(name).name for name in first if first[name] != second[name]}
    assert differ == {"wav.scp", ".stage.json"}  # they say where the audio is


@pytest.mark.parametrize("name", INDICES)
def test_indices_0_to_4_are_the_test_set_5_to_9_the_development_set(
    damaged: Path, tmp_path: Path, name: str
) -> None:
    for path in damaged.rglob("*.wav"):
        if int(path.stem.split("_")[-1]) in INDICES[name]:
            path.unlink()
    with pytest.raises(UserError, match=f"has no recording for the set {name};"):
        prepare("fsdd", damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_unreadable_recordings_are_named_and_the_rest_goes_on(
    damaged: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    empty = damaged / "recordings" / "7_lucas_4.wav"
    empty.write_bytes(b"")
    prepare("fsdd", damaged, tmp_path / "out")
    assert f"'{damaged}' lacks 2640 of 3000 recordings, first 0_george_1" in log.text
    assert (tmp_path / "out/test/skipped.txt").read_text() == (
        f"recording {empty}: the file is empty (0 bytes)\n"
    )
    assert words(tmp_path / "out" / "test")["SEVEN"] == 4 * 9


def test_a_recording_with_another_name_is_refused(damaged: Path, tmp_path: Path) -> None:
    (damaged / "recordings" / "7_lucas_4.wav").rename(damaged / "recordings" / "seven.wav")
    with pytest.raises(UserError, match=r"seven\.wav: expected a name like " r"7_theo_12\.wav"):
        prepare("fsdd", damaged, tmp_path / "out")


def test_a_folder_without_recordings_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has neither a folder recordings/ nor data directories"):
        prepare("fsdd", tmp_path, tmp_path / "out")


def test_groups_use_every_item_once_and_have_one_to_seven_equally_often() -> None:
    group = load("fsdd", "digit_strings").group
    groups = group(range(40000), random.Random(0))
    assert sorted(item for members in groups for item in members) == list(range(40000))
    sizes = Counter(len(members) for members in groups)
    assert set(sizes) == set(range(1, 8))
    # 4 standard deviations of 10,000
    assert all(abs(count / len(groups) - 1 / 7) < 0.015 for count in sizes.values())


def test_pauses_continue_the_background_of_their_neighbours_and_joints_do_not_click() -> None:
    strings = load("fsdd", "digit_strings")
    rng, rate = np.random.default_rng(0), strings.RATE
    hiss = np.fft.irfft(
        np.fft.rfft(rng.normal(0, 1, rate)) * (np.arange(rate // 2 + 1) < 4000)
    )  # no energy above 4 kHz
    hiss *= 0.01 / hiss.std()
    # starts and ends at its peak: abrupt cuts
    tone = 0.3 * np.cos(2 * np.pi * 300 * np.arange(rate) / rate)
    sound = (hiss + np.where(np.abs(np.arange(rate) - rate / 2) < rate / 4, 0, tone)).astype(
        np.float32
    )
    clip = strings.clip(sound, rng)
    power = np.abs(np.fft.rfft(clip.background)) ** 2
    assert power[len(power) // 2 :].sum() < 0.05 * power.sum()
    joined = strings.join([clip, clip, clip], random.Random(0))
    # 40 ms, the shortest pause at the ends is 50 ms
    pauses = joined[: rate // 25], joined[-rate // 25 :]
    assert all(
        0.003 < strings.rms(pause) < 0.02 for pause in pauses
    )  # a 20 ms sample tells the level within 3 dB or so
    assert np.abs(np.diff(joined)).max() <= 1.2 * np.abs(np.diff(sound)).max()


def test_real_digits_come_from_prepared_sets_by_the_rule_of_their_ids(tmp_path: Path) -> None:
    source, part = real("fsdd"), tmp_path / "part"
    wanted = {f"{index:02d}" for indices in INDICES.values() for index in indices}
    for name in ("train", "dev", "test"):
        rows = datadir.read(source / name, base=source)
        datadir.write(part / name, [row for row in rows if row.id.rpartition("-")[2] in wanted])
    prepare("fsdd", part, tmp_path / "out")
    for name, count in {"train": 40, "dev": 40, "test": 40, "test_speaker": 12}.items():
        assert set(words(tmp_path / "out" / name).values()) == {count}
    accents = {
        row.speaker: row.labels["accent"] for row in datadir.read(tmp_path / "out" / "train")
    }
    assert accents == {
        row.speaker: row.labels["accent"]
        for row in datadir.read(part / "train")
        if row.speaker != "theo"
    }
