"""Stage 0 of the Mandarin corpora: sets, texts, labels and segments; and real recordings."""

from __future__ import annotations

import logging
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import corpus
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.types import Utterance
from tests.recipes.preparation import load, prepare, real
from tests.recipes.trees import SENTENCES, Tree, aishell1, aishell2, kespeech, ramc, read_speech


def rows(tree: Tree, out: Path, name: str, *options: str) -> list[Utterance]:
    prepare(tree.recipe, tree.folder, out, *tree.options, *options)
    return datadir.read(out / name)


NORMALISED = ["今天天气很好", "我们去公园", "他说OK", "价格上涨了", "你好世界", "明天再见"]


# -- AISHELL-1 -------------------------------------------------------------------


def test_aishell1_texts_have_no_spaces_no_full_width_and_upper_case_letters(tmp_path: Path) -> None:
    found = rows(aishell1(tmp_path / "corpus"), tmp_path / "out", "train")
    assert [row.text for row in found if row.speaker == "S0002"] == NORMALISED
    assert {row.speaker: row.labels for row in found} == {
        "S0002": {"gender": "f"},
        "S0003": {"gender": "m"},
    }


def test_aishell1_names_an_archive_of_a_speaker_that_is_still_packed(tmp_path: Path) -> None:
    tree = aishell1(tmp_path / "corpus")
    packed = tree.folder / "data_aishell" / "wav" / "S0003.tar.gz"
    packed.touch()
    rows(tree, tmp_path / "out", "train")  # its folder is there
    shutil.rmtree(packed.with_name("train") / "S0003")
    with pytest.raises(
        UserError,
        match=rf"{packed} is not unpacked: expected .*/S0003; " r"`local/download_data",
    ):
        rows(tree, tmp_path / "other", "train")


@pytest.mark.parametrize(
    ("count", "said"), [(104765, "test: 104765 characters, as"), (104764, "104764 characters, off")]
)
def test_aishell1_knows_the_characters_of_the_official_test_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
    count: int,
    said: str,
) -> None:
    module = load("aishell1", "prepare_data")
    rows = [
        Utterance(
            id=f"a{n}",
            audio="a.wav",
            duration=0,
            text="一" * 14 + "二 " * (n == 0) * (count - 7176 * 14),
            speaker="a",
        )
        for n in range(7176)
    ]
    monkeypatch.setattr(corpus, "measured", lambda rows: corpus.CorpusSet(rows, []))
    module.build("test", rows, [], {}, miniature=False)
    assert said in log.text


def test_recordings_without_a_text_are_listed_beside_their_set(tmp_path: Path) -> None:
    tree = aishell1(tmp_path / "corpus")
    lines = tree.transcript.read_text(encoding="utf-8").splitlines()
    tree.write(
        tree.transcript,
        [line for line in lines if not line.startswith(("BAC009S0724W0121", "BAC009S0764W0122"))],
    )
    rows(tree, tmp_path / "out", "train")
    for name, key in (("dev", "BAC009S0724W0121"), ("test", "BAC009S0764W0122")):
        assert (tmp_path / "out" / name / corpus.SKIPPED).read_text().startswith(f"{key}: ")
    assert not (tmp_path / "out" / "train" / corpus.SKIPPED).exists()


def test_real_mandarin_has_the_counts_of_its_description(tmp_path: Path) -> None:
    prepare("aishell1", real("aishell_mini"), tmp_path)
    counts, characters = {}, {}
    for name in ("train", "dev", "test", "test_spk"):
        found = datadir.read(tmp_path / name)
        hours = round(sum(row.duration for row in found) / 3600, 2)
        counts[name] = (len(found), len({row.speaker for row in found}), hours)
        characters[name] = Counter("".join(row.text for row in found))
        assert not [
            problem for problem in datadir.check(tmp_path / name) if problem.kind == "error"
        ]
    assert counts == {
        "train": (735, 2, 0.85),
        "dev": (54, 2, 0.07),
        "test": (72, 2, 0.1),
        "test_spk": (15, 15, 0.02),
    }
    assert len(characters["train"]) == 1364  # with the space
    unknown = {
        name: round(
            100
            * sum(count for key, count in own.items() if key not in characters["train"])
            / own.total(),
            1,
        )
        for name, own in characters.items()
    }
    assert unknown == {"train": 0.0, "dev": 6.0, "test": 4.5, "test_spk": 6.4}
    assert (tmp_path / "test_sets").read_text() == "test test_spk\n"


def test_the_official_tree_of_real_mandarin_has_the_same_utterances(tmp_path: Path) -> None:
    prepare("aishell1", real("aishell_mini") / "audio", tmp_path / "tree")
    prepare("aishell1", real("aishell_mini"), tmp_path / "sets")
    for name in ("train", "dev", "test"):
        tree, sets = (
            {row.id: row for row in datadir.read(tmp_path / kind / name)}
            for kind in ("tree", "sets")
        )
        assert tree.keys() == sets.keys()
        assert all(
            row.audio == sets[key].audio and row.speaker == sets[key].speaker
            for key, row in tree.items()
        )
        assert all(abs(row.duration - sets[key].duration) < 1e-3 for key, row in tree.items())
        if name != "train":  # which has letters and punctuation
            assert all(row.text == sets[key].text for key, row in tree.items())
    assert (tmp_path / "tree" / "test_sets").read_text() == "test\n"


# -- AISHELL-2 -------------------------------------------------------------------


def test_aishell2_has_a_test_set_of_each_channel_and_speakers_by_folder(tmp_path: Path) -> None:
    found = rows(aishell2(tmp_path / "corpus"), tmp_path / "out", "train")
    assert [(row.text, row.speaker) for row in found] == [(text, "C0001") for text in NORMALISED]
    assert (tmp_path / "out" / "test_sets").read_text() == "test_ios test_android test_mic\n"


@pytest.mark.parametrize("place", ["AISHELL-2/AISHELL-DEV-TEST-SET", "AISHELL-2"])
def test_aishell2_held_out_sets_may_lie_elsewhere_and_channels_be_missing(
    tmp_path: Path, log: pytest.LogCaptureFixture, place: str
) -> None:
    tree = aishell2(tmp_path / "corpus")
    held_out = tree.folder / "AISHELL-DEV-TEST-SET"
    shutil.rmtree(held_out / "Mic")
    for path in sorted(held_out.glob("*/*")):
        goal = tree.folder / place / path.relative_to(held_out)
        goal.parent.mkdir(parents=True, exist_ok=True)
        path.rename(goal)
    assert len(rows(tree, tmp_path / "out", "dev")) == len(SENTENCES)
    assert (tmp_path / "out" / "test_sets").read_text() == "test_ios test_android\n"
    assert re.search(
        r"there is no .*/AISHELL-DEV-TEST-SET/Mic/test; continuing without this test set",
        log.text,
    )


def test_aishell2_names_the_channel_that_is_still_packed(tmp_path: Path) -> None:
    tree = aishell2(tmp_path / "corpus")
    place = tree.folder / "AISHELL-DEV-TEST-SET" / "iOS" / "test"
    shutil.rmtree(place)
    place.with_name("test.tar.gz").touch()
    with pytest.raises(
        UserError,
        match=rf"there is no {place}/wav.scp; {place}\.tar\.gz " r"must be unpacked first",
    ):
        rows(tree, tmp_path / "out", "train")


def test_aishell2_has_a_subset_of_100_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        corpus, "subset", lambda found, hours: asked.append(hours) or list(found)[:2]
    )
    assert (
        len(
            rows(
                aishell2(tmp_path / "corpus"),
                tmp_path / "out",
                "train_100",
                "--train-set",
                "train_100",
            )
        )
        == 2
    )
    assert asked == [100.0]


# -- KeSpeech --------------------------------------------------------------------


def test_kespeech_joins_phases_and_labels(tmp_path: Path) -> None:
    tree = kespeech(tmp_path / "corpus")
    first, *_ = found = rows(tree, tmp_path / "out", "train")
    speaker = {"gender": "Female", "age": "24", "city": "Lanzhou"}
    assert first.labels == {
        "subdialect": "Mandarin",
        "phase": "phase1",
        "style": "Dialect",
        **speaker,
    }
    assert Counter(row.labels["phase"] for row in found) == {"phase1": 6, "phase2": 6}
    assert {row.labels["env"] for row in found if "env" in row.labels} == {"noisy"}
    assert [row.text for row in found[:6]] == NORMALISED  # without <SPOKEN_NOISE>
    for phase in ("phase1", "phase2"):
        name = f"train_{phase}"
        assert {
            row.labels["phase"] for row in rows(tree, tmp_path / "out", name, "--train-set", name)
        } == {phase}


def test_kespeech_leaves_out_what_is_no_speech_or_has_no_speaker(tmp_path: Path) -> None:
    tree = kespeech(tmp_path / "corpus")
    text, speakers = tree.transcript, tree.transcript.with_name("utt2spk")
    lines = text.read_text(encoding="utf-8").splitlines()
    tree.write(text, [f"{lines[0]}<MUSIC>", *lines[1:]])
    tree.write(
        speakers,
        [
            line
            for line in speakers.read_text().splitlines()
            if not line.startswith(lines[1].split()[0])
        ],
    )
    assert len(rows(tree, tmp_path / "out", "train")) == 10
    said = (tmp_path / "out" / "train" / corpus.SKIPPED).read_text()
    assert "is not only speech" in said
    assert "has no line in" in said


def test_kespeech_names_unknown_subdialects_and_goes_on_without_metadata(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    tree = kespeech(tmp_path / "corpus")
    path = tree.transcript.with_name("utt2subdialect")
    path.write_text(path.read_text().replace("Beijing", "Wu"))
    metadata = tree.folder / "KeSpeech" / "Metadata"
    (metadata / "spk2age").unlink()
    assert "age" not in rows(tree, tmp_path / "out", "train")[0].labels
    assert "subdialects that are not KeSpeech's: Wu" in log.text
    assert f"there is no {metadata / 'spk2age'}; continuing without these labels" in log.text


# -- MagicData -------------------------------------------------------------------


def test_ramc_lines_are_segments_without_tags_nobody_and_what_is_unclear(tmp_path: Path) -> None:
    found = rows(ramc(tmp_path / "corpus"), tmp_path / "out", "test")
    first = next(row for row in found if row.start == 0.125)
    assert first.id == "G00000108-CTS-CN-F2F-2019-11-15-108-0000125-0002500"
    assert (first.duration, first.text, first.recording) == (
        2.375,
        "今天天气很好嗯",
        "CTS-CN-F2F-2019-11-15-108",
    )
    assert first.labels == {
        "gender": "f",
        "accent": "普通话",
        "region": "Sichuan",
        "city": "Chengdu",
    }
    assert len(found) == 4
    said = (tmp_path / "out" / "test" / corpus.SKIPPED).read_text()
    assert "'[LAUGHTER]' contains no words" in said
    assert "marked as unintelligible ([*])" in said
    assert "G00000000" not in said


def test_ramc_segments_beyond_the_recording_are_left_out(tmp_path: Path) -> None:
    tree = ramc(tmp_path / "corpus")
    for path, seconds in ((tree.audio[0], 5), (tree.audio[1], 5)):
        soundfile.write(path, np.zeros((16000 * seconds, 2)), 16000)
    found = rows(tree, tmp_path / "out", "train")
    assert len(found) == 4 * 4 + 2 * 1
    assert (
        "is outside the recording, which is 5.000 s long"
        in (tmp_path / "out/train" / corpus.SKIPPED).read_text()
    )
    stereo = next(row for row in found if row.recording == tree.audio[0].stem)
    assert stereo.audio == f"sox {tree.audio[0]} -t wav - remix - |"


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "DataPartition/dev.tsv",
            "CTS-CN-F2F-2019-11-15-101.wav\t1",
            "dev.tsv: .*-101 is also in train.tsv; remove one",
        ),
        (
            "DataPartition/dev.tsv",
            "CTS-CN-F2F-2019-11-15-107.wav\t1",
            "dev.tsv: .*-107 occurs twice; remove one",
        ),
        (
            "DataPartition/dev.tsv",
            "CTS-CN-F2F-2019-11-15-999.wav\t1",
            "there is no .*/TXT/CTS-CN-F2F-2019-11-15-999.txt",
        ),
        ("DataPartition/dev.tsv", "README", "expected a folder in the first line, then"),
        (
            "MDT2021S003/TXT/CTS-CN-F2F-2019-11-15-107.txt",
            "[1,2] text",
            r"107.txt:8: expected '\[start,end\] speaker",
        ),
    ],
)
def test_ramc_files_that_contradict_each_other_are_named(
    tmp_path: Path, name: str, line: str, said: str
) -> None:
    tree = ramc(tmp_path / "corpus")
    path = tree.folder / "MagicData-RAMC" / name
    tree.write(path, [*path.read_text(encoding="utf-8").splitlines(), line])
    with pytest.raises(UserError, match=said):
        rows(tree, tmp_path / "out", "train")


def test_ramc_counts_are_compared_with_the_official_ones(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    tree = ramc(tmp_path / "corpus")
    rows(tree, tmp_path / "out", "train")
    assert "train: 6 dialogues, 12 speakers, officially 289 and 556" in log.text
    log.clear()
    (tree.folder / "MagicData-RAMC" / "mini_corpus.json").touch()
    rows(tree, tmp_path / "mini", "train")
    assert not [
        record
        for record in log.records
        if record.levelno >= logging.WARNING and "officially" in record.message
    ]


def test_read_speech_has_no_header_no_tags_and_no_broken_utterances(tmp_path: Path) -> None:
    tree = read_speech(tmp_path / "corpus")
    broken = "16_4013_20170819121429"
    shutil.copy(tree.audio[0], tree.audio[0].with_name(f"{broken}.wav"))
    with open(tree.transcript, "a", encoding="utf-8") as file:
        file.write(f"{broken}.wav\t16_4013\t别的话\n")
    found = rows(tree, tmp_path / "out", "train")
    assert [row.text for row in found] == NORMALISED
    assert {row.speaker for row in found} == {"5_3039"}
    assert found[0].labels == {"gender": "f", "region": "yun nan"}
