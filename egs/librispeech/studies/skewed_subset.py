#!/usr/bin/env python
"""Two subsets of a training set for the study of losses: one with few rare letters, one at random.

    python studies/skewed_subset.py --data data/train_10h

The rare letters are the rarest ones that together are at most `--rare` of all letters.
<data>_skewed has the utterances with the smallest share of rare letters, up to `--share` of the
speech; ties are broken by id. <data>_even has as much speech, in the order of the SHA-256 of the
ids. Both depend only on transcripts, lengths and ids: everybody with the corpus gets the same sets.
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
    options.add_argument("--data", type=Path, required=True, help="data directory to select from")
    options.add_argument(
        "--share", type=float, default=0.5, help="share of the speech to select (default: 0.5)"
    )
    options.add_argument(
        "--rare", type=float, default=0.1, help="share of the letters that are rare (default: 0.1)"
    )
    args = options.parse_args()
    source = ops.Source(args.data)
    texts, seconds = source.values("text"), source.durations()
    rare = rare_letters(texts, args.rare)
    shares = {key: rare_share([text], rare) for key, text in texts.items()}
    orders = {
        "skewed": sorted(texts, key=lambda key: (shares[key], key)),
        "even": sorted(texts, key=lambda key: hashlib.sha256(key.encode()).hexdigest()),
    }
    print(
        f"\nRare letters: {' '.join(sorted(rare))}\n\n| set | utterances | hours | rare letters % |"
    )
    print("| --- | --- | --- | --- |")
    for name, order in {"": list(texts), **orders}.items():
        selected = until(order, seconds, args.share) if name else order
        target = args.data.with_name(f"{args.data.name}_{name}") if name else args.data
        if name:
            ops.select(args.data, target, selected)
        hours = sum(seconds[key] for key in selected) / 3600
        share = rare_share([texts[key] for key in selected], rare)
        print(f"| {target.name} | {len(selected)} | {hours:.2f} | {100 * share:.2f} |")


def rare_letters(texts: Mapping[str, str], share: float) -> set[str]:
    """The rarest letters that together are at most `share` of all."""
    counts = Counter("".join(texts.values()).replace(" ", ""))
    rare, remaining = set(), share * counts.total()
    for letter, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        remaining -= count
        if remaining < 0:
            break
        rare.add(letter)
    return rare


def rare_share(texts: Sequence[str], rare: set[str]) -> float:
    """The share of rare letters in the texts; 0 if they have no letters."""
    letters = "".join(texts).replace(" ", "")
    return sum(letter in rare for letter in letters) / max(1, len(letters))


def until(order: Sequence[str], seconds: Mapping[str, float], share: float) -> list[str]:
    """The first ids of `order` that together are at least `share` of the speech."""
    remaining, selected = share * sum(seconds.values()), []
    for key in order:
        if remaining <= 0:
            break
        selected.append(key)
        remaining -= seconds[key]
    return selected


if __name__ == "__main__":
    main()
