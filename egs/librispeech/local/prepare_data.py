#!/usr/bin/env python
"""LibriSpeech (https://www.openslr.org/12) -> train (or a part), dev, test_clean, test_other.

Reads the official tree <part>/<reader>/<chapter>/{<reader>-<chapter>.trans.txt,<utterance
id>.flac} (any audio format), in --corpus or its LibriSpeech/; or a folder of data directories (see
asrtool/data/prepared.py). train_10min, train_1h and train_10h are those of Libri-Light:
librispeech_finetuning/{1h/{0..5},9h}/{clean,other}/ in the same folder or next to it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from asrtool.data import corpus, prepared, tree
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.types import Utterance

UTTERANCES = {  # official part -> number of utterances
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
LIBRI_LIGHT = "librispeech_finetuning"
TRAIN = {
    "train": ["train-clean-100", "train-clean-360", "train-other-500"],
    "train_460": ["train-clean-100", "train-clean-360"],
    "train_100": ["train-clean-100"],
    "train_10h": ["1h", "9h"],
    "train_1h": ["1h"],
    "train_10min": ["1h/0"],
}
HELD_OUT = {
    "dev": ["dev-clean", "dev-other"],
    "test_clean": ["test-clean"],
    "test_other": ["test-other"],
}


def main() -> None:
    args = corpus.parser(__doc__, tuple(TRAIN)).parse_args()
    ready = prepared.find(args.corpus)
    if ready:
        sets = prepared.sources(ready, args.train_set)
    else:
        inside = args.corpus / "LibriSpeech"
        sets = official(inside if inside.is_dir() else args.corpus, args.train_set)
    corpus.write_sets(args.out, sets)
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def official(root: Path, train_set: str) -> dict[str, corpus.Source]:
    base = root
    if TRAIN[train_set][0] not in UTTERANCES:
        base = (
            next((path for path in (root, root.parent) if (path / LIBRI_LIGHT).is_dir()), root)
            / LIBRI_LIGHT
        )
    sets = {train_set: [base / part for part in TRAIN[train_set]]}
    if base != root:
        for part in sets[train_set]:
            tree.need(part)
    sets |= {name: [root / part for part in parts] for name, parts in HELD_OUT.items()}
    check_parts(root, sets)
    existing = {name: [part for part in parts if part.is_dir()] for name, parts in sets.items()}
    tables = [Path(__file__), *root.glob("SPEAKERS.TXT")]
    return {
        name: corpus.Source(
            partial(read_parts, parts, root), [*tables, *parts], {"corpus": str(parts[0].parent)}
        )
        for name, parts in existing.items()
        if parts
    }


def check_parts(root: Path, sets: dict[str, list[Path]]) -> None:
    """Warn about missing parts; raises UserError without a training, development or test part."""
    train_set = next(iter(sets))
    missing = [part.name for parts in sets.values() for part in parts if not part.is_dir()]
    usable = {name for name, parts in sets.items() if any(part.is_dir() for part in parts)}
    if not missing or (tree.is_miniature(root) and len(usable) == len(sets)):
        return
    if not {train_set, "dev"} <= usable or not {"test_clean", "test_other"} & usable:
        raise UserError(
            f"'{root}' lacks {', '.join(missing)}; expected at least a training, a development "
            f"and a test part; the folder contains {tree.listing(root)} "
            "(https://www.openslr.org/12; run.sh --stage -1 downloads the missing parts)"
        )
    logger.warning("'%s' lacks %s; continuing without them", root, ", ".join(missing))


def read_parts(parts: list[Path], root: Path, _: Path) -> corpus.CorpusSet:
    """All utterances of `parts`, except those that lack text or readable audio."""
    audio = tree.audio_by_id(*parts)
    transcripts = sorted(path for part in parts for path in part.rglob("[!.]*.trans.txt"))
    without_transcript = {Path(path).parent for path in audio.values()} - {
        path.parent for path in transcripts
    }
    without_transcript |= {
        part / "<reader>" / "<chapter>"
        for part in parts
        if not any(part in t.parents for t in transcripts)
    }
    if without_transcript:
        chapter = min(without_transcript)
        name = f"{chapter.parent.name}-{chapter.name}.trans.txt"
        raise UserError(
            f"no transcript {chapter / name}; is {chapter.parts[-3]}.tar.gz unpacked completely?"
        )
    texts = tree.Table(transcripts, r"\d+-\d+-\d+")
    ids, left_out = tree.join(texts, audio)
    genders = read_genders(root / "SPEAKERS.TXT")
    rows = []
    for key in ids:
        reader = key.split("-")[0]
        labels = {"gender": genders[reader]} if reader in genders else {}
        rows.append(
            Utterance(
                id=key, audio=audio[key], duration=0, text=texts[key], speaker=reader, labels=labels
            )
        )
    kept, unreadable = corpus.measured(rows)
    if parts[0].name in UTTERANCES and not tree.is_miniature(root):
        corpus.compare(
            " + ".join(part.name for part in parts),
            kept,
            sum(UTTERANCES[part.name] for part in parts),
        )
    return corpus.CorpusSet(kept, [*left_out.values(), *unreadable])


def read_genders(speakers: Path) -> dict[str, str]:
    """Reader -> f or m, from lines `14 | F | ...` of SPEAKERS.TXT; empty without the file."""
    text = speakers.read_text(encoding="utf-8", errors="replace") if speakers.exists() else ""
    rows = (line.split("|") for line in text.split("\n") if not line.startswith(";"))
    return {
        row[0].strip(): row[1].strip().lower()
        for row in rows
        if len(row) > 2 and row[1].strip() in ("F", "M")
    }


if __name__ == "__main__":
    corpus.run(main)
