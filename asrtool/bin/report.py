"""Show a scored set as one HTML file: rates, groups, the worst utterances with audio and
spectrogram, and all others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from asrtool import log
from asrtool.log import logger, plural
from asrtool.report import page, read, render
from asrtool.report.sources import choose
from asrtool.score.stored import replace_text

NAME = "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    out = args.out or args.folder / NAME
    if out.is_dir():
        out = out / NAME
    result = read(args.folder, args.data)
    chosen = choose(result, args.worst, args.also)
    text = render(result, chosen, out, args.audio)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, text)
    size = len(text.encode()) / 1e6
    logger.info(
        "%s: %s, %d of them in detail, %.1f MB",
        out,
        plural(len(result.references), "utterance"),
        len(chosen),
        size,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool report", description=__doc__, allow_abbrev=False
    )
    options.add_argument(
        "folder", type=Path, help="folder that stage 5 scored: exp/<tag>/<decode>/<set>"
    )
    options.add_argument(
        "--out", type=Path, help=f"file or folder to write (default: {NAME} in that folder)"
    )
    options.add_argument(
        "--data", type=Path, help="data directory (default: the one that was scored against)"
    )
    options.add_argument(
        "--worst",
        type=number,
        default=20,
        metavar="N",
        help="number of utterances with the most errors to show in detail (default: 20)",
    )
    options.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="ID",
        help="also show this utterance in detail",
    )
    options.add_argument(
        "--audio",
        choices=page.AUDIO,
        default="link",
        help="link (the default) plays the files from where they are; embed stores the audio "
        "of the detailed utterances in the page, so that you can send it; none leaves audio out",
    )
    return options.parse_args(argv)


def number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, not '{text}'")
    return int(text)


if __name__ == "__main__":
    main()
