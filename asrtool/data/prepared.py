"""A folder of prepared data directories, used instead of a corpus.

Each set is `<folder>/<set>/{wav.scp,text,utt2spk[,utt2dur,segments,utt2<label>]}`. Text is kept as
it is, features are computed. `--data-dirs <folder>` takes any sets; `--corpus <folder>` those that
a recipe's data preparation knows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asrtool.data import corpus
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.log import logger


def find(folder: Path) -> dict[str, Path]:
    """The prepared sets in `folder` by name; empty if train is not among them."""
    sets = all_of(folder)
    return sets if "train" in sets else {}


def all_of(folder: Path) -> dict[str, Path]:
    """Every data directory in `folder` by name."""
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/wav.scp"))}


def read(source: Path, base: Path | None = None) -> corpus.CorpusSet:
    """Read one set; audio is measured only if no file gives its length.

    Relative paths of wav.scp start at `base`, by default at the parent of the set's folder.
    """
    rows = datadir.read(source, base=base or source.parent, measure=False)
    # stored features of another kind, or of another folder, must not be taken for this recipe's
    rows = [replace(row, features=None, num_frames=None) for row in rows]
    known = [row for row in rows if not math.isnan(row.duration)]
    rest = corpus.measured([row for row in rows if math.isnan(row.duration)])
    return corpus.CorpusSet(known + rest.utterances, rest.left_out)


def sources(sets: dict[str, Path], train_set: str = "train") -> dict[str, corpus.Source]:
    """The training set, dev and all sets that start with test, as they are."""
    names = [train_set, "dev", *sorted(name for name in sets if name.startswith("test"))]
    if not {train_set, "dev"} <= sets.keys() or len(names) < 3:
        raise UserError(
            f"expected prepared sets {train_set}, dev and test (or test_...), got {', '.join(sets)}"
        )
    logger.info("using the prepared sets %s", ", ".join(names))
    return {
        name: corpus.Source(
            lambda _, source=sets[name]: read(source),
            [sets[name]],
            {"corpus": str(sets[name].parent)},
        )
        for name in names
    }


def take(
    folder: Path,
    out: Path,
    train_set: str,
    valid_set: str,
    test_sets: Sequence[str] = (),
    more: Sequence[str] = (),
) -> list[str]:
    """Write a recipe's data directories to `out` unless up to date; returns the test sets.

    test_sets: by default all whose names start with test; more: further sets, used where the folder
    has them. Relative paths of wav.scp are searched in the current folder, in `folder` and in its
    parents, and made absolute.
    """
    sets = all_of(folder)
    tests = list(test_sets) or [
        name for name in sets if name.startswith("test") and name not in (train_set, valid_set)
    ]
    names = list(
        dict.fromkeys([train_set, valid_set, *tests, *(name for name in more if name in sets)])
    )
    absent = [name for name in names if name not in sets]
    if absent or not tests:
        missing = ", ".join(absent) or "test sets, whose names start with test"
        known = ", ".join(sets) or "no <set>/wav.scp in it"
        raise UserError(
            f"{folder}: there is no data directory {missing}; found: {known}; choose others with"
            " --train-set, --valid-set and --test-sets"
        )
    made = {}
    for name in names:
        if (out / name).exists() and os.path.samefile(out / name, sets[name]):
            logger.info("%s: the data directory is up to date", out / name)
            continue
        # Kaldi's relative paths start where its commands are run: in the recipe's folder, which
        # contains that of the sets.
        base = (
            datadir.base_of(sets[name], [Path.cwd(), *sets[name].resolve().parents]) or Path.cwd()
        )
        options = {"folder": str(sets[name]), "base": str(base)}
        made[name] = corpus.Source(
            lambda _, source=sets[name], base=base: read(source, base), [sets[name]], options
        )
    corpus.write_sets(out, made)
    corpus.write_test_sets(out, tests)
    return tests
