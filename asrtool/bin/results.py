"""Write RESULTS.md for exp/: error rates with intervals, parameters, config differences, commands,
and published results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from asrtool.log import plural
from asrtool.score.results_page import collect, markdown
from asrtool.score.stored import replace_text
from asrtool.system import stamp
from asrtool.trainer.folder import NEUTRAL


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    tables = collect(options.exp, options.baseline)
    if options.format == "json":
        text = (
            json.dumps(
                [row.json() for table in tables for row in table.rows], ensure_ascii=False, indent=1
            )
            + "\n"
        )
    else:
        text = markdown(tables, NEUTRAL, options.recipe)
    if options.out is None:
        print(text, end="")
        return
    with stamp.locked(options.out, wait=True):  # recipes may end at the same time
        replace_text(options.out, text)
    print(f"{plural(sum(len(table.rows) for table in tables), 'result')} in {options.out}")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="asrtool results", description=__doc__, allow_abbrev=False
    )
    option = parser.add_argument
    option(
        "exp",
        type=Path,
        nargs="?",
        default=Path("exp"),
        help="folder of experiments (default: exp)",
    )
    option("--out", type=Path, help="file to write, such as RESULTS.md (default: the terminal)")
    option(
        "--baseline",
        default="",
        metavar="TAG",
        help="whose config others are compared with (default: the first)",
    )
    option(
        "--recipe",
        default="",
        help="whose published numbers to show (default: the folder that exp lies in)",
    )
    option("--format", choices=["md", "json"], default="md")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
