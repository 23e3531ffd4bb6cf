#!/usr/bin/env python
"""LibriSpeech, speechocean762 and Common Voice -> data directories train, dev, test_<corpus>.

--corpus contains the corpora as published, or existing data directories (see `layouts.py`).
lists/<corpus>/<set>.txt has the ids of a set, so everybody with the corpora gets the same sets. A
Common Voice release with client ids keeps its own sets. Labels: corpus, and accent if one is
declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import layouts

from asrtool.data import corpus, tree
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.types import Utterance

LISTS = Path(__file__).resolve().parents[1] / "lists"
# corpus -> test set -> name of its list; train and dev combine all corpora
TESTS = {
    "librispeech": {"test_librispeech": "test", "test_librispeech_other": "test_other"},
    "speechocean762": {"test_speechocean762": "test"},
    "commonvoice": {"test_commonvoice": "test"},
}


class Part(NamedTuple):
    """The utterances of one corpus in one set."""

    layout: layouts.Layout
    name: str  # name of the list, without .txt

    @property
    def listing(self) -> Path:
        return LISTS / self.layout.corpus / f"{self.name}.txt"

    @property
    def inputs(self) -> list[Path]:
        return [*self.layout.inputs, *([] if self.layout.has_own_sets else [self.listing])]


def main() -> None:
    options = corpus.parser(__doc__)
    options.add_argument(
        "--parts", default=" ".join(TESTS), help=f"corpora to use (default: {' '.join(TESTS)})"
    )
    args = options.parse_args()
    names = args.parts.split()
    unknown = [name for name in names if name not in TESTS]
    if unknown or not names:
        raise UserError(
            f"--parts '{args.parts}': expected some of {', '.join(TESTS)}, separated by spaces"
        )
    corpora = [layouts.find(args.corpus, name) for name in names]
    sets = {name: [Part(layout, name) for layout in corpora] for name in ("train", "dev")}
    for layout in corpora:
        for name, listing in TESTS[layout.corpus].items():
            sets[name] = [Part(layout, listing)]
    code = [Path(__file__), Path(layouts.__file__)]
    corpus.write_sets(
        args.out,
        {
            name: corpus.Source(
                partial(build, parts),
                [*code, *(path for part in parts for path in part.inputs)],
                {"corpora": [str(part.layout.folder) for part in parts]},
            )
            for name, parts in sets.items()
        },
    )
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def build(parts: Sequence[Part], _: Path) -> corpus.CorpusSet:
    utterances: list[Utterance] = []
    left_out: list[str] = []
    for part in parts:
        selected = select(part)
        for row in selected.utterances:
            labels = {"corpus": part.layout.corpus, **row.labels}
            utterances.append(replace(row, labels=labels))
        left_out += selected.left_out
        hours = sum(row.duration for row in selected.utterances) / 3600
        logger.info(
            "%s, %s: %d utterances, %.2f hours",
            part.layout.corpus,
            part.name,
            len(selected.utterances),
            hours,
        )
    return corpus.CorpusSet(utterances, left_out)


def select(part: Part) -> corpus.CorpusSet:
    """The utterances of a part, and a sentence for each listed one that is missing."""
    if part.layout.has_own_sets:
        return part.layout.read(part.name, ())
    wanted = [line for _, line in tree.lines(part.listing)]
    read = part.layout.read(part.name, wanted)
    known = {row.id for row in read.utterances}
    known |= {sentence.partition(":")[0] for sentence in read.left_out}
    lost = [key for key in wanted if key not in known]
    if tree.too_many(len(lost), len(wanted)):
        raise UserError(
            f"'{part.layout.folder}' lacks {len(lost)} of {len(wanted)} utterances of "
            f"{part.listing}; first {lost[0]}; is the corpus unpacked completely?"
        )
    missing = [f"{key}: is listed, but '{part.layout.folder}' has no such audio" for key in lost]
    return corpus.CorpusSet(read.utterances, read.left_out + missing)


if __name__ == "__main__":
    corpus.run(main)
