"""The layout of LibriSpeech: <set>/<reader>/<chapter>/<reader>-<chapter>-<4 digits>.flac, and its tables.

Panayotov et al. 2015, "LibriSpeech: an ASR corpus based on public domain audio books"; openslr.org/12.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mini_corpus.plan import Session, Sets

FOLDER = "LibriSpeech"
SETS = Sets(train="train-clean-100", dev="dev-clean", test_clean="test-clean", test_other="test-other")

_SPEAKERS_HEADER = """\
; Metadata about the speakers of this miniature corpus, separated by pipes (|).
; All of them are voices of a speech synthesiser, described in the last column.
;
; ID, sex (M or F), the set that the speaker belongs to, minutes of speech in it, name.
;ID  |SEX| SUBSET           |MINUTES| NAME
"""
_CHAPTERS_HEADER = """\
; Metadata about the chapters (reading sessions) of this miniature corpus, separated by pipes (|).
;
;ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE
"""


def audio_paths(session: Session, folder: Path) -> tuple[Path, ...]:
    """Where the session's utterances go, below the corpus's `folder`."""
    return tuple(_chapter(session, folder) / f"{utterance}.flac" for utterance in _utterances(session))


def write_tables(sessions: Sequence[Session], seconds: Sequence[float], folder: Path) -> None:
    """The transcripts of every chapter, SPEAKERS.TXT and CHAPTERS.TXT; `seconds` of speech per session."""
    speakers = {session.speaker: session.split for session in sessions}
    minutes: dict[int, float] = defaultdict(float)
    chapters = []
    for session, duration in zip(sessions, seconds, strict=True):
        reader = session.speaker.number
        lines = zip(_utterances(session), session.sentences, strict=True)
        text = "".join(f"{utterance} {sentence}\n" for utterance, sentence in lines)
        (_chapter(session, folder) / f"{reader}-{session.number}.trans.txt").write_text(text, encoding="utf-8")
        minutes[reader] += duration / 60
        chapters.append(
            f"{session.number:<6} | {reader:<4} | {duration / 60:<5.2f} | {session.split:<16} | {0:<4} | {0:<5} "
            f"| Session {session.number} | Sentences of a small grammar\n"
        )
    readers = "".join(
        f"{speaker.number:<4} | {speaker.sex} | {split:<16} | {minutes[speaker.number]:<5.2f} "
        f"| {speaker.description()}\n"
        for speaker, split in speakers.items()
    )
    (folder / "SPEAKERS.TXT").write_text(_SPEAKERS_HEADER + readers, encoding="utf-8")
    (folder / "CHAPTERS.TXT").write_text(_CHAPTERS_HEADER + "".join(chapters), encoding="utf-8")


def _chapter(session: Session, folder: Path) -> Path:
    return folder / session.split / str(session.speaker.number) / str(session.number)


def _utterances(session: Session) -> list[str]:
    return [f"{session.speaker.number}-{session.number}-{index:04d}" for index in range(len(session.sentences))]
