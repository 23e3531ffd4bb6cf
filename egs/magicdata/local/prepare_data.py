#!/usr/bin/env python
"""MagicData-RAMC (https://www.openslr.org/123) or MagicData (.../68) -> train, dev, test.

--kind ramc: dialogues of two speakers, cut into segments. --corpus or its MagicData-RAMC/ contains
DataPartition/{train,dev,test}.tsv and MDT2021S003/{WAV,TXT,SPKINFO.txt}. --kind read: read
sentences. --corpus or its MAGICDATA/ contains {train,dev,test}/{TRANS.txt,<speaker>/<utterance
id>.wav}. Both can be a folder of data directories instead (see asrtool/data/prepared.py). Labels:
gender and region, for RAMC also accent and city.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import dialogues

from asrtool.data import corpus, prepared, tree
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

SETS = ("train", "dev", "test")
# utterances of the read speech whose text does not match the audio
BROKEN = {"16_4013_20170819121429", "18_1565_20170712000170"}


def main() -> None:
    options = corpus.parser(__doc__)
    options.add_argument(
        "--kind", choices=("ramc", "read"), default="ramc", help="dialogues, or read sentences"
    )
    args = options.parse_args()
    ready = prepared.find(args.corpus)
    sets = (
        prepared.sources(ready)
        if ready
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
    recordings = {name: dialogues.recordings(path) for name, path in parts.items()}
    dialogues.check_disjoint(recordings, texts)
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
            lambda _, name=name: build(name, recordings[name]),
            [*inputs, path],
            {"corpus": str(root)},
        )
        for name, path in parts.items()
    }


def read_speech(folder: Path) -> dict[str, corpus.Source]:
    root = tree.root(folder, "MAGICDATA", "train")
    folders = {name: tree.need(root / name) for name in SETS}
    for path in folders.values():
        tree.need(path / "TRANS.txt")
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
            partial(build_read, path, info),
            [Path(__file__), path, *([info] if info else [])],
            {"corpus": str(root)},
        )
        for name, path in folders.items()
    }


def build_read(folder: Path, info: Path | None, _: Path) -> corpus.CorpusSet:
    """One set of read speech; the lines of TRANS.txt are `<utterance id>.wav <speaker> <text>`."""
    lines = tree.Table([folder / "TRANS.txt"], r"\w+\.wav", header="UtteranceID")
    audio = {
        f"{key}.wav": path for key, path in tree.audio_by_id(folder).items() if key not in BROKEN
    }
    for key in BROKEN:
        lines.pop(f"{key}.wav", None)
    ids, left_out = tree.join(lines, audio)
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
    return corpus.CorpusSet(kept, list(left_out.values()) + unreadable)


def speaker_labels(info: Path) -> dict[str, dict[str, str]]:
    """Speaker -> gender and region, from SPKINFO.txt (SPKID, Age, Gender, Dialect)."""
    by_speaker = {}
    for row in tree.rows(info):
        columns = {name.lower(): value for name, value in row.items()}
        labels = {
            "gender": columns.get("gender", "")[:1].lower(),
            "region": columns.get("dialect", ""),
        }
        labels = {name: value for name, value in labels.items() if value}
        by_speaker[columns.get("spkid", "")] = labels
    return by_speaker


if __name__ == "__main__":
    corpus.run(main)
