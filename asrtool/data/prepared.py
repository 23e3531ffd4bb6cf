"""A corpus that is a folder of data directories already: `<corpus>/<set>/{wav.scp,text,utt2spk[,utt2dur,utt2<label>]}`.

Recipes take it in the place of the official tree, text as it is. Relative paths of wav.scp start at `<corpus>`.
"""

from __future__ import annotations

import math
from pathlib import Path

from asrtool.data import corpus, datadir
from asrtool.log import logger


def find(folder: Path) -> dict[str, Path]:
    """The prepared sets in `folder` by name; empty where train is not among them, as in an official tree."""
    sets = {path.parent.name: path.parent for path in sorted(folder.glob("*/wav.scp"))}
    return sets if "train" in sets else {}


def read(source: Path) -> corpus.Found:
    """One prepared set; audio is measured only where utt2dur is missing."""
    utterances = datadir.read(source, base=source.parent, measure=False)
    known = [utterance for utterance in utterances if not math.isnan(utterance.duration)]
    rest = corpus.measured([utterance for utterance in utterances if math.isnan(utterance.duration)])
    return corpus.Found(known + rest.utterances, rest.left_out)


def sources(sets: dict[str, Path], train_set: str = "train") -> dict[str, corpus.Source]:
    """The training set, dev and all that begin with test, as they are."""
    names = [train_set, "dev", *sorted(name for name in sets if name.startswith("test"))]
    if not {train_set, "dev"} <= sets.keys() or len(names) < 3:
        raise corpus.CorpusError(
            f"expected prepared sets {train_set}, dev and test (or test_...), found {', '.join(sets)}"
        )
    logger.info("taking the prepared sets %s", ", ".join(names))
    return {
        name: corpus.Source(lambda _, source=sets[name]: read(source), [sets[name]], {"corpus": str(sets[name].parent)})
        for name in names
    }
