"""Copy, combine, subset, split, speed-perturb and import data directories, with all their files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from asrtool.data import prepared
from asrtool.data.kaldi import ops
from asrtool.data.toolkits import huggingface, lhotse, nemo, taking, webdataset
from asrtool.data.toolkits.entries import Source
from asrtool.errors import UserError
from asrtool.log import set_up
from asrtool.system import stamp

WAYS = {
    "first": "the first ones by id",
    "last": "the last ones by id",
    "shortest": "the shortest ones",
    "per-spk": "that number of each speaker",
    "speakers": "whole speakers, until the number is reached",
}

SETS = {"--train-set", "--valid-set", "--test-sets", "--extra-sets"}
# format -> the options that it has
KINDS = {
    "kaldi": SETS,
    "wenet": {"--audio"},
    "webdataset": {"--audio", "--fields"},
    "nemo": {"--audio", "--fields", "--tars"},
    "lhotse": {"--audio"},
    "datasets": {"--audio", "--fields"},
}
IMPORT = """Take data sets of other places.

kaldi       SOURCE/<set>, ready data directories of Kaldi or ESPnet -> TARGET/<set> of a recipe
wenet       a raw list (data.list), a list of shards, or shards
webdataset  archives with <key>.flac and <key>.txt or .json: a file, a folder, a pattern, a list
nemo        a manifest, also of archives (--tars)
lhotse      cuts, or recordings beside supervisions (.jsonl, .jsonl.gz); a folder of Shar
datasets    of Hugging Face: a split that save_to_disk wrote, or parquet files

Formats other than kaldi give one data directory, TARGET. Audio stays where it is, also in archives,
unless --audio names a folder. Lengths are measured, and compared with those of the manifest. What
cannot be used is named and left out; more than a tenth stops the command.
"""


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
    if args.run is take:
        check_import(args, options)
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
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.description = IMPORT
    command.add_argument(
        "--from", dest="kind", choices=KINDS, default="kaldi", help="format; default: kaldi"
    )
    sets = command.add_argument_group("--from kaldi")
    sets.add_argument("--train-set", metavar="NAME", help="default: train")
    sets.add_argument("--valid-set", metavar="NAME", help="default: dev")
    sets.add_argument(
        "--test-sets", metavar="'NAME ...'", help="default: all whose name begins with test"
    )
    sets.add_argument("--extra-sets", metavar="'NAME ...'", help="further sets, if they exist")
    others = command.add_argument_group("the other formats")
    others.add_argument(
        "--audio",
        type=Path,
        metavar="FOLDER",
        help="write the audio of each utterance to a file in this new folder",
    )
    others.add_argument(
        "--fields",
        metavar="'WHAT=NAME ...'",
        help="nemo, webdataset, datasets: the field or column that holds the text, speaker or id "
        "(datasets: also the audio)",
    )
    others.add_argument(
        "--tars",
        metavar="PATTERN",
        help="nemo: the archives; default: audio_<shard_id>.tar beside the manifest or above it",
    )
    command.add_argument("source")
    command.add_argument("target", type=Path)


def check_import(args: argparse.Namespace, options: argparse.ArgumentParser) -> None:
    """Refuse options of another format, and read --fields."""
    for name in ("train_set", "valid_set", "test_sets", "extra_sets", "audio", "fields", "tars"):
        option = f"--{name.replace('_', '-')}"
        if getattr(args, name) is not None and option not in KINDS[args.kind]:
            options.error(f"{option} does not apply to --from {args.kind}")
    known = {"text", "speaker", "id"} | ({"audio"} if args.kind == "datasets" else set())
    fields = dict(word.partition("=")[::2] for word in (args.fields or "").split())
    if not fields.keys() <= known or not all(fields.values()):
        options.error(
            f"--fields is '{args.fields}', expected 'WHAT=NAME ...' with {', '.join(sorted(known))}"
        )
    args.fields = fields


def take(args: argparse.Namespace) -> None:
    if args.kind == "kaldi":
        tests, more = (args.test_sets or "").split(), (args.extra_sets or "").split()
        train_set, valid_set = args.train_set or "train", args.valid_set or "dev"
        prepared.take(Path(args.source), args.target, train_set, valid_set, tests, more)
    else:
        take_other(args)


def opened(args: argparse.Namespace) -> Source:
    """The source in the format of another toolkit."""
    match args.kind:
        case "wenet":
            return webdataset.open_wenet(args.source)
        case "webdataset":
            return webdataset.open_webdataset(args.source, args.fields)
        case "nemo":
            return nemo.open_nemo(args.source, args.tars, args.fields)
        case "lhotse":
            return lhotse.open_lhotse(args.source)
        case _:
            return huggingface.open_datasets(args.source, args.fields)


def take_other(args: argparse.Namespace) -> None:
    """Write one data directory, unless it is up to date."""
    source = opened(args)
    options = {
        "from": args.kind,
        "source": args.source,
        "fields": args.fields,
        "archives": {str(path): path.stat().st_size for path in source.archives},
        "audio": args.audio and str(args.audio),
    }
    with stamp.building(args.target, "data", source.manifests, options) as target:
        if target is None:
            return
        if args.audio is None:
            taking.take(source, target, args.target, None)
            return
        if args.audio.exists() and stamp.read(args.audio) is None:
            raise UserError(f"{args.audio} exists already; give a new folder as --audio")
        with stamp.building(args.audio, "audio", (), options, force=True) as aside:
            taking.take(source, target, args.target, taking.Folder(aside, args.audio))


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
        "take ready data directories as those of a recipe, or a set of WeNet, NeMo, lhotse ...",
    ),
}


if __name__ == "__main__":
    main()
