#!/usr/bin/env python
"""KeSpeech (https://github.com/KeSpeech/KeSpeech) -> data directories train, dev, test.

Reads Tasks/ASR/{train,dev}_phase{1,2} and Tasks/ASR/test with Metadata and Audio, in --corpus or
its KeSpeech/; or a folder of prepared sets (see asrtool/data/prepared.py). train_phase1 and
train_phase2 train on one phase: 1 has Mandarin and subdialects, 2 Mandarin in other places. Labels:
subdialect, phase, style (phase 1), env (phase 2), and gender, age and city of the speaker.
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
LABELS = {"style": "phase1.utt2style", "env": "phase2.utt2env"}  # of utterances, in Metadata
OF_SPEAKERS = ("gender", "age", "city")  # Metadata/spk2<label>
SUBDIALECTS = {
    "Mandarin", "Beijing", "Ji-Lu", "Jiang-Huai", "Jiao-Liao", "Lan-Yin", "Northeastern",
    "Southwestern", "Zhongyuan",
}  # fmt: skip
NOT_SPEECH = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")


def main() -> None:
    args = corpus.parser(__doc__, tuple(TRAIN)).parse_args()
    found = prepared.find(args.corpus)
    sets = (
        prepared.sources(found, args.train_set) if found else official(args.corpus, args.train_set)
    )
    corpus.write_sets(args.out, sets)
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def official(folder: Path, train_set: str) -> dict[str, corpus.Source]:
    root = tree.root(folder, "KeSpeech", "Tasks")
    parts = {train_set: TRAIN[train_set], **HELD_OUT}
    folders = {
        name: [tree.need(root / "Tasks" / "ASR" / part) for part in own]
        for name, own in parts.items()
    }
    for place in (place for own in folders.values() for place in own):
        for name in FILES:
            tree.need(place / name)
    metadata, audio = tree.need(root / "Metadata"), tree.need(root / "Audio")
    files = [
        metadata / name for name in (*LABELS.values(), *(f"spk2{label}" for label in OF_SPEAKERS))
    ]
    missing = [path for path in files if not path.exists()]
    if missing:
        logger.warning(
            "there is no %s; going on without these labels", ", ".join(map(str, missing))
        )
    inputs = [Path(__file__), audio, *(path for path in files if path.exists())]
    return {
        name: corpus.Source(partial(build, root, own), [*inputs, *own], {"corpus": str(root)})
        for name, own in folders.items()
    }


def build(root: Path, folders: list[Path], _: Path) -> corpus.CorpusSet:
    """The utterances of some parts; what the files say is joined by id."""
    wavs, texts, speakers, subdialects = (
        tree.Table([folder / name for folder in folders]) for name in FILES
    )
    ids, lonely = tree.join(texts, wavs)
    left_out = list(lonely.values())
    metadata = root / "Metadata"
    own = {label: table(metadata / name) for label, name in LABELS.items()}
    of_speakers = {label: table(metadata / f"spk2{label}") for label in OF_SPEAKERS}
    normalize = normalizer("zh-kespeech")
    rows = []
    for key in ids:
        if key not in speakers or key not in subdialects:
            left_out.append(
                f"{key}: has no line in {folders[0].parent}/*/utt2spk and utt2subdialect"
            )
        elif NOT_SPEECH.search(texts[key]):
            left_out.append(f"{key}: is not all speech, '{texts[key]}'")
        else:
            phase = re.search(r"/(phase\d)/", wavs[key])
            labels = {"subdialect": subdialects[key]} | ({"phase": phase[1]} if phase else {})
            labels |= {label: values[key] for label, values in own.items() if values.get(key)}
            speaker = speakers[key]
            labels |= {
                label: values[speaker]
                for label, values in of_speakers.items()
                if values.get(speaker)
            }
            text = normalize(texts[key]).upper()
            path = tree.listed(str(root / wavs[key]))
            rows.append(
                Utterance(id=key, audio=path, duration=0, text=text, speaker=speaker, labels=labels)
            )
    unknown = {row.labels["subdialect"] for row in rows} - SUBDIALECTS
    if unknown:
        logger.warning(
            "%s: subdialects that KeSpeech has not: %s", folders[0], ", ".join(sorted(unknown))
        )
    kept, unreadable = corpus.measured(rows)
    return corpus.CorpusSet(kept, left_out + unreadable)


def table(path: Path) -> dict[str, str]:
    return tree.Table([path]) if path.exists() else {}


if __name__ == "__main__":
    corpus.run(main)
