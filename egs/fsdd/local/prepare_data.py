#!/usr/bin/env python
"""Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) -> connected
digits.

Joins recordings of one speaker into strings of 1 to 7 digits with natural pauses. Speaker theo, whose accent
(USA/neutral) stays in training with jackson, is held out of everything as `test_speaker`; `test` is the official
part, recordings 0 to 4 of each digit, of the other five; `dev` is 5 to 9. --corpus holds
recordings/<digit>_<speaker>_<index>.wav (8 kHz), or prepared sets with ids <speaker>-<digit>-<index>.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import soundfile

from asrtool.data import audio, corpus
from asrtool.types import Utterance

WORDS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
HELD_OUT = "theo"
ACCENTS = {
    "jackson": "USA/neutral",
    "theo": "USA/neutral",
    "nicolas": "BEL/French",
    "yweweler": "DEU/German",
    "lucas": "DEU/German",
    "george": "GRC/Greek",
}
OFFICIAL = re.compile(r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<index>\d+)")
PREPARED = re.compile(r"(?P<speaker>\w+)-(?P<digit>\d)-(?P<index>\d+)")
PASSES = {
    "train": 8,
    "dev": 4,
    "test": 4,
    "test_speaker": 2,
}  # how often each recording is used, in another string each time
RATE = 16000

Recording = tuple[str, int, int]  # speaker, digit, index


def main() -> None:
    args = corpus.parser(__doc__).parse_args()
    recordings = find(args.corpus)
    sets: dict[str, dict[Recording, Path]] = {name: {} for name in PASSES}
    for (speaker, digit, index), path in sorted(recordings.items()):
        name = "test_speaker" if speaker == HELD_OUT else "test" if index < 5 else "dev" if index < 10 else "train"
        sets[name][speaker, digit, index] = path
    files = sorted(f"{'-'.join(map(str, key))} {path.stat().st_size}" for key, path in recordings.items())
    for name, members in sets.items():
        if not members:
            raise corpus.CorpusError(f"'{args.corpus}' has no recording for the set '{name}'; is the corpus complete?")
        corpus.write_set(
            args.out / name,
            lambda target, name=name, members=members: join(name, members, target, args.out / name),
            options={"passes": PASSES[name], "files": files},
        )
    corpus.write_test_sets(args.out, ["test", "test_speaker"])


def find(folder: Path) -> dict[Recording, Path]:
    prepared = corpus.prepared_sets(folder)
    pattern = PREPARED if prepared else OFFICIAL
    root = folder if prepared else corpus.folder(folder, "recordings", "free-spoken-digit-dataset/recordings")
    found = {}
    for name, path in corpus.audio_by_id(root).items():
        match = pattern.fullmatch(name)
        if match is None:
            raise corpus.CorpusError(f"{path}: expected a name like {'theo-7-12' if prepared else '7_theo_12.wav'}")
        found[match["speaker"], int(match["digit"]), int(match["index"])] = path
    return found


def join(name: str, members: dict[Recording, Path], target: Path, final: Path) -> list[Utterance]:
    """Every recording once in each pass, dealt into strings of one speaker; written to <target>/audio as 16 kHz
    FLAC."""
    (target / "audio").mkdir()
    clips = {key: audio.read(str(path), rate=RATE) for key, path in members.items()}
    utterances = []
    for speaker in sorted({key[0] for key in members}):
        draw = random.Random(f"fsdd {name} {speaker}")
        number = 0
        for _ in range(PASSES[name]):
            deck = sorted(key for key in members if key[0] == speaker)
            draw.shuffle(deck)
            while deck:
                chosen = [deck.pop() for _ in range(min(draw.randint(1, 7), len(deck)))]
                identity = f"{speaker}-{name}-{number:04d}"
                samples = string([clips[key] for key in chosen], draw)
                soundfile.write(target / "audio" / f"{identity}.flac", samples, RATE, subtype="PCM_16")
                utterances.append(
                    Utterance(
                        id=identity,
                        audio=str((final / "audio" / f"{identity}.flac").resolve()),
                        duration=len(samples) / RATE,
                        text=" ".join(WORDS[digit] for _, digit, _ in chosen),
                        speaker=speaker,
                        labels={"accent": ACCENTS.get(speaker, "unknown")},
                    )
                )
                number += 1
    return utterances


def string(clips: list[np.ndarray], draw: random.Random) -> np.ndarray:
    """Clips with pauses around them: mostly 30 to 150 ms, now and then a hesitation of up to half a second; the
    pauses hold faint noise."""
    noise = np.random.default_rng(draw.getrandbits(32))
    level = 0.5 * min(float(np.sqrt(np.mean(clip[: RATE // 100] ** 2))) for clip in clips) + 1e-4

    def pause(low: float, high: float) -> np.ndarray:
        return (level * noise.standard_normal(int(draw.uniform(low, high) * RATE))).astype(np.float32)

    parts = [pause(0.05, 0.3)]
    for clip in clips:
        long = draw.random() < 0.1
        parts += [clip, pause(0.15, 0.5) if long else pause(0.03, 0.15)]
    parts.append(pause(0.05, 0.2))
    return np.concatenate(parts).clip(-1.0, 1.0)


corpus.run(main)
