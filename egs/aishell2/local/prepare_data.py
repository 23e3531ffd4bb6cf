#!/usr/bin/env python
"""AISHELL-2 (https://www.aishelltech.com/aishell_2) -> data directories train, dev,
test_{ios,android,mic}.

--corpus holds AISHELL-2/iOS/data and AISHELL-DEV-TEST-SET/{iOS,Android,Mic}/{dev,test}, or is
AISHELL-2 itself, with the other beside it or dev and test in it; each of these folders has wav.scp,
trans.txt and wav/<speaker>/. Or it is a folder of prepared sets (see asrtool/data/prepared.py).
train_100 is a subset of 100 hours.
"""

from __future__ import annotations

from pathlib import Path

from asrtool.data import corpus, prepared, tree
from asrtool.log import logger
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

CHANNELS = ("iOS", "Android", "Mic")
# utterances and characters, of each channel
OFFICIAL = {"dev": (2500, None), "test": (5000, 49527)}
HOURS = {"train": None, "train_100": 100.0}


def main() -> None:
    args = corpus.parser(__doc__, tuple(HOURS)).parse_args()
    found = prepared.find(args.corpus)
    sets = (
        prepared.sources(found, args.train_set) if found else official(args.corpus, args.train_set)
    )
    corpus.write_sets(args.out, sets)
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def official(folder: Path, train_set: str) -> dict[str, corpus.Source]:
    root = tree.root(folder, "AISHELL-2", "iOS")
    folders = {train_set: tree.need(root / "iOS" / "data"), "dev": held_out(root, "iOS", "dev")}
    for channel in CHANNELS:
        place = held_out(root, channel, "test")
        if channel == CHANNELS[0] or place.exists():
            folders[f"test_{channel.lower()}"] = place
        else:
            logger.warning("there is no %s; going on without this test set", place)
    for place in folders.values():
        for name in ("wav.scp", "trans.txt", "wav"):
            tree.need(place / name)
    return {
        name: corpus.Source(
            lambda _, name=name, place=place: build(
                place, HOURS.get(name), tree.is_miniature(root)
            ),
            [Path(__file__), place],
            {"corpus": str(place), "hours": HOURS.get(name)},
        )
        for name, place in folders.items()
    }


def held_out(root: Path, channel: str, name: str) -> Path:
    """Where the development or test set of a channel lies; of the places that are known, the
    official one.
    """
    official = root.parent / "AISHELL-DEV-TEST-SET"
    for place in (official, root / official.name, root):
        if (place / channel / name).exists():
            return place / channel / name
    return official / channel / name


def build(folder: Path, hours: float | None, miniature: bool) -> corpus.CorpusSet:
    """The utterances of one folder; the speaker is the folder of the audio."""
    files = tree.Table([folder / "wav.scp"])
    texts = tree.Table([folder / "trans.txt"])
    ids, lonely = tree.join(texts, files)
    normalize = normalizer("zh-aishell2")
    base = f"{folder}/"
    rows = [
        Utterance(
            id=key,
            audio=tree.listed(base + files[key]),
            duration=0,
            text=normalize(texts[key]).upper(),
            speaker=files[key].split("/")[-2],
        )
        for key in ids
    ]
    kept, unreadable = corpus.measured(rows)
    if folder.name in OFFICIAL and not miniature:
        corpus.compare(str(folder), kept, *OFFICIAL[folder.name])
    return corpus.CorpusSet(
        kept if hours is None else corpus.subset(kept, hours), list(lonely.values()) + unreadable
    )


if __name__ == "__main__":
    corpus.run(main)
