#!/usr/bin/env python
"""A Markdown table of systems over seeds, from the score.json files of stage 5.

    python studies/table.py --exp exp/mini --seeds "0 1 2" --against full "full={qifusion}/whole"
        "16={qifusion}/c16"

`name={tag}/folder` stands for the decodings exp/<tag>-s<seed>/<folder>/<set> of all seeds.
Intervals are those of the mean over seeds (Student's t, 95 %); differences are paired by seed. With
one seed, the interval is a bootstrap over utterances, and differences have none.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from asrtool.score.bootstrap import Interval, mean_interval

SYSTEM = re.compile(r"(?P<name>.+)=\{(?P<tag>[^}]+)\}/(?P<folder>\S+)")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("systems", nargs="+", metavar="NAME={TAG}/FOLDER")
    options.add_argument("--exp", type=Path, required=True, help="folder of the experiments")
    options.add_argument("--seeds", required=True, help="as in '0 1 2'")
    options.add_argument("--set", default="test", help="decoded set (default: test)")
    options.add_argument("--label", default="subdialect", help="label that names the accent")
    options.add_argument("--against", help="name of the system to compare the others with")
    options.add_argument(
        "--by", help="also print error rates and recalls for each value of this label"
    )
    args = options.parse_args()
    seeds = args.seeds.split()
    scores = {}
    for text in args.systems:
        match = SYSTEM.fullmatch(text)
        if match is None:
            options.error(f"expected NAME={{TAG}}/FOLDER, got '{text}'")
        paths = [
            args.exp / f"{match['tag']}-s{seed}" / match["folder"] / args.set / "score.json"
            for seed in seeds
        ]
        scores[match["name"]] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if args.against is not None and args.against not in scores:
        options.error(f"--against {args.against}: no such system; expected {', '.join(scores)}")
    print("\n".join(totals(scores, args.against, args.label)))
    if args.by:
        print("\n" + "\n".join(by_value(scores, args.by)))


def totals(scores: Mapping[str, Sequence[dict]], against: str | None, label: str) -> Iterator[str]:
    """The lines of a table with a row for each system."""
    yield (
        "| system | CER % | 95 % | difference, points | relative % | macro average % | accent "
        "accuracy % | 95 % |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, seeds in scores.items():
        rates = [100 * score["total"]["rate"] for score in seeds]
        cells = [
            name,
            f"{np.mean(rates):.2f}",
            span(mean_interval(rates) or percent(seeds[0]["interval"])),
        ]
        if against is None or name == against:
            cells += ["", ""]
        else:
            base = [100 * score["total"]["rate"] for score in scores[against]]
            change = np.subtract(rates, base)
            relative = 100 * change / np.maximum(base, 1e-9)
            cells += [
                f"{change.mean():+.2f} {bracket(mean_interval(change))}",
                f"{relative.mean():+.1f} {bracket(mean_interval(relative))}",
            ]
        macro = [
            100 * score["macro_average"][label]["rate"]
            for score in seeds
            if label in score.get("macro_average", {})
        ]
        recognition = [
            score["recognition"][label] for score in seeds if label in score.get("recognition", {})
        ]
        accuracy = [100 * result["accuracy"] for result in recognition]
        bounds = mean_interval(accuracy) or percent(
            recognition[0]["interval"] if accuracy else None
        )
        cells += [
            f"{np.mean(macro):.2f}" if macro else "",
            f"{np.mean(accuracy):.1f}" if accuracy else "",
            span(bounds) if accuracy else "",
        ]
        yield "| " + " | ".join(cell.strip() for cell in cells) + " |"


def by_value(scores: Mapping[str, Sequence[dict]], label: str) -> Iterator[str]:
    """The lines of two tables by value of a label: error rates, and recalls of the accent."""
    values = sorted(
        {value for seeds in scores.values() for score in seeds for value in score["groups"][label]}
    )
    head = [f"| {label} | {' | '.join(scores)} |", f"| --- |{' --- |' * len(scores)}"]
    yield from ["CER %, with its interval:", "", *head]
    for value in values:
        cells = []
        for seeds in scores.values():
            groups = [score["groups"][label][value] for score in seeds]
            rates = [100 * group["rate"] for group in groups]
            bounds = mean_interval(rates) or percent(groups[0]["interval"])
            cells.append(f"{np.mean(rates):.1f} {bracket(bounds)}".strip())
        yield f"| {value} | {' | '.join(cells)} |"
    yield from ["", "Recall of the accent, %:", "", *head]
    for value in values:
        cells = []
        for seeds in scores.values():
            classes = [
                score["recognition"][label]["classes"][value]
                for score in seeds
                if label in score["recognition"]
            ]
            recalls = [100 * counts["recall"] for counts in classes]
            cells.append(
                f"{np.mean(recalls):.1f} {bracket(mean_interval(recalls))}".strip()
                if recalls
                else ""
            )
        yield f"| {value} | {' | '.join(cells)} |"


def percent(bounds: Sequence[float] | None) -> Interval:
    return None if bounds is None else (100 * bounds[0], 100 * bounds[1])


def span(bounds: Interval) -> str:
    return "undefined" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def bracket(bounds: Interval) -> str:
    return "" if bounds is None else f"({bounds[0]:.1f} to {bounds[1]:.1f})"


if __name__ == "__main__":
    main()
