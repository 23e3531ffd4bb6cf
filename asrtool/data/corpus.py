"""The code that all `local/prepare_data.py` share: options, measuring audio, writing sets.

A recipe only parses its corpus (`asrtool/data/tree.py`) into `Utterance`s. Faults of the whole
corpus (no transcript, a repeated id) raise an error and write nothing. Single unusable utterances
are left out: the first ones are logged, all are listed in `<set>/skipped.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from asrtool.data import audio, tree
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.log import logger, plural, set_up, shown
from asrtool.system import atomic, processes, stamp
from asrtool.types import Utterance

SHOWN = 5  # left out utterances that are logged
SKIPPED = "skipped.txt"


class CorpusSet(NamedTuple):
    """The utterances of a set, and a sentence for each one that was left out."""

    utterances: list[Utterance]
    left_out: list[str]


@dataclass(frozen=True)
class Source:
    """How to build a set: `build(temporary folder)`, with the files and options it depends on."""

    build: Callable[[Path], CorpusSet]
    inputs: Sequence[Path] = ()
    options: Mapping[str, object] = field(default_factory=dict)


def parser(description: str, train_sets: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The options of every `local/prepare_data.py`; `--train-set` if there is a choice."""
    options = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    options.add_argument("--corpus", type=_existing, required=True, help="folder of the corpus")
    options.add_argument("--out", type=Path, required=True, help="folder to write <set>/ into")
    if train_sets:
        options.add_argument(
            "--train-set", choices=train_sets, default=train_sets[0], help="training set to make"
        )
    return options


def run(main: Callable[[], None]) -> None:
    """Run a recipe's `main`; errors of the corpus print one line instead of a traceback."""
    processes.follow_parent()
    set_up()
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(shown(f"{Path(sys.argv[0]).name}: {error}"))
    except KeyboardInterrupt:
        sys.exit(130)


# -- utterances ------------------------------------------------------------


def measured(utterances: Sequence[Utterance]) -> CorpusSet:
    """The utterances with measured durations, without those that cannot be measured.

    Raises `UserError` if these are more than a tenth.
    """
    kept, left_out = [], []
    for utterance, duration in zip(utterances, datadir.lengths(utterances), strict=True):
        if isinstance(duration, audio.AudioError):
            left_out.append(f"{utterance.id}: {duration}")
        else:
            kept.append(replace(utterance, duration=duration))
    if tree.too_many(len(left_out), len(utterances)):
        raise UserError(
            f"{len(left_out)} of {len(utterances)} audio files cannot be used; first "
            f"{left_out[0]}; are the archives unpacked completely?"
        )
    return CorpusSet(kept, left_out)


def subset(utterances: Iterable[Utterance], hours: float) -> list[Utterance]:
    """`hours` of the utterances, selected by a hash of their ids: the same on every machine."""
    kept, left = [], hours * 3600
    # ordered by hash, so that a larger subset contains every smaller one
    for utterance in sorted(utterances, key=lambda row: hashlib.sha256(row.id.encode()).digest()):
        if left <= 0:
            break
        left -= utterance.duration
        kept.append(utterance)
    return kept


def compare(
    name: str, rows: Sequence[Utterance], utterances: int, characters: int | None = None
) -> None:
    """Warn if the counts of a set differ from the official ones; white space is not counted."""
    if len(rows) != utterances:
        logger.warning("%s: %s, officially %d", name, plural(len(rows), "utterance"), utterances)
    elif characters is not None:
        count = sum(len("".join(row.text.split())) for row in rows)
        if count != characters:
            logger.warning(
                "%s: %d characters, officially %d; is the text as published?",
                name,
                count,
                characters,
            )
        else:
            logger.info("%s: %d characters, as expected", name, count)


# -- writing ---------------------------------------------------------------


def write_sets(out: Path, sets: Mapping[str, Source]) -> None:
    """Build the data directories `out`/<set>, except those that are up to date.

    They appear only when all are complete: after an error, the former ones are unchanged.
    """
    known: dict[Path, str] = {}
    with ExitStack() as stack:
        for name, source in sets.items():
            building = stamp.building(
                out / name, "data", source.inputs, source.options, known=known
            )
            target = stack.enter_context(building)
            if target is not None:
                _write(out / name, target, source.build(target))


def _write(out: Path, target: Path, corpus_set: CorpusSet) -> None:
    if corpus_set.left_out:
        listed = "".join(f"\n  {sentence}" for sentence in corpus_set.left_out[:SHOWN])
        where = f", all listed in {out / SKIPPED}" if corpus_set.utterances else ""
        rest = (
            f"\n  and {len(corpus_set.left_out) - SHOWN} more{where}"
            if len(corpus_set.left_out) > SHOWN
            else ""
        )
        logger.warning("%s: %d left out:%s%s", out, len(corpus_set.left_out), listed, rest)
    # After the warning: its reasons explain why nothing is left.
    if not corpus_set.utterances:
        raise UserError(f"{out}: none of the utterances can be used; nothing was written")
    datadir.write(target, corpus_set.utterances)
    if corpus_set.left_out:
        (target / SKIPPED).write_text(
            "".join(f"{sentence}\n" for sentence in corpus_set.left_out), encoding="utf-8"
        )
    logger.info("%s: %s", out, size_of(corpus_set.utterances))


def size_of(rows: Sequence[Utterance]) -> str:
    """`3 utterances, 2 speakers, 0.01 hours`."""
    hours = sum(row.duration for row in rows) / 3600
    speakers = plural(len({row.speaker for row in rows}), "speaker")
    return f"{plural(len(rows), 'utterance')}, {speakers}, {hours:.2f} hours"


def write_test_sets(out: Path, names: Sequence[str]) -> None:
    """Tell the recipe engine which test sets this corpus has."""
    text = " ".join(names) + "\n"
    target = out / "test_sets"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        atomic.write_text(target, text)


def _existing(text: str) -> Path:
    """The corpus folder as an absolute path, so that data directories do not depend on the cwd."""
    path = Path(os.path.abspath(text))
    if not path.is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no corpus folder '{text}' (current folder: {Path.cwd()})"
        )
    return path
