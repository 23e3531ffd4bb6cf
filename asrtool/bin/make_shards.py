"""Pack a data directory into tar archives of a few gigabytes, which training reads sequentially."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from asrtool.bin.extract_features import report_skipped
from asrtool.data.shards import packing
from asrtool.log import logger, plural, set_up
from asrtool.system import stamp

LAYOUT = 2  # of the archives: 1 had the audio or features alone


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool make_shards", description=__doc__)
    options.add_argument("--data", type=Path, required=True, help="data directory to read")
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write: that data directory in shards"
    )
    options.add_argument(
        "--of", choices=("audio", "features"), default="audio", help="content of the archives"
    )
    options.add_argument(
        "--size-mb", type=float, default=2000.0, help="size of an archive, in megabytes"
    )
    options.add_argument(
        "--seed", type=int, default=0, help="seed of the order in which utterances are distributed"
    )
    options.add_argument(
        "--force", action="store_true", help="write them again, even if nothing changed"
    )
    args = options.parse_args(argv)
    if args.size_mb <= 0:
        options.error(f"--size-mb is {args.size_mb:g}, expected above 0")
    return args


def run(args: argparse.Namespace) -> None:
    """Build the folder, unless it is up to date."""
    options = {"of": args.of, "size_mb": args.size_mb, "seed": args.seed, "layout": LAYOUT}
    pack = packing.pack_audio if args.of == "audio" else packing.pack_features
    with stamp.building(args.out, "shards", [args.data], options, args.force) as target:
        if target is None:
            return
        packed = pack(args.data, target, final=args.out, megabytes=args.size_mb, seed=args.seed)
        total = len(packed.members) + len(packed.skipped)
        report_skipped(args.data, list(packed.skipped.items()), total, target, args.out)
    hours = sum(packed.seconds.values()) / 3600
    length = "of unknown length (no utt2dur)" if math.isnan(hours) else f"{hours:.2f} hours"
    size = sum(member.size for member in packed.members.values()) / 1e6
    count, shards = plural(len(packed.members), "utterance"), plural(packed.archives, "shard")
    logger.info("%s: %s, %s, %.1f MB in %s", args.out, count, length, size, shards)
    if len(packed.kinds) > 1:
        logger.info(
            "%s: the audio is %s; Hugging Face datasets reads shards of one format only",
            args.out,
            " and ".join(sorted(packed.kinds)),
        )


if __name__ == "__main__":
    main()
