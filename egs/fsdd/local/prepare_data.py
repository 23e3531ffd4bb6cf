#!/usr/bin/env python
"""Free Spoken Digit Dataset (CC BY-SA 4.0) -> digit strings: train, dev, test, test_speaker.

https://github.com/Jakobovski/free-spoken-digit-dataset. Concatenates recordings of one speaker into
strings of 1 to 7 digits. `test_speaker` has all recordings of the speaker theo, who is in no other
set (jackson has the same accent, USA/neutral). For the other five speakers, `test` has recordings 0
to 4 of each digit, the official test part, `dev` 5 to 9, and `train` the rest. --corpus contains
recordings/<digit>_<speaker>_<index>.wav, or data directories (see asrtool/data/prepared.py) with
the utterance ids <speaker>-<digit>-<index>.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import digit_strings

from asrtool.data import corpus, prepared, tree
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.types import Utterance

WORDS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
HELD_OUT = "theo"
ACCENTS = {  # as declared by the speakers, in metadata.py of the corpus
    "jackson": "USA/neutral",
    "theo": "USA/neutral",
    "nicolas": "BEL/French",
    "yweweler": "DEU/German",
    "lucas": "DEU/German",
    "george": "GRC/Greek",
}
OFFICIAL = r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)"
PREPARED = r"(?P<speaker>[a-z]+)-(?P<digit>\d)-(?P<index>\d+)"
# how often each recording is used, each time in another string
PASSES = {"train": 4, "dev": 4, "test": 4, "test_speaker": 2}
RECORDINGS = 50  # of each digit by each speaker

Recording = tuple[str, int, int]  # speaker, digit, index


def main() -> None:
    args = corpus.parser(__doc__).parse_args()
    recordings, inputs = find(args.corpus)
    sets: dict[str, dict[Recording, str]] = {name: {} for name in PASSES}
    for (speaker, digit, index), path in sorted(recordings.items()):
        name = (
            "test_speaker"
            if speaker == HELD_OUT
            else "test"
            if index < 5
            else "dev"
            if index < 10
            else "train"
        )
        sets[name][speaker, digit, index] = path
    for name, members in sets.items():
        if not members:
            raise UserError(
                f"'{args.corpus}' has no recording for the set {name}; is the corpus complete?"
            )
    folders = {name: (args.out / name / "audio").absolute() for name in sets}
    corpus.write_sets(
        args.out,
        {
            name: corpus.Source(
                lambda target, name=name, members=members: write_strings(
                    name, members, target, folders[name]
                ),
                [Path(__file__), Path(digit_strings.__file__), *inputs],
                {"out": str(folders[name])},  # wav.scp has paths in this folder
            )
            for name, members in sets.items()
        },
    )
    corpus.write_test_sets(args.out, ["test", "test_speaker"])


def find(folder: Path) -> tuple[dict[Recording, str], list[Path]]:
    """The path of each recording, and the folders that they were read from."""
    sets = prepared.find(folder)
    if sets:
        paths = {
            utterance.id: utterance.audio
            for source in sets.values()
            for utterance in prepared.read(source)[0]
        }
        inputs = [folder]
    else:
        inputs = [folder / "recordings"]
        if not inputs[0].is_dir():
            raise UserError(
                f"'{folder}' has neither a folder recordings/ nor data directories <set>/wav.scp"
            )
        paths = tree.audio_by_id(*inputs)
    recordings = {}
    for name, path in paths.items():
        match = re.fullmatch(PREPARED if sets else OFFICIAL, name)
        if match is None:
            raise UserError(
                f"{path}: expected a name like {'theo-7-12' if sets else '7_theo_12.wav'}"
            )
        recordings[match["speaker"], int(match["digit"]), int(match["index"])] = path
    speakers = sorted({speaker for speaker, _, _ in recordings} | ACCENTS.keys())
    expected = [(s, d, i) for s in speakers for d in range(len(WORDS)) for i in range(RECORDINGS)]
    missing = ["{1}_{0}_{2}".format(*key) for key in expected if key not in recordings]
    if missing:
        logger.warning(
            "'%s' lacks %d of %d recordings, first %s",
            folder,
            len(missing),
            len(expected),
            missing[0],
        )
    return recordings, inputs


def write_strings(
    name: str, members: dict[Recording, str], target: Path, final: Path
) -> corpus.CorpusSet:
    """Digit strings that use each recording once per pass, as 16 kHz FLAC files.

    The files are written to `target`/audio; the utterances name them in `final`, where they will be
    when the set is complete.
    """
    (target / "audio").mkdir()
    clips, left_out = digit_strings.read(members)
    utterances = []
    for speaker in sorted({key[0] for key in clips}):
        rng, number = random.Random(f"fsdd {name} {speaker}"), 0
        for _ in range(PASSES[name]):
            written = {}
            for string in digit_strings.group([key for key in clips if key[0] == speaker], rng):
                identity, number = f"{speaker}-{name}-{number:04d}", number + 1
                written[identity] = digit_strings.join([clips[key] for key in string], rng)
                utterances.append(
                    Utterance(
                        id=identity,
                        audio=str(final / f"{identity}.flac"),
                        duration=len(written[identity]) / digit_strings.RATE,
                        text=" ".join(WORDS[digit] for _, digit, _ in string),
                        speaker=speaker,
                        labels={"accent": ACCENTS.get(speaker, "unknown")},
                    )
                )
            digit_strings.write(target / "audio", written)
    return corpus.CorpusSet(utterances, left_out)


if __name__ == "__main__":
    corpus.run(main)
