"""What every recipe's `local/prepare_data.py` shares: finding audio and its text, writing whole sets or nothing.

A recipe only parses its corpus into `Utterance`s. Faults of the corpus as a whole (no transcript, an id twice) end in
one sentence and leave nothing behind. Single utterances that cannot be used are left out: counted, the first ones
named, all of them listed in `<set>/skipped.txt`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from asrtool import processes, stamp
from asrtool.data import audio, datadir
from asrtool.log import logger, set_up
from asrtool.types import Utterance

EXTENSIONS = {".flac", ".wav", ".opus", ".ogg", ".mp3", ".sph"}
SHOWN = 5  # utterances left out that are named on the console
SKIPPED = "skipped.txt"


class CorpusError(Exception):
    """The corpus folder is not what the recipe expects; one sentence says what is missing and what to do."""


class Found(NamedTuple):
    """What a set is made of, and a sentence for every utterance that it lacks."""

    utterances: list[Utterance]
    left_out: list[str]


class Pair(NamedTuple):
    id: str
    audio: Path
    text: str


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every `local/prepare_data.py` has."""
    options = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    options.add_argument("--corpus", type=_existing, required=True, help="folder of the corpus")
    options.add_argument("--out", type=Path, required=True, help="folder to write <set>/ into")
    return options


def run(main: Callable[[], None]) -> None:
    """Run a recipe's `main`; what is wrong with a corpus ends in one sentence, not in a traceback."""
    processes.follow_parent()
    set_up()
    try:
        main()
    except (CorpusError, datadir.DataDirError, audio.AudioError, stamp.StageError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


# -- reading ---------------------------------------------------------------


def audio_by_id(*roots: Path) -> dict[str, Path]:
    """Every audio file below the folders by its name without extension; a name that occurs twice is an error."""
    found: dict[str, Path] = {}
    for place, name in ((place, name) for root in roots for place, _, files in os.walk(root) for name in files):
        stem, extension = os.path.splitext(name)
        if extension.lower() not in EXTENSIONS or name.startswith("."):
            continue
        path = Path(place, name)
        if stem in found:
            first, second = sorted((str(found[stem]), str(path)))
            raise CorpusError(f"two audio files are called '{stem}', remove one: {first}, {second}")
        found[stem] = path
    return found


def pair(transcripts: Iterable[Path], audio_files: Mapping[str, Path], pattern: str) -> tuple[list[Pair], list[str]]:
    """The lines `<id> <text>` of some transcripts with their audio, and a sentence for each id that lacks either.

    Raises CorpusError where an id does not match `pattern` or comes twice.
    """
    pairs, left_out = [], []
    seen: dict[str, str] = {}
    for transcript in transcripts:
        for where, identity, text in _lines(transcript):
            if not re.fullmatch(pattern, identity):
                raise CorpusError(f"{where}: expected an utterance id like {pattern} and its text, got '{identity}'")
            if identity in seen:
                raise CorpusError(f"{where}: {identity} has a text already, {seen[identity]}; remove one")
            seen[identity] = where
            if identity in audio_files:
                pairs.append(Pair(identity, audio_files[identity], text))
            else:
                left_out.append(f"{identity}: has a text, {where}, but no audio file has this name")
    silent = sorted(audio_files.keys() - seen.keys())
    return pairs, left_out + [f"{identity}: {audio_files[identity]} has no text" for identity in silent]


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(file:line, id, text); a byte-order mark, CR LF, blank lines and runs of spaces do not matter."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected UTF-8, byte {error.start} is not; was the file converted?") from None
    for number, line in enumerate(content.split("\n"), 1):
        identity, *words = line.split() or [""]
        if identity:
            yield f"{path}:{number}", identity, " ".join(words)


def measured(utterances: Sequence[Utterance]) -> Found:
    """The utterances with the duration that their audio's header declares, without those whose header is no good."""
    kept, left_out = [], []
    seconds = audio.durations([utterance.audio for utterance in utterances])
    for utterance, duration in zip(utterances, seconds, strict=True):
        if isinstance(duration, audio.AudioError):
            left_out.append(f"{utterance.id}: {duration}")
        elif duration <= 0:
            left_out.append(f"{utterance.id}: {utterance.audio}: holds no samples")
        else:
            kept.append(replace(utterance, duration=duration))
    return Found(kept, left_out)


# -- writing ---------------------------------------------------------------


def write_set(
    out: Path,
    build: Callable[[Path], Found],
    *,
    inputs: Iterable[Path] = (),
    options: Mapping[str, object] | None = None,
) -> None:
    """Build the data directory `out` from what `build(temporary folder)` finds, unless it is up to date.

    An error on the way leaves an older `out` as it was, and nothing new.
    """
    with stamp.building(out, "data", inputs, options) as target:
        if target is not None:
            _write(out, target, build(target))


def _write(out: Path, target: Path, found: Found) -> None:
    if found.left_out:
        some = "".join(f"\n  {sentence}" for sentence in found.left_out[:SHOWN])
        where = f", all listed in {out / SKIPPED}" if found.utterances else ""
        rest = f"\n  and {len(found.left_out) - SHOWN} more{where}" if len(found.left_out) > SHOWN else ""
        logger.warning("%s: %d left out:%s%s", out, len(found.left_out), some, rest)
    if not found.utterances:
        raise CorpusError(f"{out}: not one utterance can be used; nothing was written")
    datadir.write(target, found.utterances)
    if found.left_out:
        (target / SKIPPED).write_text("".join(f"{sentence}\n" for sentence in found.left_out), encoding="utf-8")
    hours = sum(utterance.duration for utterance in found.utterances) / 3600
    speakers = len({utterance.speaker for utterance in found.utterances})
    logger.info("%s: %d utterances, %d speakers, %.2f hours", out, len(found.utterances), speakers, hours)


def write_test_sets(out: Path, names: Sequence[str]) -> None:
    """Tell the recipe engine which test sets this corpus has."""
    text = " ".join(names) + "\n"
    target = out / "test_sets"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)


def _existing(text: str) -> Path:
    """The corpus folder as an absolute path (data directories must not depend on where the command was typed)."""
    path = Path(os.path.abspath(text))
    if not path.is_dir():
        raise CorpusError(f"there is no corpus folder '{text}' (looked in {Path.cwd()})")
    return path
