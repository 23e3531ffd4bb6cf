#!/usr/bin/env python
"""Noise, music and rooms -> data directories noise_train, noise_eval and room_train.

noise_train and noise_eval have empty texts. They are for data.augment and the report of insertions,
room_train is for data.augment.room.

--corpus is MUSAN (https://www.openslr.org/17: musan/{noise,music}/**/*.wav), or a folder of data
directories {train,eval}/wav.scp, whose paths may be relative to it. MUSAN's music is used only if
ANNOTATIONS marks it as without vocals: the transcript of a song is not empty. --rooms is
RIRS_NOISES (https://www.openslr.org/28): its simulated small and medium rooms become room_train,
and its point-source noises are added to those of MUSAN (or are all noises, without --corpus),
except for files with the name of a file in MUSAN, which are copies. noise_eval has a tenth of the
files, selected by a hash of their names. Without both options, noises are synthesised: white, pink
and brown noise, hum, clicks and silence.
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
ROOMS = ("smallroom", "mediumroom")  # simulated rooms to use, as in Kaldi's recipes
ANNOTATIONS = "ANNOTATIONS"  # in MUSAN's music folders: id, genres, vocals (Y or N), musician


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--corpus", type=Path, help="folder of MUSAN, or of data directories train and eval"
    )
    options.add_argument("--rooms", type=Path, help="folder of RIRS_NOISES")
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write the data directories into"
    )
    args = options.parse_args()
    rooms = None if args.rooms is None else inside(args.rooms, "RIRS_NOISES")
    if args.corpus is not None and (args.corpus / "train" / "wav.scp").exists():
        sets = {
            f"noise_{part}": corpus.Source(
                lambda _, part=part: without_text(read(args.corpus / part)), [args.corpus / part]
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
    """The subfolder `name` if there is one, else the folder itself."""
    return folder / name if (folder / name).is_dir() else folder


def recorded(musan: Path | None, rooms: Path | None) -> dict[str, corpus.Source]:
    """noise_train and noise_eval from MUSAN, point-source noises, or both."""
    files, vocal = ([], {}) if musan is None else noises_of(musan)
    if rooms is not None:
        known = {path.name for path in files}
        files += [
            path
            for path in sorted((rooms / "pointsource_noises").glob("*.wav"))
            if path.name not in known
        ]
    if not files:
        raise UserError(
            f"'{rooms}' contains no pointsource_noises/*.wav"
            if musan is None
            else f"'{musan}' contains neither noise/ and music/ of MUSAN nor train/wav.scp"
        )
    folders = [path for path in (musan, rooms) if path is not None]

    def build(held_out: bool) -> corpus.CorpusSet:
        noises = measured({path.stem: path for path in files if is_held_out(path) == held_out})
        left_out = [why for path, why in vocal.items() if is_held_out(path) == held_out]
        return corpus.CorpusSet(noises.utterances, noises.left_out + left_out)

    names = {"noise_train": False, "noise_eval": True}
    return {
        name: corpus.Source(
            lambda _, held_out=held_out: build(held_out), [Path(__file__), *folders]
        )
        for name, held_out in names.items()
    }


def is_held_out(path: Path) -> bool:
    """Whether a noise is in noise_eval; by its name, so MUSAN and RIRS_NOISES agree on copies."""
    return hashlib.sha256(path.name.encode()).digest()[0] < 26


def noises_of(musan: Path) -> tuple[list[Path], dict[Path, str]]:
    """The noises and the music without vocals; for other music, a sentence why it is left out."""
    files, vocal = sorted((musan / "noise").rglob("*.wav")), {}
    has_vocals = {}
    for path in sorted((musan / "music").rglob(ANNOTATIONS)):
        has_vocals |= annotated(path)
    for path in sorted((musan / "music").rglob("*.wav")):
        if has_vocals.get(path.stem) is False:
            files.append(path)
        elif path.stem in has_vocals:
            vocal[path] = f"{path.stem}: has vocals according to {ANNOTATIONS}"
        else:
            vocal[path] = f"{path.stem}: may have vocals, since it is not in {ANNOTATIONS}"
    return files, vocal


def annotated(path: Path) -> dict[str, bool]:
    """Music id -> whether it has vocals, from lines `<id> <genres> <Y or N> <musician>`."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines() if line.split()]
    answers = {
        name: next((word for word in rest if word in ("Y", "N")), None) for name, *rest in lines
    }
    return {name: answer == "Y" for name, answer in answers.items() if answer is not None}


def responses(rooms: Path) -> dict[str, Path]:
    """Id -> impulse response of a simulated room; ids begin with the size, file names do not."""
    paths = {}
    for size in ROOMS:
        folder = rooms / "simulated_rirs" / size
        files = listed(folder / "rir_list", rooms) or sorted(folder.rglob("*.wav"))
        if not files:
            raise UserError(
                f"'{folder}' has no impulse responses (*.wav); --rooms must be the folder "
                "RIRS_NOISES, as downloaded by tools/download_noise.sh"
            )
        paths |= {f"{size}-{path.stem}": path for path in files}
    return paths


def listed(path: Path, rooms: Path) -> list[Path]:
    """The files of a list with lines `--rir-id <id> --room-id <room> <path>`; [] without the list.

    The paths are relative to the parent folder of RIRS_NOISES.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.split()[-1] for line in lines if line.split()]
    return [rooms / Path(name).relative_to(Path(name).parts[0]) for name in names]


def read(folder: Path) -> list[Utterance]:
    """The utterances of a data directory; wav.scp is enough."""
    return prepared.read(folder).utterances


def without_text(utterances: Sequence[Utterance]) -> corpus.CorpusSet:
    return corpus.CorpusSet([replace(row, text="") for row in utterances], [])


def measured(paths: Mapping[str, Path]) -> corpus.CorpusSet:
    """Recordings (id -> path) as utterances with measured durations."""
    rows = [
        Utterance(id=name, audio=str(path.absolute()), duration=0, speaker=name)
        for name, path in paths.items()
    ]
    return corpus.measured(rows)


def synthesised(name: str, folder: Path) -> corpus.CorpusSet:
    """Recordings of 2 to 10 seconds, written to a folder next to the set."""
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
    """(T,) float32 noise of a kind, at a random level."""
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
