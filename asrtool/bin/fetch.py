"""Download a model from the Hugging Face Hub, check it, and print its folder.

    asrtool fetch hf:user/model
    asrtool fetch hf:user/model@v1.0

Commands that take the folder of a model also take its name on the hub; this one is for scripts, and
for machines that will have no network later. A local folder is checked and printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from asrtool import log
from asrtool.model_folder import open_folder


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        prog="asrtool fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("model", help="hf:user/model or hf:user/model@revision")
    args = options.parse_args(argv)
    log.set_up()
    print(open_folder(args.model))


if __name__ == "__main__":
    main()
