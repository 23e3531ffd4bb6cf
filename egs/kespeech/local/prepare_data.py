#!/usr/bin/env python
"""KeSpeech (https://github.com/KeSpeech/KeSpeech) -> data directories train, dev, test.

Reads Tasks/ASR/{train,dev}_phase{1,2} and Tasks/ASR/test with Metadata and Audio, in --corpus or
its KeSpeech/; or a folder of data directories (see asrtool/data/prepared.py). The training sets
train_phase1 and train_phase2 have one phase each: phase 1 is Mandarin and subdialects, phase 2
Mandarin in other environments. Labels: subdialect, phase, style (phase 1), env (phase 2), and
gender, age and city of the speaker.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from asrtool.data import corpus, prepared, tree
from asrtool.log import logger
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

TRAIN = {
    "train": ["train_phase1", "train_phase2"],
    "train_phase1": ["train_phase1"],
    "train_phase2": ["train_phase2"],
}
HELD_OUT = {"dev": ["dev_phase1", "dev_phase2"], "test": ["test"]}
FILES = ("wav.scp", "text", "utt2spk", "utt2subdialect")
UTTERANCE_LABELS = {"style": "phase1.utt2style", "env": "phase2.utt2env"}  # in Metadata
SPEAKER_LABELS = ("gender", "age", "city")  # in Metadata/spk2<label>
SUBDIALECTS = {
    "Mandarin", "Beijing", "Ji-Lu", "Jiang-Huai", "Jiao-Liao", "Lan-Yin", "Northeastern",
    "Southwestern", "Zhongyuan",
}  # fmt: skip
NOT_SPEECH = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")


def main() -> None:
    args = corpus.parser(__doc__, tuple(TRAIN)).parse_args()
    ready = prepared.find(args.corpus)
    sets = (
        prepared.sources(ready, args.train_set) if ready else official(args.corpus, args.train_set)
    )
    corpus.write_sets(args.out, sets)
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def official(folder: Path, train_set: str) -> dict[str, corpus.Source]:
    root = tree.root(folder, "KeSpeech", "Tasks")
    parts = {train_set: TRAIN[train_set], **HELD_OUT}
    folders = {
        name: [tree.need(root / "Tasks" / "ASR" / part) for part in set_parts]
        for name, set_parts in parts.items()
    }
    for path in (path for paths in folders.values() for path in paths):
        for name in FILES:
            tree.need(path / name)
    metadata, audio = tree.need(root / "Metadata"), tree.need(root / "Audio")
    tables = [*UTTERANCE_LABELS.values(), *(f"spk2{label}" for label in SPEAKER_LABELS)]
    files = [metadata / name for name in tables]
    missing = [path for path in files if not path.exists()]
    if missing:
        logger.warning(
            "there is no %s; continuing without these labels", ", ".join(map(str, missing))
        )
    inputs = [Path(__file__), audio, *(path for path in files if path.exists())]
    return {
        name: corpus.Source(partial(build, root, paths), [*inputs, *paths], {"corpus": str(root)})
        for name, paths in folders.items()
    }


def build(root: Path, folders: list[Path], _: Path) -> corpus.CorpusSet:
    """The utterances of the parts in `folders`, joined from their files by id."""
    wavs, texts, speakers, subdialects = (
        tree.Table([folder / name for folder in folders]) for name in FILES
    )
    ids, unmatched = tree.join(texts, wavs)
    left_out = list(unmatched.values())
    metadata = root / "Metadata"
    by_utterance = {label: table(metadata / name) for label, name in UTTERANCE_LABELS.items()}
    by_speaker = {label: table(metadata / f"spk2{label}") for label in SPEAKER_LABELS}
    normalize = normalizer("zh-kespeech")
    rows = []
    for key in ids:
        if key not in speakers or key not in subdialects:
            left_out.append(
                f"{key}: has no line in {folders[0].parent}/*/utt2spk and utt2subdialect"
            )
        elif NOT_SPEECH.search(texts[key]):
            left_out.append(f"{key}: is not only speech: '{texts[key]}'")
        else:
            phase = re.search(r"/(phase\d)/", wavs[key])
            labels = {"subdialect": subdialects[key]} | ({"phase": phase[1]} if phase else {})
            speaker = speakers[key]
            for tables, owner in ((by_utterance, key), (by_speaker, speaker)):
                labels |= {
                    label: values[owner] for label, values in tables.items() if values.get(owner)
                }
            text = normalize(texts[key]).upper()
            path = tree.listed(str(root / wavs[key]))
            rows.append(
                Utterance(id=key, audio=path, duration=0, text=text, speaker=speaker, labels=labels)
            )
    unknown = {row.labels["subdialect"] for row in rows} - SUBDIALECTS
    if unknown:
        logger.warning(
            "%s: subdialects that are not KeSpeech's: %s", folders[0], ", ".join(sorted(unknown))
        )
    kept, unreadable = corpus.measured(rows)
    return corpus.CorpusSet(kept, left_out + unreadable)


def table(path: Path) -> dict[str, str]:
    """Id -> value; empty without the file."""
    return tree.Table([path]) if path.exists() else {}


if __name__ == "__main__":
    corpus.run(main)
