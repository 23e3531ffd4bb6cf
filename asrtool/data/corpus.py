"""What every recipe's `local/prepare_data.py` shares: finding audio, measuring it, and writing whole sets or nothing.

A recipe only parses its corpus into `Utterance`s. Two forms of corpus are understood everywhere: the official tree
(the recipe's own code), and a folder of prepared sets, `<corpus>/<set>/{wav.scp,text,utt2spk[,utt2dur,utt2<label>]}`,
whose paths may be relative to `<corpus>`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from asrtool import stamp
from asrtool.data import audio, datadir
from asrtool.log import logger, set_up
from asrtool.types import Utterance

EXTENSIONS = {".flac", ".wav", ".opus", ".ogg", ".mp3", ".sph"}


class CorpusError(Exception):
    """The corpus folder is not what the recipe expects; one sentence says what is missing and what to do."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every `local/prepare_data.py` has."""
    options = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    options.add_argument("--corpus", type=Path, required=True, help="folder of the corpus")
    options.add_argument("--out", type=Path, required=True, help="folder to write <set>/ into")
    return options


def run(main: Callable[[], None]) -> None:
    """Run a recipe's `main`; what is wrong with a corpus ends in one sentence, not in a traceback."""
    set_up()
    try:
        main()
    except (CorpusError, datadir.DataDirError, audio.AudioError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")


def folder(corpus: Path, *names: str) -> Path:
    """The first of `corpus/<name>` that exists."""
    if not corpus.is_dir():
        raise CorpusError(f"no corpus folder '{corpus}'; give it with --corpus <folder>")
    for name in names:
        if (corpus / name).is_dir():
            return corpus / name
    raise CorpusError(f"'{corpus}' holds none of: {', '.join(f'{name}/' for name in names)}; is it the right folder?")


def audio_by_id(root: Path) -> dict[str, Path]:
    """Every audio file below `root` by its name without extension; a name that occurs twice is an error."""
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            stem, extension = os.path.splitext(name)
            if extension.lower() not in EXTENSIONS:
                continue
            if stem in found:
                raise CorpusError(f"two audio files are called '{stem}': {found[stem]} and {Path(place) / name}")
            found[stem] = Path(place) / name
    return found


def listing(root: Path) -> list[str]:
    """Name and size of every file below `root`: what a stage that read the corpus depends on."""
    return sorted(
        f"{os.path.relpath(os.path.join(place, name), root)} {os.path.getsize(os.path.join(place, name))}"
        for place, _, files in os.walk(root)
        for name in files
    )


def measured(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The utterances with the duration that their audio header declares; unreadable ones are named, counted and left
    out."""

    def measure(utterance: Utterance) -> Utterance | audio.AudioError:
        try:
            rate, _, samples = audio.info(utterance.audio)
        except audio.AudioError as error:
            return error
        return replace(utterance, duration=samples / rate)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(measure, utterances))
    kept = [result for result in results if isinstance(result, Utterance) and result.duration > 0]
    for utterance, result in zip(utterances, results, strict=True):
        if not isinstance(result, Utterance):
            logger.warning("left out %s: %s", utterance.id, result)
        elif result.duration <= 0:
            logger.warning("left out %s: %s holds no samples", utterance.id, utterance.audio)
    if len(kept) < len(utterances):
        logger.warning(
            "left out %d of %d utterances whose audio cannot be read", len(utterances) - len(kept), len(utterances)
        )
    return kept


def prepared_sets(corpus: Path) -> dict[str, Path]:
    """The folders of `corpus` that are data directories already, by name; empty for an official tree."""
    if not corpus.is_dir():
        raise CorpusError(f"no corpus folder '{corpus}'; give it with --corpus <folder>")
    return {
        path.parent.name: path.parent for path in sorted(corpus.glob("*/wav.scp")) if (path.parent / "text").exists()
    }


def read_prepared(source: Path) -> list[Utterance]:
    """A prepared set, its audio paths made absolute: relative ones start at the corpus folder, else at the current
    one."""

    def place(path: str) -> str:
        if path.rstrip().endswith("|") or os.path.isabs(path):
            return path
        beside = source.parent / path
        return str((beside if beside.exists() else Path(path)).resolve())

    return [replace(utterance, audio=place(utterance.audio)) for utterance in datadir.read(source, base=source.parent)]


def write_set(
    out: Path,
    utterances: Callable[[Path], Iterable[Utterance]],
    *,
    inputs: Iterable[Path] = (),
    options: Mapping[str, object] | None = None,
) -> None:
    """Build the data directory `out` from what `utterances(temporary folder)` gives, unless it is up to date."""
    with stamp.building(out, "data", inputs, options) as target:
        if target is None:
            return
        rows = list(utterances(target))
        if not rows:
            raise CorpusError(f"{out}: not one utterance was found; nothing was written")
        datadir.write(target, rows)
        hours = sum(row.duration for row in rows) / 3600
        speakers = len({row.speaker for row in rows})
        logger.info("%s: %d utterances, %d speakers, %.2f hours", out, len(rows), speakers, hours)


def write_test_sets(out: Path, names: Sequence[str]) -> None:
    """Tell the recipe engine which test sets this corpus has."""
    text = " ".join(names) + "\n"
    target = out / "test_sets"
    if not target.exists() or target.read_text() != text:
        temporary = out / "test_sets.tmp"
        temporary.write_text(text)
        temporary.replace(target)
