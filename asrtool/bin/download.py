"""Stage -1: download an archive, check it and unpack it; resumes an interrupted download."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from asrtool.data import download
from asrtool.log import logger, set_up


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    done = args.into / args.makes if args.makes else args.into
    if done.exists():
        if args.nested:
            download.unpack_nested(done, args.nested)
        logger.info("%s already exists", done)
        return
    args.into.parent.mkdir(parents=True, exist_ok=True)
    archive = args.into.with_name(f"{args.into.name}-{Path(urlsplit(args.url).path).name}")
    download.fetch(args.url, archive, args.sha256, md5=args.md5, size=args.bytes)
    expect = (args.expect[0], int(args.expect[1])) if args.expect else None
    download.unpack(archive, args.into, args.makes, expect, args.nested)
    archive.unlink()
    logger.info("%s: done", done)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool download", description=__doc__)
    options.add_argument("url", help="a .tar.gz, .tar or .zip that holds one folder")
    options.add_argument("--into", type=Path, required=True, help="name for the unpacked folder")
    options.add_argument(
        "--makes",
        metavar="NAME",
        help="subfolder that this archive adds; others may exist already",
    )
    options.add_argument("--sha256", help="checksum of the archive")
    options.add_argument("--md5", help="checksum of the archive")
    options.add_argument("--bytes", type=int, help="size of the archive")
    options.add_argument(
        "--nested", metavar="PATTERN", help="archives inside that are unpacked too"
    )
    options.add_argument(
        "--expect",
        nargs=2,
        metavar=("PATTERN", "COUNT"),
        help="number of files with this name in the archive",
    )
    return options.parse_args(argv)


if __name__ == "__main__":
    main()
