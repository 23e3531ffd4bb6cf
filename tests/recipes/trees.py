"""Tiny official trees of all corpora, with silence as audio, to prepare and to damage."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

SENTENCES = (
    "今天 天气 很 好",
    "我们 去 公园",
    "他 说 ＯＫ",
    "价格 上涨 了",
    "你好，世界",
    "明天 再 见",
)


@dataclass
class Tree:
    """A corpus below `folder`, the value of --corpus."""

    recipe: str
    folder: Path
    transcript: Path  # a file with texts of the training set
    renamed: Path  # a required folder
    options: tuple[str, ...] = ()
    texts: list[Path] = field(default_factory=list)  # all text files
    # of the training set, in the order of their ids
    audio: list[Path] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # utterances of each set

    def record(self, path: Path, seconds: float = 0.2, name: str = "") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(silence(seconds))
        if name:
            self.counts[name] = self.counts.get(name, 0) + 1
            if name == "train":
                self.audio.append(path)
        return path

    def write(self, path: Path, lines: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.texts.append(path)


def silence(seconds: float) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(round(16000 * seconds), dtype="int16"), 16000, format="WAV")
    return stream.getvalue()


def librispeech(folder: Path) -> Tree:
    root = folder / "LibriSpeech"
    tree = Tree(
        "librispeech",
        folder,
        root / "train-clean-100/11/7/11-7.trans.txt",
        root / "train-clean-100",
    )
    parts = {
        "train-clean-100": "train",
        "dev-clean": "dev",
        "test-clean": "test_clean",
        "test-other": "test_other",
    }
    for reader, (part, name) in enumerate(parts.items(), 11):
        place = root / part / str(reader) / "7"
        ids = [f"{reader}-7-{number:04d}" for number in range(6)]
        for key in ids:
            tree.record(place / f"{key}.flac", name=name)
        tree.write(place / f"{reader}-7.trans.txt", [f"{key} THE WORDS OF IT" for key in ids])
    tree.write(
        root / "SPEAKERS.TXT", [";ID |SEX| SUBSET", "11 | F | train-clean-100 | 25.03 | Kay"]
    )
    return tree


def aishell1(folder: Path) -> Tree:
    root = folder / "data_aishell"
    tree = Tree(
        "aishell1", folder, root / "transcript/aishell_transcript_v0.8.txt", root / "wav" / "train"
    )
    lines = []
    for speaker, name in (
        ("S0002", "train"),
        ("S0003", "train"),
        ("S0724", "dev"),
        ("S0764", "test"),
    ):
        for number, text in enumerate(SENTENCES, 121):
            key = f"BAC009{speaker}W{number:04d}"
            tree.record(root / "wav" / name / speaker / f"{key}.wav", name=name)
            lines.append(f"{key} {text}")
    tree.write(tree.transcript, lines)
    tree.write(folder / "resource_aishell" / "speaker.info", ["0002 F", "0003 M"])
    return tree


def aishell2(folder: Path) -> Tree:
    data, held_out = folder / "AISHELL-2" / "iOS" / "data", folder / "AISHELL-DEV-TEST-SET"
    tree = Tree("aishell2", folder, data / "trans.txt", data)
    places = {"train": data, "dev": held_out / "iOS" / "dev"}
    places |= {
        f"test_{channel.lower()}": held_out / channel / "test"
        for channel in ("iOS", "Android", "Mic")
    }
    for name, place in places.items():
        speaker = {"train": "C0001", "dev": "D0012"}.get(name, "T0022")
        ids = [f"I{speaker}W{number:04d}" for number in range(len(SENTENCES))]
        for key in ids:
            tree.record(place / "wav" / speaker / f"{key}.wav", name=name)
        tree.write(place / "wav.scp", [f"{key}\twav/{speaker}/{key}.wav" for key in ids])
        tree.write(
            place / "trans.txt",
            [f"{key}\t{text}" for key, text in zip(ids, SENTENCES, strict=True)],
        )
    return tree


def kespeech(folder: Path) -> Tree:
    root = folder / "KeSpeech"
    tree = Tree(
        "kespeech",
        folder,
        root / "Tasks/ASR/train_phase1/text",
        root / "Tasks" / "ASR" / "dev_phase2",
    )
    styles, environments, speakers = [], [], set()
    for part in ("train_phase1", "train_phase2", "dev_phase1", "dev_phase2", "test"):
        name, _, phase = part.partition("_")
        speaker = f"100{len(part)}{part[-1]}"
        rows = []
        for number, text in enumerate(SENTENCES):
            key = f"{speaker}_{number:04x}{part[:2]}"
            own = phase or ("phase1" if number % 2 else "phase2")
            path = f"Audio/{speaker}/{own}/{key}.wav"
            tree.record(root / path, name=name)
            subdialect = (
                ("Mandarin", "Beijing", "Lan-Yin")[number % 3] if own == "phase1" else "Mandarin"
            )
            rows.append((key, path, text, subdialect))
            (styles if own == "phase1" else environments).append(
                f"{key} {'Dialect' if own == 'phase1' else 'noisy'}"
            )
        speakers.add(speaker)
        place = root / "Tasks" / "ASR" / part
        tree.write(place / "wav.scp", [f"{key} {path}" for key, path, _, _ in rows])
        tree.write(place / "text", [f"{key} {text}<SPOKEN_NOISE>" for key, _, text, _ in rows])
        tree.write(place / "utt2spk", [f"{key} {speaker}" for key, *_ in rows])
        tree.write(
            place / "utt2subdialect", [f"{key} {subdialect}" for key, _, _, subdialect in rows]
        )
    metadata = root / "Metadata"
    tree.write(metadata / "phase1.utt2style", styles)
    tree.write(metadata / "phase2.utt2env", environments)
    for label, value in (("gender", "Female"), ("age", "24"), ("city", "Lanzhou")):
        tree.write(
            metadata / f"spk2{label}", [f"{speaker} {value}" for speaker in sorted(speakers)]
        )
    return tree


def ramc(folder: Path) -> Tree:
    root = folder / "MagicData-RAMC"
    place = root / "MDT2021S003"
    tree = Tree("magicdata", folder, place / "TXT" / "CTS-CN-F2F-2019-11-15-101.txt", place / "WAV")
    speakers, number = [], 100
    for name, count in (("train", 6), ("dev", 1), ("test", 1)):
        partition = ["MDT2021S003/WAV"]
        for _ in range(count):
            number += 1
            key, pair = (
                f"CTS-CN-F2F-2019-11-15-{number}",
                (f"G{number:08d}", f"G{number + 500:08d}"),
            )
            path = tree.record(place / "WAV" / f"{key}.wav", seconds=17)
            if name == "train":
                tree.audio.append(path)
            partition.append(f"{path.name}\t{path.stat().st_size}")
            lines = []
            for turn, text in enumerate(SENTENCES[:4]):
                lines.append(
                    f"[{3 * turn}.125,{3 * turn + 2}.5]\t{pair[turn % 2]}\t女,普通话\t{text}，[+]嗯"
                )
            lines.append("[14.0,15.0]\tG00000000\t无,无\t[ENS]")
            lines.append(f"[15.0,16.0]\t{pair[0]}\t女,普通话\t[LAUGHTER]")
            lines.append(f"[16.0,17.0]\t{pair[0]}\t女,普通话\t我[*]的")
            tree.write(place / "TXT" / f"{key}.txt", lines)
            tree.counts[name] = tree.counts.get(name, 0) + 4
            speakers += [
                f"C0\t{speaker}\tF\tMiddle-aged\tSichuan,Chengdu\tMobile phone" for speaker in pair
            ]
        tree.write(root / "DataPartition" / f"{name}.tsv", partition)
    tree.write(
        place / "SPKINFO.txt", ["CHANNEL\tSPEAKER_ID\tGENDER\tAGE\tREGION,CITY\tDEVICE", *speakers]
    )
    return tree


def read_speech(folder: Path) -> Tree:
    tree = Tree(
        "magicdata", folder, folder / "train" / "TRANS.txt", folder / "dev", ("--kind", "read")
    )
    for name, speaker in (("train", "5_3039"), ("dev", "14_3466"), ("test", "38_5716")):
        ids = [f"{speaker}_20170914{number:06d}" for number in range(len(SENTENCES))]
        for key in ids:
            tree.record(folder / name / speaker / f"{key}.wav", name=name)
        lines = [
            f"{key}.wav\t{speaker}\t[FIL]{text}" for key, text in zip(ids, SENTENCES, strict=True)
        ]
        tree.write(folder / name / "TRANS.txt", ["UtteranceID\tSpeakerID\tTranscription", *lines])
    tree.write(
        folder / "SPKINFO.txt", ["SPKID\tAge\tGender\tDialect", "5_3039\t22\tfemale\tyun nan"]
    )
    return tree


TREES: dict[str, Callable[[Path], Tree]] = {
    "librispeech": librispeech,
    "aishell1": aishell1,
    "aishell2": aishell2,
    "kespeech": kespeech,
    "ramc": ramc,
    "read_speech": read_speech,
}
