"""Copy, combine, subset, split, speed-perturb and import data directories, with all their files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from asrtool.data import prepared
from asrtool.data.kaldi import ops
from asrtool.log import set_up

WAYS = {
    "first": "the first ones by id",
    "last": "the last ones by id",
    "shortest": "the shortest ones",
    "per-spk": "that number of each speaker",
    "speakers": "whole speakers, until the number is reached",
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    args.run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options and the order of arguments are Kaldi's."""
    options = argparse.ArgumentParser(prog="asrtool data", description=__doc__)
    commands = options.add_subparsers(required=True, metavar="<command>")
    for name, (run, add_options, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        add_options(command)
    args = options.parse_args(glued(sys.argv[1:] if argv is None else argv))
    if args.run is subset and (args.number is None) != bool(args.utt_list or args.spk_list):
        options.error("subset takes either a number of utterances or --utt-list or --spk-list")
    if args.run is perturb_speed and not 0.1 <= args.factor <= 10:
        options.error(f"a speed of {args.factor:g} is not between 0.1 and 10")
    return args


def glued(argv: Sequence[str]) -> list[str]:
    """Rewrite `--utt-suffix -x` as `--utt-suffix=-x`: argparse takes -x for an option, Kaldi does
    not.
    """
    joined: list[str] = []
    for word in argv:
        if joined and re.fullmatch("--(utt|spk)-(prefix|suffix)", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def copy_options(command: argparse.ArgumentParser) -> None:
    for what in ("spk", "utt"):
        for where in ("prefix", "suffix"):
            command.add_argument(f"--{what}-{where}", default="", metavar="TEXT")
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)


def copy(args: argparse.Namespace) -> None:
    ops.copy(
        args.source,
        args.target,
        renamed(args.utt_prefix, args.utt_suffix),
        renamed(args.spk_prefix, args.spk_suffix),
    )


def renamed(prefix: str, suffix: str) -> ops.Renamed:
    return (lambda name: prefix + name + suffix) if prefix or suffix else ops.same


def combine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--extra-files",
        default="",
        metavar="'NAME ...'",
        help="further files to copy, with one line per utterance",
    )
    command.add_argument("target", type=Path)
    command.add_argument("sources", type=Path, nargs="+")


def combine(args: argparse.Namespace) -> None:
    ops.combine(args.target, args.sources, args.extra_files.split())


def subset_options(command: argparse.ArgumentParser) -> None:
    ways = command.add_mutually_exclusive_group()
    for way, about in WAYS.items():
        ways.add_argument(f"--{way}", dest="way", action="store_const", const=way, help=about)
    ways.add_argument("--utt-list", type=Path, help="file with the ids to take, one per line")
    ways.add_argument("--spk-list", type=Path, help="file with the speakers to take, one per line")
    command.add_argument("source", type=Path)
    command.add_argument(
        "number", type=int, nargs="?", help="utterances to take, by default evenly spaced"
    )
    command.add_argument("target", type=Path)


def subset(args: argparse.Namespace) -> None:
    source = ops.Source(args.source)
    if args.utt_list or args.spk_list:
        ids = ops.listed(source, args.utt_list or args.spk_list, of_speakers=args.utt_list is None)
    else:
        ids = ops.choose(source, args.number, args.way or "spread")
    ops.select(args.source, args.target, ids)


def split_options(command: argparse.ArgumentParser) -> None:
    ways = command.add_mutually_exclusive_group()
    ways.add_argument(
        "--per-utt",
        dest="by",
        action="store_const",
        const="utterance",
        help="speakers may be split too",
    )
    ways.add_argument(
        "--per-reco",
        dest="by",
        action="store_const",
        const="recording",
        help="keep recordings whole",
    )
    command.add_argument("source", type=Path)
    command.add_argument("number", type=int)


def split(args: argparse.Namespace) -> None:
    ops.split(args.source, args.number, args.by or "speaker")


def import_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--train-set", default="train", metavar="NAME")
    command.add_argument("--valid-set", default="dev", metavar="NAME")
    command.add_argument(
        "--test-sets",
        default="",
        metavar="'NAME ...'",
        help="default: all whose name begins with test",
    )
    command.add_argument(
        "--extra-sets", default="", metavar="'NAME ...'", help="further sets, if they exist"
    )
    command.add_argument("folder", type=Path)
    command.add_argument("target", type=Path)


def take(args: argparse.Namespace) -> None:
    tests, more = args.test_sets.split(), args.extra_sets.split()
    prepared.take(args.folder, args.target, args.train_set, args.valid_set, tests, more)


def perturb_speed_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("factor", type=float)
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)


def perturb_speed(args: argparse.Namespace) -> None:
    ops.perturb_speed(args.source, args.target, args.factor)


# command -> function, function that adds its options, help
COMMANDS = {
    "copy": (
        copy,
        copy_options,
        "copy a data directory, with prefixes and suffixes for the names in it",
    ),
    "combine": (combine, combine_options, "make one data directory of several"),
    "subset": (
        subset,
        subset_options,
        "take some utterances: <source> <number> <target>, or a list and <source> <target>",
    ),
    "split": (
        split,
        split_options,
        "cut into <source>/split<number>/1, 2 ...; speakers stay whole",
    ),
    "perturb-speed": (
        perturb_speed,
        perturb_speed_options,
        "a copy at another speed: sp0.9-<id> of speaker sp0.9-<speaker>",
    ),
    "import": (
        take,
        import_options,
        "take ready data directories <folder>/<set> as those of a recipe, <target>/<set>",
    ),
}


if __name__ == "__main__":
    main()
