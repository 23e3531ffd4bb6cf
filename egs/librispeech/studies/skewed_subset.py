#!/usr/bin/env python
"""Two halves of a training set for the study of losses: one with few rare letters, and an even one
of as many hours.

    python studies/skewed_subset.py --data data/train_10h

Rare letters are those that together make up at most `--rare` of all letters, counted from the
rarest on. <data>_skewed has the utterances with the smallest share of rare letters, until they are
`--share` of the speech; ties are taken by id. <data>_even has those whose ids have the smallest
SHA-256, until they are as long. So both depend on transcripts, lengths and ids alone: anyone with
the corpus gets the same.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from asrtool.data.kaldi import ops


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="data directory to choose from")
    options.add_argument("--share", type=float, default=0.5, help="of the speech (default: half)")
    options.add_argument(
        "--rare", type=float, default=0.1, help="of the letters that count as rare (default: 0.1)"
    )
    args = options.parse_args()
    source = ops.Source(args.data)
    texts, seconds = source.values("text"), source.durations()
    rare = rare_letters(texts, args.rare)
    scarce = {key: rare_share([text], rare) for key, text in texts.items()}
    orders = {
        "skewed": sorted(texts, key=lambda key: (scarce[key], key)),
        "even": sorted(texts, key=lambda key: hashlib.sha256(key.encode()).hexdigest()),
    }
    print(
        f"\nRare letters: {' '.join(sorted(rare))}\n\n| set | utterances | hours | rare letters % |"
    )
    print("| --- | --- | --- | --- |")
    for name, order in {"": list(texts), **orders}.items():
        chosen = until(order, seconds, args.share) if name else order
        target = args.data.with_name(f"{args.data.name}_{name}") if name else args.data
        if name:
            ops.select(args.data, target, chosen)
        hours = sum(seconds[key] for key in chosen) / 3600
        share = rare_share([texts[key] for key in chosen], rare)
        print(f"| {target.name} | {len(chosen)} | {hours:.2f} | {100 * share:.2f} |")


def rare_letters(texts: Mapping[str, str], share: float) -> set[str]:
    """The rarest letters, which together are at most `share` of all."""
    counts = Counter("".join(texts.values()).replace(" ", ""))
    found, room = set(), share * counts.total()
    for letter, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        room -= count
        if room < 0:
            break
        found.add(letter)
    return found


def rare_share(texts: Sequence[str], rare: set[str]) -> float:
    """Of the letters of the texts, 0 where they have none."""
    letters = "".join(texts).replace(" ", "")
    return sum(letter in rare for letter in letters) / max(1, len(letters))


def until(order: Sequence[str], seconds: Mapping[str, float], share: float) -> list[str]:
    """The first ones that are at least `share` of the speech."""
    left, chosen = share * sum(seconds.values()), []
    for key in order:
        if left <= 0:
            break
        chosen.append(key)
        left -= seconds[key]
    return chosen


if __name__ == "__main__":
    main()
