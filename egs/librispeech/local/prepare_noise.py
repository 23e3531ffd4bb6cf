#!/usr/bin/env python
"""Noise, music and rooms -> data directories noise_train and noise_eval with empty texts, for
data.augment and for the report of insertions, and room_train for data.augment.room.

--corpus is MUSAN (https://www.openslr.org/17: musan/{noise,music}/**/*.wav), or a folder of
prepared sets {train,eval}/wav.scp, whose paths may be relative to it. Of MUSAN's music only files
are taken that its ANNOTATIONS say are without vocals: a song has words, and its transcript is not
empty. --rooms is RIRS_NOISES (https://www.openslr.org/28): its simulated small and medium rooms are
room_train, and its point-source noises join those of MUSAN, or are the noises where there is no
--corpus. Most are MUSAN's own; a file whose name MUSAN has is left out. noise_eval is the tenth of
the files that a hash of their names picks. With neither there are synthesised noises: white, pink
and brown, hum, clicks and silence.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from asrtool.data import corpus, prepared
from asrtool.errors import UserError
from asrtool.types import Utterance

KINDS = ("white", "pink", "brown", "hum", "clicks", "silence")
RATE = 16000
COUNTS = {"noise_train": 60, "noise_eval": 24}  # synthesised recordings
ROOMS = ("smallroom", "mediumroom")  # of the simulated ones, as in Kaldi's recipes
ANNOTATIONS = "ANNOTATIONS"  # of MUSAN's folders of music: id, genres, vocals (Y or N), musician


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--corpus", type=Path, help="folder of MUSAN, or of prepared sets train and eval"
    )
    options.add_argument("--rooms", type=Path, help="folder of RIRS_NOISES")
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write noise_train/ and the others into"
    )
    args = options.parse_args()
    rooms = None if args.rooms is None else inside(args.rooms, "RIRS_NOISES")
    if args.corpus is not None and (args.corpus / "train" / "wav.scp").exists():
        sets = {
            f"noise_{part}": corpus.Source(
                lambda _, part=part: silent(read(args.corpus / part)), [args.corpus / part]
            )
            for part in ("train", "eval")
        }
    elif args.corpus is None and rooms is None:
        sets = {
            name: corpus.Source(
                lambda target, name=name: synthesised(name, args.out / name), [Path(__file__)]
            )
            for name in COUNTS
        }
    else:
        sets = recorded(args.corpus and inside(args.corpus, "musan"), rooms)
    if rooms is not None:
        sets["room_train"] = corpus.Source(lambda _: measured(responses(rooms)), [rooms])
    corpus.write_sets(args.out, sets)


def inside(folder: Path, name: str) -> Path:
    """The folder itself, or the one of that name in it."""
    return folder / name if (folder / name).is_dir() else folder


def recorded(musan: Path | None, rooms: Path | None) -> dict[str, corpus.Source]:
    """noise_train and noise_eval of MUSAN, point-source noises, or both."""
    files, sung = ([], {}) if musan is None else noises_of(musan)
    if rooms is not None:
        known = {path.name for path in files}
        files += [
            path
            for path in sorted((rooms / "pointsource_noises").glob("*.wav"))
            if path.name not in known
        ]
    if not files:
        raise UserError(
            f"'{rooms}' holds no pointsource_noises/*.wav"
            if musan is None
            else f"'{musan}' holds neither noise/ and music/ of MUSAN nor train/wav.scp"
        )
    parts = [place for place in (musan, rooms) if place is not None]

    def build(held: bool) -> corpus.CorpusSet:
        found = measured({path.stem: path for path in files if is_held(path) == held})
        return corpus.CorpusSet(
            found.utterances,
            found.left_out + [why for path, why in sung.items() if is_held(path) == held],
        )

    names = {"noise_train": False, "noise_eval": True}
    return {
        name: corpus.Source(lambda _, held=held: build(held), [Path(__file__), *parts])
        for name, held in names.items()
    }


def is_held(path: Path) -> bool:
    """Whether a noise is kept from training: the same in every corpus that has it."""
    return hashlib.sha256(path.name.encode()).digest()[0] < 26


def noises_of(musan: Path) -> tuple[list[Path], dict[Path, str]]:
    """The noises and the music without vocals; and why other music is left out."""
    files, sung = sorted((musan / "noise").rglob("*.wav")), {}
    vocals = {}
    for path in sorted((musan / "music").rglob(ANNOTATIONS)):
        vocals |= annotated(path)
    for path in sorted((musan / "music").rglob("*.wav")):
        if vocals.get(path.stem) is False:
            files.append(path)
        else:
            why = "has vocals, says" if path.stem in vocals else "may have vocals, it is not in"
            sung[path] = f"{path.stem}: {why} {ANNOTATIONS}"
    return files, sung


def annotated(path: Path) -> dict[str, bool]:
    """Music id -> whether it has vocals, of a file of lines `<id> <genres> <Y or N> <musician>`."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines() if line.split()]
    answers = {
        name: next((word for word in rest if word in ("Y", "N")), None) for name, *rest in lines
    }
    return {name: answer == "Y" for name, answer in answers.items() if answer is not None}


def responses(rooms: Path) -> dict[str, Path]:
    """Impulse responses of the simulated rooms by id; files of different sizes share names."""
    found = {}
    for size in ROOMS:
        folder = rooms / "simulated_rirs" / size
        files = listed(folder / "rir_list", rooms) or sorted(folder.rglob("*.wav"))
        if not files:
            raise UserError(
                f"'{folder}' has no responses (*.wav); --rooms is the folder RIRS_NOISES that "
                "tools/download_noise.sh makes"
            )
        found |= {f"{size}-{path.stem}": path for path in files}
    return found


def listed(path: Path, rooms: Path) -> list[Path]:
    """The files of a list `--rir-id <id> --room-id <room> <path>`, where paths start at the folder
    that holds RIRS_NOISES; [] where there is no list.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.split()[-1] for line in lines if line.split()]
    return [rooms / Path(name).relative_to(Path(name).parts[0]) for name in names]


def read(folder: Path) -> list[Utterance]:
    """A prepared set, which needs no more than wav.scp."""
    return prepared.read(folder).utterances


def silent(utterances: Sequence[Utterance]) -> corpus.CorpusSet:
    return corpus.CorpusSet([replace(row, text="") for row in utterances], [])


def measured(paths: Mapping[str, Path]) -> corpus.CorpusSet:
    """Recordings by id."""
    rows = [
        Utterance(id=name, audio=str(path.absolute()), duration=0, speaker=name)
        for name, path in paths.items()
    ]
    return corpus.measured(rows)


def synthesised(name: str, folder: Path) -> corpus.CorpusSet:
    """Recordings of 2 to 10 seconds, written beside the set."""
    audio = folder.with_name(folder.name + "_audio")
    audio.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(COUNTS[name]):
        kind = KINDS[number % len(KINDS)]
        rng = np.random.default_rng([len(name), number])
        path = audio / f"{name}-{kind}-{number:03}.flac"
        soundfile.write(path, sound(kind, rng), RATE)
        paths.append(path)
    return measured({path.stem: path for path in paths})


def sound(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(T,) float32 of a kind, at a random level."""
    size = int(RATE * rng.uniform(2, 10))
    level = 10 ** (rng.uniform(-45, -15) / 20)
    if kind == "silence":
        return (1e-4 * rng.normal(size=size)).astype(np.float32)
    if kind == "hum":
        times, base = np.arange(size) / RATE, rng.uniform(45, 180)
        wave = sum(
            np.sin(2 * np.pi * base * k * times + rng.uniform(0, 6)) / k for k in range(1, 8)
        )
    elif kind == "clicks":
        wave = rng.normal(size=size) * (rng.random(size) < 0.0008)
        wave = np.convolve(wave, np.exp(-np.arange(400) / rng.uniform(10, 100)), "same")
    else:
        power = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
        spectrum = np.fft.rfft(rng.normal(size=size))
        wave = np.fft.irfft(
            spectrum / np.maximum(np.arange(len(spectrum)) * RATE / size, 30) ** power, size
        )
    return np.clip(wave / max(np.sqrt(np.mean(wave**2)), 1e-9) * level, -1, 1).astype(np.float32)


if __name__ == "__main__":
    corpus.run(main)
