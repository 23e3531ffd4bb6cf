"""The layout of AISHELL-2, as its two archives unpack next to each other.

    AISHELL-2/iOS/data/{wav.scp,trans.txt}
    AISHELL-2/iOS/data/wav/C<4 digits>/IC<4 digits>W<4 digits>.wav
    AISHELL-DEV-TEST-SET/{iOS,Android,Mic}/{dev,test}/{wav.scp,trans.txt}
    AISHELL-DEV-TEST-SET/iOS/dev/wav/D<4 digits>/ID<4 digits>W<4 digits>.wav
    AISHELL-DEV-TEST-SET/iOS/test/wav/T<4 digits>/IT<4 digits>W<4 digits>.wav

Utterance ids begin with I for iOS, A for Android, M for Mic. `wav.scp` has lines
`<utterance><TAB>wav/<speaker>/<utterance>.wav`, relative to its folder; `trans.txt` has lines
`<utterance><TAB><text without spaces>`. The three channels of dev and of test are the same reading,
recorded by three devices; training has iOS only. The voices of `test` are in no other set. Du et
al. 2018, "AISHELL-2: transforming Mandarin ASR research into industrial scale".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mini_corpus.acoustics import LIGHT, Conditions
from mini_corpus.layout import Layout, joined, write_lines
from mini_corpus.plan import Session, Set, Size
from mini_corpus.render import Times

_TRAIN, _DEV, _TEST = (
    "AISHELL-2/iOS/data",
    "AISHELL-DEV-TEST-SET/iOS/dev",
    "AISHELL-DEV-TEST-SET/iOS/test",
)
# The other phone sounds duller, the microphone brighter and with less noise.
_CHANNELS: dict[str, Conditions] = {
    "iOS": LIGHT,
    "Android": replace(LIGHT, tilt_db=-2.0),
    "Mic": replace(LIGHT, snr_db=(25.0, 40.0), tilt_db=1.5),
}


@dataclass(frozen=True)
class Aishell2(Layout):
    """Mandarin read speech, with held-out sets from three devices."""

    folders = ("AISHELL-2", "AISHELL-DEV-TEST-SET")
    sets = (
        Set(_TRAIN, "train", LIGHT, first_speaker=1),
        Set(_DEV, "dev", LIGHT, first_speaker=2001),
        Set(_TEST, "test", LIGHT, first_speaker=3001, unseen=True),
    )

    def plan(self, size: Size, seed: int) -> list[Session]:
        units = []
        for session in super().plan(size, seed):
            channels = ("iOS",) if session.split == _TRAIN else _CHANNELS
            for name in channels:
                split = session.split.replace("iOS", name)
                units.append(replace(session, split=split, conditions=_CHANNELS[name]))
        return units

    def audio_paths(self, session: Session, root: Path) -> tuple[Path, ...]:
        return tuple(root / session.split / file for _, file in _files(session))

    def write_tables(self, units: Sequence[Session], times: Sequence[Times], root: Path) -> None:
        audio: dict[str, list[str]] = defaultdict(list)
        texts: dict[str, list[str]] = defaultdict(list)
        for session in units:
            for (utterance, file), sentence in zip(_files(session), session.sentences, strict=True):
                audio[session.split].append(f"{utterance}\t{file}")
                texts[session.split].append(f"{utterance}\t{joined(sentence)}")
        for split in audio:
            write_lines(root / split / "wav.scp", sorted(audio[split]))
            write_lines(root / split / "trans.txt", sorted(texts[split]))


def _files(session: Session) -> list[tuple[str, str]]:
    """Id and path of each utterance."""
    channel, name = session.split.split("/")[1:]
    speaker = f"{'C' if name == 'data' else name[0].upper()}{session.speaker.number % 1000:04d}"
    first = 1 + session.first_index
    utterances = [
        f"{channel[0].upper()}{speaker}W{first + index:04d}"
        for index in range(len(session.sentences))
    ]
    return [(utterance, f"wav/{speaker}/{utterance}.wav") for utterance in utterances]
