#!/usr/bin/env python
"""The sets of the studies, lists/studies/*.txt, from the ids and lengths of a training set.

    python studies/make_lists.py --data data/train

The lists are committed, so anyone with the corpora trains on the same utterances; this script says
how they were drawn. All but `accents` are of LibriSpeech.

* `dev_speakers`: 20 speakers of one utterance each (those of the lists that were drawn one sentence
  a speaker), the first by the SHA-256 of the id. They are left out of every training list.
* `train`: all other utterances.
* `train_1h`, `train_10min`: nested subsets. Speakers take turns, each with its next utterance by
  the SHA-256 of the id, until the hours are reached; so no speaker has more than one utterance
  more than another one that has any left.
* `train_1h_few_rare`: an hour with as few rare letters as possible, chosen as
  egs/librispeech/studies/skewed_subset.py does, to see what class weights do.
* `accents`: `train_1h`, an hour and a half of speechocean762, drawn in the same way, and all of
  Common Voice, so that no accent is more than half of it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from asrtool.data.kaldi import datadir
from asrtool.system import atomic
from asrtool.types import Utterance

RECIPE = Path(__file__).resolve().parents[1]
sys.path.append(str(RECIPE.parent / "librispeech" / "studies"))

from skewed_subset import rare_letters, rare_share, until  # noqa: E402

LISTS = RECIPE / "lists" / "studies"
RARE = 0.1  # of the letters that count as rare
HELD_OUT = 20  # speakers
SUBSETS = {"train_1h": 3600.0, "train_10min": 600.0}  # seconds
MANDARIN = 5400.0  # seconds of speechocean762 in `accents`


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="training set of stage 0")
    options.add_argument("--out", type=Path, default=LISTS)
    args = options.parse_args()
    by_corpus = defaultdict(list)
    for row in datadir.read(args.data):
        by_corpus[row.labels["corpus"]].append(row)
    lists = draw(by_corpus["librispeech"])
    mandarin = until_full(in_turn(speakers_of(by_corpus["speechocean762"])), MANDARIN)
    common_voice = [row.id for row in by_corpus["commonvoice"]]
    lists["accents"] = [*lists["train_1h"], *mandarin, *common_voice]
    for name, ids in lists.items():
        atomic.write_text(args.out / f"{name}.txt", "".join(f"{key}\n" for key in sorted(ids)))


def draw(rows: Sequence[Utterance]) -> dict[str, list[str]]:
    """List -> ids of utterances, of the rows of LibriSpeech."""
    by_speaker = speakers_of(rows)
    single = sorted((own[0].id for own in by_speaker.values() if len(own) == 1), key=digest)
    held_out = single[:HELD_OUT]
    lists = {"dev_speakers": held_out}
    order = [row for row in in_turn(by_speaker) if row.id not in held_out]
    lists["train"] = [row.id for row in order]
    for name, seconds in SUBSETS.items():
        lists[name] = until_full(order, seconds)
    lists["train_1h_few_rare"] = few_rare(order, SUBSETS["train_1h"])
    return lists


def few_rare(rows: Sequence[Utterance], seconds: float) -> list[str]:
    """So many seconds of the utterances with the smallest shares of rare letters."""
    rare = rare_letters({row.id: row.text for row in rows}, RARE)
    shares = {row.id: rare_share([row.text], rare) for row in rows}
    durations = {row.id: row.duration for row in rows}
    order = sorted(shares, key=lambda key: (shares[key], key))
    return until(order, durations, seconds / sum(durations.values()))


def speakers_of(rows: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """Speaker -> its utterances by the SHA-256 of the id."""
    by_speaker = defaultdict(list)
    for row in sorted(rows, key=lambda row: digest(row.id)):
        by_speaker[row.speaker].append(row)
    return by_speaker


def until_full(rows: Iterable[Utterance], seconds: float) -> list[str]:
    """The ids of the first rows that make up so many seconds."""
    ids = []
    for row in rows:
        if seconds <= 0:
            break
        ids.append(row.id)
        seconds -= row.duration
    return ids


def in_turn(by_speaker: Mapping[str, Sequence[Utterance]]) -> Iterator[Utterance]:
    """The first utterance of every speaker, then the second, and so on."""
    speakers = sorted(by_speaker, key=digest)
    for turn in range(max(map(len, by_speaker.values()))):
        yield from (by_speaker[name][turn] for name in speakers if turn < len(by_speaker[name]))


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


if __name__ == "__main__":
    main()
