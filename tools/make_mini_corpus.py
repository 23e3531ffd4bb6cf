#!/usr/bin/env python3
"""Make a miniature speech corpus in the layout of a public one, offline, in minutes.

    python tools/make_mini_corpus.py --layout librispeech --out downloads

synthesises sentences of a small grammar with espeak-ng (pip install espeakng-loader) in many voices
and accents, adds the acoustics of rooms, noise and microphones, and writes downloads/LibriSpeech,
as the official archives would unpack. The same settings give the same files for any --nj. A corpus
that exists with these settings is left alone. The docstring of mini_corpus/<layout>.py has the tree
of a layout. kespeech has options for its accents:

    python tools/make_mini_corpus.py --layout kespeech --accents 20 --skew 1 --out downloads
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_corpus import espeak, plan, render
from mini_corpus.aishell1 import Aishell1
from mini_corpus.aishell2 import Aishell2
from mini_corpus.errors import CorpusError
from mini_corpus.kespeech import KeSpeech
from mini_corpus.layout import Layout
from mini_corpus.librispeech import LibriSpeech
from mini_corpus.magicdata import MagicData
from mini_corpus.magicdata_read import MagicDataRead

LAYOUTS: dict[str, type[Layout]] = {
    "aishell1": Aishell1,
    "aishell2": Aishell2,
    "kespeech": KeSpeech,
    "librispeech": LibriSpeech,
    "magicdata": MagicData,
    "magicdata_read": MagicDataRead,
}

_SETTINGS = "mini_corpus.json"
_README = """\
This is not {folder}. It is a miniature in its layout, synthesised with espeak-ng by

    python tools/make_mini_corpus.py {command}

It serves to try a recipe without the real corpus. Voices, rooms, noises and sentences are
artificial; error rates on it say nothing about speech recognition. The sentences are part of the
tool that made them and are free to use.
"""


def main() -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args()
    try:
        layout = _layout(options)
        make(options.layout, layout, options.out, options.size, options.seed, options.nj)
    except CorpusError as error:
        print(f"make_mini_corpus.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_mini_corpus.py: interrupted; nothing was written.", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"make_mini_corpus.py: cannot write the corpus below {options.out}: {error}",
            file=sys.stderr,
        )
        return 1
    return 0


def make(name: str, layout: Layout, out: Path, size: str, seed: int, nj: int) -> None:
    """Write the corpus below `out`, unless it exists with these settings."""
    if nj < 1 or seed < 0:
        raise CorpusError(f"--nj is {nj} and --seed is {seed}; expected at least 1 and 0.")
    espeak.locate()
    folders = [out / folder for folder in layout.folders]
    settings = {
        "layout": name,
        "size": size,
        "seed": seed,
        **dataclasses.asdict(layout),
        "generator": _generator_hash(layout),
        "espeakng-loader": importlib.metadata.version("espeakng-loader"),
    }
    made = [_is_made(folder, settings) for folder in folders if folder.exists()]
    if made == [True] * len(folders):
        print(f"{folders[0]} already exists with these settings; nothing to do.")
        return

    began = time.monotonic()
    units = layout.plan(plan.parse_size(size, layout.language, layout.sizes), seed)
    print(
        f"Synthesising {sum(len(u.sentences) for u in units):,} utterances with {nj} processes to "
        f"{folders[0]}"
    )
    for leftover in out.glob(f"{folders[0].name}.partial-*"):
        if not _is_running(int(leftover.name.rpartition("-")[2])):
            shutil.rmtree(leftover)
    partial = folders[0].with_name(f"{folders[0].name}.partial-{os.getpid()}")
    try:
        times = render.render(layout.jobs(units, partial, seed), nj, _show_progress)
        layout.write_tables(units, times, partial)
        chosen = {"layout": name, **dataclasses.asdict(layout), "size": size, "seed": seed}
        command = " ".join(f"--{option} {value}" for option, value in chosen.items())
        # the first folder is renamed last: if it exists, the corpus is complete
        for folder in folders[::-1]:
            written = partial / folder.name
            readme = _README.format(folder=folder.name, command=command)
            (written / "README.TXT").write_text(readme, encoding="utf-8")
            (written / _SETTINGS).write_text(
                json.dumps(settings, indent=2) + "\n", encoding="utf-8"
            )
            if folder.exists() and not _is_made(folder, settings):
                shutil.rmtree(folder)
            if not folder.exists():  # another process may have made the same corpus meanwhile
                written.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _show_summary(units, times, time.monotonic() - began)


def _is_made(folder: Path, settings: dict[str, object]) -> bool:
    """Whether `folder` contains this corpus; False for another miniature, which may be replaced.

    Raises CorpusError for any other folder.
    """
    try:
        existing = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CorpusError(
            f"{folder} exists and was not made by this tool (it has no {_SETTINGS}); choose "
            "another --out."
        ) from None
    if existing == settings:
        return True
    changed = ", ".join(name for name in settings if existing.get(name) != settings[name])
    print(f"{folder} contains a miniature with other settings ({changed}); replacing it.")
    return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _generator_hash(layout: Layout) -> str:
    """A hash of the code that determines the content of the corpus."""
    other_layouts = {
        Path(inspect.getfile(other)) for other in LAYOUTS.values() if not isinstance(layout, other)
    }
    sources = sorted(set(Path(plan.__file__).parent.glob("*.py")) - other_layouts)
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{done} of {total} sessions",
            end="\n" if done == total else "",
            file=sys.stderr,
            flush=True,
        )


def _show_summary(units: Sequence[Any], times: Sequence[render.Times], took: float) -> None:
    width = max(17, *(len(unit.split) + 2 for unit in units))
    print(
        f"{'set':<{width}}{'utterances':>10}{'speakers':>10}{'minutes':>9}{'words':>8}{'vocabulary':>12}"
    )
    for split in dict.fromkeys(unit.split for unit in units):
        own = [unit for unit in units if unit.split == split]
        spoken = (
            pair
            for unit, pairs in zip(units, times, strict=True)
            if unit.split == split
            for pair in pairs
        )
        minutes = sum(end - start for start, end in spoken) / 60
        utterances = [sentence for unit in own for sentence in unit.sentences]
        words = " ".join(utterances).split()
        speakers = len({speaker.number for unit in own for speaker in unit.speakers})
        print(
            f"{split:<{width}}{len(utterances):>10}{speakers:>10}{minutes:>9.1f}{len(words):>8}{len(set(words)):>12}"
        )
    print(f"Took {took:.0f} s.")


def _layout(options: argparse.Namespace) -> Layout:
    """The layout with its options; raises CorpusError for options of another layout."""
    layout = LAYOUTS[options.layout]
    known = {field.name for field in dataclasses.fields(layout)}
    settings = {
        name: getattr(options, name)
        for name in ("accents", "skew")
        if getattr(options, name) is not None
    }
    for name in settings.keys() - known:
        raise CorpusError(
            f"--{name} is an option of --layout kespeech, not of --layout {options.layout}."
        )
    return layout(**settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layout", choices=sorted(LAYOUTS), required=True, help="layout of the corpus"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write the corpus's folder into"
    )
    parser.add_argument(
        "--size",
        default="default",
        help="tiny, small, default (3 to 4 hours), study (default with larger test sets), or the "
        "hours of training speech",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of sentences, speakers and noises (default: 0)",
    )
    parser.add_argument(
        "--accents",
        type=int,
        help="kespeech: number of accents, 1 to 20 (default: 9, those of the corpus)",
    )
    parser.add_argument(
        "--skew",
        type=float,
        help="kespeech: the share of the n-th accent is proportional to n^-SKEW (default: 0)",
    )
    parser.add_argument(
        "--nj", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
