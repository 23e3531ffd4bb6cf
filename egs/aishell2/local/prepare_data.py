#!/usr/bin/env python
"""AISHELL-2 (https://www.aishelltech.com/aishell_2) -> train, dev, test_{ios,android,mic}.

--corpus contains AISHELL-2/iOS/data and AISHELL-DEV-TEST-SET/{iOS,Android,Mic}/{dev,test}; or it is
AISHELL-2 itself, with the other folder next to it, or with dev and test inside. Each set has
wav.scp, trans.txt and wav/<speaker>/. It can also be a folder of data directories (see
asrtool/data/prepared.py). train_100 is a subset of 100 hours.
"""

from __future__ import annotations

from pathlib import Path

from asrtool.data import corpus, prepared, tree
from asrtool.log import logger
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

CHANNELS = ("iOS", "Android", "Mic")
# utterances and characters of each channel
OFFICIAL = {"dev": (2500, None), "test": (5000, 49527)}
HOURS = {"train": None, "train_100": 100.0}


def main() -> None:
    args = corpus.parser(__doc__, tuple(HOURS)).parse_args()
    ready = prepared.find(args.corpus)
    sets = (
        prepared.sources(ready, args.train_set) if ready else official(args.corpus, args.train_set)
    )
    corpus.write_sets(args.out, sets)
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def official(folder: Path, train_set: str) -> dict[str, corpus.Source]:
    root = tree.root(folder, "AISHELL-2", "iOS")
    folders = {train_set: tree.need(root / "iOS" / "data"), "dev": held_out(root, "iOS", "dev")}
    for channel in CHANNELS:
        path = held_out(root, channel, "test")
        if channel == CHANNELS[0] or path.exists():
            folders[f"test_{channel.lower()}"] = path
        else:
            logger.warning("there is no %s; continuing without this test set", path)
    for path in folders.values():
        for name in ("wav.scp", "trans.txt", "wav"):
            tree.need(path / name)
    return {
        name: corpus.Source(
            lambda _, name=name, path=path: build(path, HOURS.get(name), tree.is_miniature(root)),
            [Path(__file__), path],
            {"corpus": str(path), "hours": HOURS.get(name)},
        )
        for name, path in folders.items()
    }


def held_out(root: Path, channel: str, name: str) -> Path:
    """The folder of a channel's development or test set; the official path if there is none."""
    official = root.parent / "AISHELL-DEV-TEST-SET"
    for parent in (official, root / official.name, root):
        if (parent / channel / name).exists():
            return parent / channel / name
    return official / channel / name


def build(folder: Path, hours: float | None, miniature: bool) -> corpus.CorpusSet:
    """The utterances of one folder; the speaker is the name of the audio's folder."""
    files = tree.Table([folder / "wav.scp"])
    texts = tree.Table([folder / "trans.txt"])
    ids, left_out = tree.join(texts, files)
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
        kept if hours is None else corpus.subset(kept, hours), list(left_out.values()) + unreadable
    )


if __name__ == "__main__":
    corpus.run(main)
