#!/usr/bin/env python
"""A Markdown table of systems over seeds, from the score.json files of stage 5.

    python studies/table.py --exp exp/mini --seeds "0 1 2" --against full "full={qifusion}/whole"
        "16={qifusion}/c16"

`name={tag}/folder` is the decoding exp/<tag>-s<seed>/<folder>/<set> of each seed. Intervals are
those of the mean over seeds (Student's t, 95 %); differences are taken seed by seed. With one seed,
the interval is the bootstrap over utterances, and differences have none.
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
    options.add_argument("--set", default="test")
    options.add_argument("--label", default="subdialect")
    options.add_argument("--against", help="name of the system that the others are compared with")
    options.add_argument(
        "--by", help="two more tables: error rates and recalls for each value of this label"
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
        options.error(f"--against {args.against}: no such system; there are {', '.join(scores)}")
    print("\n".join(totals(scores, args.against, args.label)))
    if args.by:
        print("\n" + "\n".join(by_value(scores, args.by)))


def totals(scores: Mapping[str, Sequence[dict]], against: str | None, label: str) -> Iterator[str]:
    """A row for each system."""
    yield (
        "| system | CER % | 95 % | difference, points | relative % | macro average % | accents "
        "right % | 95 % |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, found in scores.items():
        rates = [100 * one["total"]["rate"] for one in found]
        cells = [
            name,
            f"{np.mean(rates):.2f}",
            span(mean_interval(rates) or percent(found[0]["interval"])),
        ]
        if against is None or name == against:
            cells += ["", ""]
        else:
            base = [100 * one["total"]["rate"] for one in scores[against]]
            change = np.subtract(rates, base)
            relative = 100 * change / np.maximum(base, 1e-9)
            cells += [
                f"{change.mean():+.2f} {bracket(mean_interval(change))}",
                f"{relative.mean():+.1f} {bracket(mean_interval(relative))}",
            ]
        macro = [
            100 * one["macro_average"][label]["rate"]
            for one in found
            if label in one.get("macro_average", {})
        ]
        right = [one["recognition"][label] for one in found if label in one.get("recognition", {})]
        accuracy = [100 * one["accuracy"] for one in right]
        cells += [
            f"{np.mean(macro):.2f}" if macro else "",
            f"{np.mean(accuracy):.1f}" if accuracy else "",
        ]
        cells += [span(mean_interval(accuracy) or percent(right[0]["interval"])) if right else ""]
        yield "| " + " | ".join(cell.strip() for cell in cells) + " |"


def by_value(scores: Mapping[str, Sequence[dict]], label: str) -> Iterator[str]:
    """Error rate, then share of the utterances whose accent was recognised, for each value of a
    label.
    """
    values = sorted(
        {value for found in scores.values() for one in found for value in one["groups"][label]}
    )
    head = [f"| {label} | {' | '.join(scores)} |", f"| --- |{' --- |' * len(scores)}"]
    yield from ["CER %, with its interval:", "", *head]
    for value in values:
        cells = []
        for found in scores.values():
            groups = [one["groups"][label][value] for one in found]
            rates = [100 * group["rate"] for group in groups]
            bounds = mean_interval(rates) or percent(groups[0]["interval"])
            cells.append(f"{np.mean(rates):.1f} {bracket(bounds)}".strip())
        yield f"| {value} | {' | '.join(cells)} |"
    yield from ["", "Recognised, %:", "", *head]
    for value in values:
        cells = []
        for found in scores.values():
            classes = [
                one["recognition"][label]["classes"][value]
                for one in found
                if label in one["recognition"]
            ]
            recalls = [100 * one["recall"] for one in classes]
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
