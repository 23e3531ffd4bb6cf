"""The tiny miniatures of the Mandarin corpora: official trees, consistent tables, disjoint sets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.unit.tools import mini

pytest.importorskip(
    "espeakng_loader", reason="the miniatures are spoken by espeak-ng: pip install espeakng-loader"
)

TINY = ("--size", "tiny")
READ = ("aishell1", "aishell2", "kespeech", "magicdata_read")
HANZI = re.compile(r"[\u4e00-\u9fff]+")
NINE = {
    "Mandarin",
    "Beijing",
    "Ji-Lu",
    "Jiang-Huai",
    "Jiao-Liao",
    "Lan-Yin",
    "Northeastern",
    "Southwestern",
    "Zhongyuan",
}
RAMC_LINE = re.compile(r"\[(\d+\.\d{3}),(\d+\.\d{3})\]\t(G\d{8})\t(\S+)\t(\S+)")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    for layout in (*READ, "magicdata"):
        mini.made(layout, out, *TINY)
    return out


@pytest.fixture(scope="module")
def texts(corpora: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Corpus -> set -> utterance -> Hanzi."""
    found: dict[str, dict[str, dict[str, str]]] = {name: {} for name in (*READ, "magicdata")}
    for utterance, text in mini.table(
        corpora / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    ).items():
        (audio,) = (corpora / "data_aishell/wav").glob(f"*/{utterance[6:11]}/{utterance}.wav")
        found["aishell1"].setdefault(audio.parts[-3], {})[utterance] = text.replace(" ", "")
    for split in ("data", "dev", "test"):
        folder = (
            corpora / "AISHELL-2/iOS/data"
            if split == "data"
            else corpora / "AISHELL-DEV-TEST-SET/iOS" / split
        )
        found["aishell2"][split] = mini.table(folder / "trans.txt", "\t")
    for folder in (corpora / "KeSpeech/Tasks/ASR").iterdir():
        found["kespeech"][folder.name] = mini.table(folder / "text")
    for split in ("train", "dev", "test"):
        rows = [
            line.split("\t")
            for line in (corpora / f"MAGICDATA/{split}/TRANS.txt").read_text().splitlines()
        ]
        assert rows[0] == ["UtteranceID", "SpeakerID", "Transcription"]
        found["magicdata_read"][split] = {
            name: text.replace("。", "") for name, _, text in rows[1:]
        }
        for file, lines in transcripts(corpora, split).items():
            said = ((start, HANZI.search(text)) for start, _, _, _, text in lines)
            part = {f"{file} {start}": text[0] for start, text in said if text}
            found["magicdata"].setdefault(split, {}).update(part)
    return found


def transcripts(corpora: Path, split: str) -> dict[str, list[tuple[float, float, str, str, str]]]:
    """Recording -> lines (start, end, speaker, gender and accent, text) of MagicData-RAMC."""
    root, found = corpora / "MagicData-RAMC", {}
    folder, *rows = (root / "DataPartition" / f"{split}.tsv").read_text().splitlines()
    for row in rows:
        name = Path(row.split("\t")[0])
        assert int(row.split("\t")[1]) == soundfile.info(root / folder / name).frames
        lines = (root / "MDT2021S003/TXT" / name.with_suffix(".txt")).read_text().splitlines()
        cells = [RAMC_LINE.fullmatch(line).groups() for line in lines]
        found[str(name)] = [(float(start), float(end), *rest) for start, end, *rest in cells]
    return found


def test_the_sets_are_the_official_ones(texts) -> None:
    assert (
        set(texts["aishell1"])
        == set(texts["magicdata"])
        == set(texts["magicdata_read"])
        == {"train", "dev", "test"}
    )
    assert set(texts["kespeech"]) == {
        "train_phase1",
        "train_phase2",
        "dev_phase1",
        "dev_phase2",
        "test",
    }


def test_no_sentence_is_in_two_sets_and_each_is_hanzi(texts) -> None:
    for layout, sets in texts.items():
        sentences = [text for part in sets.values() for text in part.values()]
        assert len(sentences) == len(set(sentences)), layout
        assert all(HANZI.fullmatch(text) and 4 <= len(text) <= 25 for text in sentences), layout


def test_held_out_characters_all_occur_in_training(texts) -> None:
    for layout, sets in texts.items():
        training = (part for name, part in sets.items() if name.startswith(("train", "data")))
        known = set("".join(text for part in training for text in part.values()))
        assert set("".join(text for part in sets.values() for text in part.values())) == known, (
            layout
        )


def test_every_recording_is_16_khz_mono_neither_clipped_nor_silent(corpora) -> None:
    files = list(corpora.rglob("*.wav"))
    assert len(files) == 52 + 76 + 108 + 52 + 4
    for file in files:
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (
            16000,
            1,
            "PCM_16",
            "WAV",
        )
        samples, _ = soundfile.read(file, dtype="float64")
        assert 0.8 < samples.size / 16000 < (120 if "RAMC" in str(file) else 8), file
        assert np.abs(samples).max() < 0.96
        assert -45 < 10 * np.log10(np.mean(samples**2)) < -12
        assert np.mean(samples == 0) < 0.5


def test_aishell1_has_a_line_for_every_file_and_words_between_spaces(corpora) -> None:
    lines = mini.table(corpora / "data_aishell/transcript/aishell_transcript_v0.8.txt")
    files = list((corpora / "data_aishell/wav").glob("*/*/*.wav"))
    assert {file.stem for file in files} == set(lines) and len(files) == len(lines)
    for file in files:
        assert re.fullmatch(r"BAC009(S\d{4})W\d{4}", file.stem)[1] == file.parent.name
    assert all(" " in text for text in lines.values())


def test_aishell2_channels_are_one_reading_through_three_devices(corpora) -> None:
    for split in ("dev", "test"):
        heard = {}
        for channel in ("iOS", "Android", "Mic"):
            folder = corpora / "AISHELL-DEV-TEST-SET" / channel / split
            audio, text = (mini.table(folder / name, "\t") for name in ("wav.scp", "trans.txt"))
            assert audio.keys() == text.keys()
            assert all(path == f"wav/{name[1:6]}/{name}.wav" for name, path in audio.items())
            assert {name[0] for name in audio} == {channel[0].upper()}
            samples = {
                name[1:]: soundfile.read(folder / path, dtype="float64")[0]
                for name, path in audio.items()
            }
            heard[channel] = {
                name: (text[channel[0].upper() + name], signal) for name, signal in samples.items()
            }
        for name, (text, signal) in heard["iOS"].items():
            for channel in ("Android", "Mic"):
                assert heard[channel][name][0] == text
                other = heard[channel][name][1]
                assert signal.size == other.size
                assert 0.5 < np.corrcoef(signal, other)[0, 1] < 0.9999


def test_kespeech_tables_have_the_same_ids_and_paths_that_exist(corpora) -> None:
    root, seen = corpora / "KeSpeech", []
    for folder in (root / "Tasks/ASR").iterdir():
        names = ("wav.scp", "text", "utt2spk", "utt2subdialect")
        audio, text, speakers, accents = (mini.table(folder / name) for name in names)
        assert audio.keys() == text.keys() == speakers.keys() == accents.keys()
        assert all((root / path).is_file() for path in audio.values())
        listed = (line.split() for line in (folder / "spk2utt").read_text().splitlines())
        assert {u: speaker for speaker, *own in listed for u in own} == speakers
        assert set(accents.values()) == ({"Mandarin"} if folder.name.endswith("2") else NINE)
        seen += audio
    assert len(seen) == len(set(seen)) == len(list(root.rglob("*.wav")))
    metadata = root / "Metadata"
    names = ("text", "wav.scp", "utt2style", "utt2subdialect")
    phase1 = {name: mini.table(metadata / f"phase1.{name}") for name in names}
    phase2 = {
        name: mini.table(metadata / f"phase2.{name}") for name in ("text", "wav.scp", "utt2env")
    }
    assert (
        len({frozenset(rows) for rows in phase1.values()})
        == len({frozenset(rows) for rows in phase2.values()})
        == 1
    )
    assert (
        set(phase1["text"]) | set(phase2["text"])
        == set(seen)
        == set(mini.table(metadata / "utt2spk"))
    )
    dialect = {name for name, style in phase1["utt2style"].items() if style == "Dialect"}
    assert dialect == {
        name for name, accent in phase1["utt2subdialect"].items() if accent != "Mandarin"
    }
    for name in ("spk2age", "spk2city", "spk2gender"):
        assert set(mini.table(metadata / name)) == set(mini.table(metadata / "utt2spk").values())


def test_ramc_turns_lie_in_their_recordings_and_tags_are_those_of_the_corpus(corpora) -> None:
    tags, speakers = set(), []
    for split in ("train", "dev", "test"):
        for name, lines in transcripts(corpora, split).items():
            seconds = soundfile.info(corpora / "MagicData-RAMC/MDT2021S003/WAV" / name).duration
            assert all(0 <= start < end <= seconds for start, end, *_ in lines)
            assert [start for start, *_ in lines] == sorted(start for start, *_ in lines)
            speakers += {speaker for _, _, speaker, _, _ in lines if speaker != "G00000000"}
            for _, _, speaker, what, text in lines:
                tags |= set(re.findall(r"\[.*?\]", text))
                assert (
                    (what == "无,无") == (speaker == "G00000000") == (text in ("[ENS]", "[MUSIC]"))
                )
    assert tags <= {"[+]", "[*]", "[LAUGHTER]", "[SONANT]", "[ENS]", "[MUSIC]"}
    assert len(speakers) == len(set(speakers)) == 8
    listed = (corpora / "MagicData-RAMC/MDT2021S003/SPKINFO.txt").read_text().splitlines()[1:]
    assert {line.split("\t")[1] for line in listed} == set(speakers)
    names = sorted(file.name for file in (corpora / "MagicData-RAMC/MDT2021S003/WAV").iterdir())
    order = [split for split in ("test", "train", "dev") for _ in transcripts(corpora, split)]
    assert [split for name in names for split in order if name in transcripts(corpora, split)][
        :1
    ] == ["test"]


def test_conversations_are_the_same_again_with_one_process(corpora, tmp_path) -> None:
    mini.made("magicdata", tmp_path, *TINY, "--nj", "1")
    for file in (corpora / "MagicData-RAMC").rglob("*"):
        if file.is_file():
            assert (tmp_path / file.relative_to(corpora)).read_bytes() == file.read_bytes(), file


def test_a_second_folder_that_is_missing_is_made_again(corpora, tmp_path) -> None:
    shutil.copytree(corpora / "AISHELL-2", tmp_path / "AISHELL-2")
    mini.made("aishell2", tmp_path, *TINY)
    assert (tmp_path / "AISHELL-DEV-TEST-SET/Mic/test/trans.txt").is_file()
    assert "nothing to do" in mini.make("aishell2", tmp_path, *TINY).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["AISHELL-2", "AISHELL-DEV-TEST-SET"]


def test_accents_of_kespeech_are_as_many_and_as_skewed_as_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(mini.TOOLS))
    from mini_corpus import kespeech, plan

    units = kespeech.KeSpeech(accents=20, skew=1.0).plan(plan.SIZES["default"], seed=0)
    speakers = {
        split: [
            accent
            for _, accent in {
                (u.speaker.number, u.speaker.accent) for u in units if u.split == split
            }
        ]
        for split in ("train_phase1", "test")
    }
    counts = [speakers["train_phase1"].count(accent) for accent in kespeech.SUBDIALECTS]
    assert len(counts) == 20 and min(counts) >= 1 and sum(counts) == 96
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 8 * counts[-1]
    assert {speakers["test"].count(accent) for accent in kespeech.SUBDIALECTS} == {1}
    smallest = kespeech.KeSpeech(accents=20).plan(kespeech.KeSpeech.sizes["tiny"], seed=0)
    for split in ("train_phase1", "train_phase2", "dev_phase1", "dev_phase2", "test"):
        assert len({unit.speaker.number for unit in smallest if unit.split == split}) == 20


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        (
            "aishell1",
            ("--accents", "9"),
            "--accents is an option of --layout kespeech, not of --layout aishell1",
        ),
        (
            "kespeech",
            ("--accents", "21"),
            "--accents is 21 and --skew is 0; expected 1 to 20 and 0 to 5",
        ),
        ("kespeech", ("--skew", "nan"), "--skew is nan"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(layout, options, said, tmp_path) -> None:
    finished = mini.make(layout, tmp_path, *TINY, *options)
    assert finished.returncode == 1
    assert said in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_pairs_with_much_to_say_meet_several_times(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(mini.TOOLS))
    from mini_corpus import magicdata, plan

    units = magicdata.MagicData().plan(plan.Size(train=(1500, 4), dev=(6, 2), test=(6, 2)), seed=0)
    training = [talk for talk in units if talk.split == "train"]
    assert [talk.number for talk in training] == list(range(1, len(training) + 1))
    assert max(len(talk.sentences) for talk in training) <= 120
    assert sum(len(talk.sentences) for talk in training) == 1500
    assert len({talk.speakers for talk in training}) == 2
