"""The layout of LibriSpeech.

    LibriSpeech/{train-clean-100,dev-clean,test-clean,test-other}/
        <reader>/<chapter>/<reader>-<chapter>-<4 digits>.flac
        <reader>/<chapter>/<reader>-<chapter>.trans.txt         <utterance> <TEXT IN CAPITALS>
    LibriSpeech/{SPEAKERS,CHAPTERS}.TXT

The voices of test-other are in no other set. Panayotov et al. 2015, "LibriSpeech: an ASR corpus
based on public domain audio books"; openslr.org/12.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_corpus.acoustics import HEAVY, LIGHT
from mini_corpus.layout import Layout
from mini_corpus.plan import ENGLISH, SIZES, Session, Set
from mini_corpus.render import Times

_SPEAKERS_HEADER = """\
; Metadata about the speakers of this miniature corpus, separated by pipes (|).
; All are voices of a speech synthesiser, described in the last column.
;
; ID, sex (M or F), the speaker's set, minutes of speech, name.
;ID  |SEX| SUBSET           |MINUTES| NAME
"""
_CHAPTERS_HEADER = """\
; Metadata about the chapters (reading sessions) of this miniature corpus, separated by pipes (|).
;
;ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE
"""


@dataclass(frozen=True)
class LibriSpeech(Layout):
    """English read speech."""

    folders = ("LibriSpeech",)
    language = ENGLISH
    sizes = SIZES
    sets = (
        Set("train-clean-100", "train", LIGHT, first_speaker=1001),
        Set("dev-clean", "dev", LIGHT, first_speaker=2001),
        Set("test-clean", "test", LIGHT, first_speaker=3001),
        Set("test-other", "test", HEAVY, first_speaker=4001, unseen=True),
    )

    def audio_paths(self, session: Session, root: Path) -> tuple[Path, ...]:
        return tuple(
            _chapter(session, root) / f"{utterance}.flac" for utterance in _utterances(session)
        )

    def write_tables(self, units: Sequence[Session], times: Sequence[Times], root: Path) -> None:
        speakers = {session.speaker: session.split for session in units}
        minutes: dict[int, float] = defaultdict(float)
        chapters = []
        for session, spoken in zip(units, times, strict=True):
            reader = session.speaker.number
            duration = sum(end - start for start, end in spoken)
            lines = zip(_utterances(session), session.sentences, strict=True)
            text = "".join(f"{utterance} {sentence}\n" for utterance, sentence in lines)
            (_chapter(session, root) / f"{reader}-{session.number}.trans.txt").write_text(
                text, encoding="utf-8"
            )
            minutes[reader] += duration / 60
            chapters.append(
                f"{session.number:<6} | {reader:<4} | {duration / 60:<5.2f} | {session.split:<16} "
                f"| {0:<4} | {0:<5} "
                f"| Session {session.number} | Sentences of a small grammar\n"
            )
        readers = "".join(
            f"{speaker.number:<4} | {speaker.sex} | {split:<16} | {minutes[speaker.number]:<5.2f} "
            f"| {speaker.description()}\n"
            for speaker, split in speakers.items()
        )
        folder = root / "LibriSpeech"
        (folder / "SPEAKERS.TXT").write_text(_SPEAKERS_HEADER + readers, encoding="utf-8")
        (folder / "CHAPTERS.TXT").write_text(_CHAPTERS_HEADER + "".join(chapters), encoding="utf-8")


def _chapter(session: Session, root: Path) -> Path:
    return root / "LibriSpeech" / session.split / str(session.speaker.number) / str(session.number)


def _utterances(session: Session) -> list[str]:
    return [
        f"{session.speaker.number}-{session.number}-{index:04d}"
        for index in range(len(session.sentences))
    ]
