#!/usr/bin/env python3
"""Make a miniature speech corpus in the layout of a public one, offline, in a minute.

    python tools/make_mini_corpus.py --layout librispeech --out downloads

speaks sentences of a small grammar with espeak-ng (pip install espeakng-loader) in many voices and accents, records
them in synthetic rooms, and writes downloads/LibriSpeech as the official archives would unpack. The same settings give
the same files, whatever --nj; a corpus that is there already is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mini_corpus import espeak, librispeech, plan, render
from mini_corpus.errors import CorpusError

LAYOUTS: dict[str, ModuleType] = {"librispeech": librispeech}

_SETTINGS = "mini_corpus.json"
_README = """\
This is not {folder}. It is a miniature in its layout, synthesised with espeak-ng by

    python tools/make_mini_corpus.py --layout {layout} --size {size} --seed {seed}

to try a recipe without the real corpus. Voices, rooms, noises and sentences are artificial; error rates on it say
nothing about speech recognition. The sentences come with the tool that made them and are free to use.
"""


def main() -> int:
    """Run the command; 0 when the corpus is there."""
    options = _parser().parse_args()
    try:
        make(options.layout, options.out, options.size, options.seed, options.nj)
    except CorpusError as error:
        print(f"make_mini_corpus.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_mini_corpus.py: interrupted; nothing was left behind.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"make_mini_corpus.py: cannot write the corpus below {options.out}: {error}", file=sys.stderr)
        return 1
    return 0


def make(layout_name: str, out: Path, size: str, seed: int, nj: int) -> None:
    """Write the corpus below `out`, unless it is there already."""
    if nj < 1 or seed < 0:
        raise CorpusError(f"--nj is {nj} and --seed is {seed}; expected at least 1 and 0.")
    espeak.locate()
    layout = LAYOUTS[layout_name]
    folder = out / layout.FOLDER
    settings = {
        "layout": layout_name,
        "size": size,
        "seed": seed,
        "generator": _generator_hash(layout),
        "espeakng-loader": importlib.metadata.version("espeakng-loader"),
    }
    if folder.exists() and _is_made(folder, settings):
        print(f"{folder} was made with these settings already; nothing to do.")
        return

    began = time.monotonic()
    sessions = plan.plan(plan.parse_size(size), layout.SETS, seed)
    print(f"Synthesising {sum(len(s.sentences) for s in sessions):,} utterances with {nj} processes to {folder}")
    for leftover in out.glob(f"{folder.name}.partial-*"):
        if not _is_running(int(leftover.name.rpartition("-")[2])):
            shutil.rmtree(leftover)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        seconds = render.render(_jobs(sessions, layout, partial, seed), nj, _show_progress)
        layout.write_tables(sessions, seconds, partial)
        readme = _README.format(folder=layout.FOLDER, layout=layout_name, size=size, seed=seed)
        (partial / "README.TXT").write_text(readme, encoding="utf-8")
        (partial / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if folder.exists() and not _is_made(folder, settings):
            shutil.rmtree(folder)
        if not folder.exists():  # else another run was faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _show_summary(sessions, seconds, time.monotonic() - began)


def _is_made(folder: Path, settings: dict[str, object]) -> bool:
    """Whether `folder` holds this corpus; False for another miniature, which may be replaced."""
    try:
        existing = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CorpusError(
            f"{folder} exists and was not made by this tool (it has no {_SETTINGS}); choose another --out."
        ) from None
    if existing == settings:
        return True
    changed = ", ".join(name for name in settings if existing.get(name) != settings[name])
    print(f"{folder} holds a miniature with other settings ({changed}); replacing it.")
    return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _generator_hash(layout: ModuleType) -> str:
    """A fingerprint of the code that decides about the corpus's content."""
    other_layouts = {Path(other.__file__) for other in LAYOUTS.values() if other is not layout}
    sources = sorted(set(Path(plan.__file__).parent.glob("*.py")) - other_layouts)
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def _jobs(sessions: Sequence[plan.Session], layout: ModuleType, folder: Path, seed: int) -> list[render.Job]:
    """One job per session; utterances are counted through all sessions of a speaker."""
    spoken: dict[int, int] = {}
    jobs = []
    for session in sessions:
        first_index = spoken.get(session.speaker.number, 0)
        spoken[session.speaker.number] = first_index + len(session.sentences)
        jobs.append(render.Job(session, first_index, layout.audio_paths(session, folder), seed))
    return jobs


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} sessions", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _show_summary(sessions: Sequence[plan.Session], seconds: Sequence[float], took: float) -> None:
    print(f"{'set':<17}{'utterances':>10}{'speakers':>10}{'minutes':>9}{'words':>8}{'vocabulary':>12}")
    for split in dict.fromkeys(session.split for session in sessions):
        own = [session for session in sessions if session.split == split]
        minutes = sum(s for session, s in zip(sessions, seconds, strict=True) if session.split == split) / 60
        utterances = [sentence for session in own for sentence in session.sentences]
        words = " ".join(utterances).split()
        speakers = len({session.speaker for session in own})
        print(f"{split:<17}{len(utterances):>10}{speakers:>10}{minutes:>9.1f}{len(words):>8}{len(set(words)):>12}")
    print(f"Took {took:.0f} s.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=sorted(LAYOUTS), required=True, help="the corpus whose layout to write")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the corpus's folder into")
    parser.add_argument(
        "--size", default="default", help="tiny, small, default (about 1.75 hours), or hours of training speech"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other sentences, speakers and noises")
    parser.add_argument("--nj", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
