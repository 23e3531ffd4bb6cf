#!/usr/bin/env python
"""MagicData-RAMC (https://www.openslr.org/123) or MagicData read speech (.../68) -> data
directories train, dev, test.

--kind ramc: dialogues of two speakers, cut into segments; DataPartition/{train,dev,test}.tsv and
MDT2021S003/{WAV,TXT,SPKINFO.txt} in --corpus or its MagicData-RAMC/. --kind read: sentences;
{train,dev,test}/{TRANS.txt,<speaker>/<utterance id>.wav}. Either may be a folder of prepared sets
(see asrtool/data/prepared.py). Labels: gender, region, and of RAMC accent and city.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import dialogues

from asrtool.data import corpus, prepared, tree
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

SETS = ("train", "dev", "test")
# of the read speech: text and audio differ
BROKEN = {"16_4013_20170819121429", "18_1565_20170712000170"}


def main() -> None:
    options = corpus.parser(__doc__)
    options.add_argument(
        "--kind", choices=("ramc", "read"), default="ramc", help="dialogues, or read sentences"
    )
    args = options.parse_args()
    found = prepared.find(args.corpus)
    sets = (
        prepared.sources(found)
        if found
        else (read_speech if args.kind == "read" else ramc)(args.corpus)
    )
    corpus.write_sets(args.out, sets)
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def ramc(folder: Path) -> dict[str, corpus.Source]:
    root = tree.root(folder, "MagicData-RAMC", "DataPartition")
    parts = {name: tree.need(root / "DataPartition" / f"{name}.tsv") for name in SETS}
    audio, texts, speakers = (
        tree.need(root / "MDT2021S003" / name) for name in ("WAV", "TXT", "SPKINFO.txt")
    )
    whole = {name: dialogues.recordings(path) for name, path in parts.items()}
    dialogues.check_apart(whole, texts)
    build = partial(
        dialogues.build,
        audio=audio,
        texts=texts,
        speakers=speakers,
        official=not tree.is_miniature(root),
    )
    inputs = [Path(__file__), Path(dialogues.__file__), audio, texts, speakers]
    return {
        name: corpus.Source(
            lambda _, name=name: build(name, whole[name]), [*inputs, path], {"corpus": str(root)}
        )
        for name, path in parts.items()
    }


def read_speech(folder: Path) -> dict[str, corpus.Source]:
    root = tree.root(folder, "MAGICDATA", "train")
    folders = {name: tree.need(root / name) for name in SETS}
    for place in folders.values():
        tree.need(place / "TRANS.txt")
    info = next(
        (
            path
            for path in (root / "SPKINFO.txt", root / "metadata" / "SPKINFO.txt")
            if path.exists()
        ),
        None,
    )
    return {
        name: corpus.Source(
            partial(build_read, place, info),
            [Path(__file__), place, *([info] if info else [])],
            {"corpus": str(root)},
        )
        for name, place in folders.items()
    }


def build_read(folder: Path, info: Path | None, _: Path) -> corpus.CorpusSet:
    """One set of the read speech; lines of TRANS.txt are `<utterance id>.wav <speaker> <text>`."""
    lines = tree.Table([folder / "TRANS.txt"], r"\w+\.wav", header="UtteranceID")
    audio = {
        f"{key}.wav": path for key, path in tree.audio_by_id(folder).items() if key not in BROKEN
    }
    for key in BROKEN:
        lines.pop(f"{key}.wav", None)
    ids, lonely = tree.join(lines, audio)
    labels = speaker_labels(info) if info else {}
    normalize = normalizer("zh-magicdata")
    rows = []
    for key in ids:
        speaker, _, text = lines[key].partition(" ")
        rows.append(
            Utterance(
                id=key.removesuffix(".wav"),
                audio=audio[key],
                duration=0,
                text=normalize(text).upper(),
                speaker=speaker,
                labels=labels.get(speaker, {}),
            )
        )
    kept, unreadable = corpus.measured(rows)
    return corpus.CorpusSet(kept, list(lonely.values()) + unreadable)


def speaker_labels(info: Path) -> dict[str, dict[str, str]]:
    """Speaker -> gender and region from SPKINFO.txt (SPKID, Age, Gender, Dialect)."""
    found = {}
    for row in tree.rows(info):
        columns = {name.lower(): value for name, value in row.items()}
        labels = {
            "gender": columns.get("gender", "")[:1].lower(),
            "region": columns.get("dialect", ""),
        }
        found[columns.get("spkid", "")] = {name: value for name, value in labels.items() if value}
    return found


if __name__ == "__main__":
    corpus.run(main)
