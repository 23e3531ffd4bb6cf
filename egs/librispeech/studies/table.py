#!/usr/bin/env python
"""A Markdown table of systems over seeds, from the score.json files of stage 5.

    python studies/table.py --exp exp/mini --seeds "0 1 2" --sets "dev test_clean" --against CTC \\
        "CTC={ctc}"

`name={tag}` stands for the decodings exp/<tag>-s<seed>/<decode>/<set> of all seeds. The first set
is the development set; the last column is the gap between it and the test sets. Intervals are those
of the mean over seeds (Student's t, 95 %); relative changes are paired by seed. With one seed there
are none.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asrtool.score.bootstrap import mean_interval


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("systems", nargs="+", metavar="NAME={TAG}")
    options.add_argument("--exp", type=Path, required=True, help="folder of the experiments")
    options.add_argument("--seeds", required=True, help="as in '0 1 2'")
    options.add_argument("--sets", required=True, help="development set, then test sets")
    options.add_argument("--decode", default="greedy", help="folder of the decoding")
    options.add_argument(
        "--against", required=True, help="name of the system to compare the others with"
    )
    args = options.parse_args()
    seeds, sets = args.seeds.split(), args.sets.split()
    rates = {}
    for text in args.systems:
        match = re.fullmatch(r"(.+)=\{([^}]+)\}", text)
        if match is None:
            options.error(f"expected NAME={{TAG}}, got '{text}'")
        rates[match[1]] = np.array(
            [
                [
                    rate(args.exp / f"{match[2]}-s{seed}" / args.decode / name / "score.json")
                    for seed in seeds
                ]
                for name in sets
            ]
        )
    if args.against not in rates:
        options.error(f"--against {args.against}: no such system; expected {', '.join(rates)}")
    print(
        "| system | "
        + " | ".join(f"{name}, WER % | relative %" for name in sets)
        + " | test - dev, points |"
    )
    print("| --- |" + " --- | --- |" * len(sets) + " --- |")
    for name, by_set in rates.items():
        cells = [name]
        for system, base in zip(by_set, rates[args.against], strict=True):
            change = 100 * (system - base) / np.maximum(base, 1e-9)
            cells += [spread(system, ".2f"), "" if name == args.against else spread(change, "+.1f")]
        cells.append(spread(by_set[1:].mean(0) - by_set[0], "+.2f") if len(sets) > 1 else "")
        print("| " + " | ".join(cells) + " |")


def rate(path: Path) -> float:
    """Word error rate in percent."""
    return 100 * json.loads(path.read_text(encoding="utf-8"))["total"]["rate"]


def spread(values: Sequence[float], form: str) -> str:
    """Mean and its interval."""
    text = format(np.mean(values), form)
    bounds = mean_interval(values)
    return text if bounds is None else f"{text} ({bounds[0]:{form}} to {bounds[1]:{form}})"


if __name__ == "__main__":
    main()
