"""Check data directories: all problems at once, with file and line, and the command that fixes
each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asrtool.data.audio.check import check_audio
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Print all problems; exit with status 1 if a data directory is invalid."""
    args = parse(argv)
    valid = [check(folder, args) for folder in args.folders]
    if not all(valid):
        sys.exit(1)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool check_data", description=__doc__)
    options.add_argument(
        "folders", type=Path, nargs="+", metavar="data/set", help="data directories"
    )
    options.add_argument(
        "--fix",
        action="store_true",
        help="sort, drop incomplete utterances, keep the old files in .backup/",
    )
    options.add_argument(
        "--audio",
        action="store_true",
        help="also read all audio, to find truncated, empty or stereo files, NaN ...",
    )
    options.add_argument(
        "--base",
        type=Path,
        help="folder that relative audio paths start at (default: the current folder)",
    )
    options.add_argument(
        "--rate", type=int, default=16000, help="with --audio: sampling rate expected, in Hz"
    )
    return options.parse_args(argv)


def check(folder: Path, args: argparse.Namespace) -> bool:
    """Fix (with --fix), check and print; returns whether the data directory is valid."""
    if args.fix:
        try:
            print(f"{folder}: {datadir.fix(folder, args.base)}")
        except UserError as error:
            print(error)
    problems = datadir.check(folder, args.base)
    if args.audio:
        problems += check_audio(folder, args.base, args.rate)
    for problem in problems:
        print(f"note: {problem}" if problem.kind == "note" else problem)
    faults = sum(problem.kind != "note" for problem in problems)
    if faults:
        print(f"{folder}: {faults} problem{'s' if faults > 1 else ''}")
    else:
        print(f"Successfully validated data-directory {folder}")
    return not faults


if __name__ == "__main__":
    main()
