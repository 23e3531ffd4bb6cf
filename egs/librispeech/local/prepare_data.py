#!/usr/bin/env python
"""LibriSpeech (https://www.openslr.org/12) -> data directories train, dev, test_clean, test_other.

Reads the official tree <part>/<reader>/<chapter>/{<reader>-<chapter>.trans.txt,<utterance id>.flac}, whatever the
extension of the audio, in --corpus or its LibriSpeech/; or a folder of prepared sets (see asrtool/data/prepared.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asrtool.data import corpus, prepared
from asrtool.log import logger
from asrtool.types import Utterance

UTTERANCES = {  # of the official parts
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
HELD_OUT = {"dev": ["dev-clean", "dev-other"], "test_clean": ["test-clean"], "test_other": ["test-other"]}
MINIATURE = "mini_corpus.json"  # what tools/make_mini_corpus.py leaves in its trees


def main() -> None:
    options = corpus.parser(__doc__)
    known = [name for name in UTTERANCES if name.startswith("train")]
    options.add_argument("--train-parts", default=" ".join(known), help="official parts to train on")
    args = options.parse_args()
    train = args.train_parts.split()
    if not train or not set(train) <= set(known):
        options.error(f"--train-parts is '{args.train_parts}', expected some of: {' '.join(known)}")
    sets = prepared.find(args.corpus)
    if sets:
        tests = prepared.write(sets, args.out)
    else:
        inside = args.corpus / "LibriSpeech"
        tests = write_official(inside if inside.is_dir() else args.corpus, {"train": train, **HELD_OUT}, args.out)
    corpus.write_test_sets(args.out, tests)


def write_official(root: Path, sets: dict[str, list[str]], out: Path) -> list[str]:
    check_parts(root, sets)
    genders = read_genders(root / "SPEAKERS.TXT")
    found = {name: [root / part for part in parts if (root / part).is_dir()] for name, parts in sets.items()}
    for name, parts in found.items():
        if parts:
            corpus.write_set(
                out / name,
                lambda _, parts=parts: read_parts(parts, genders),
                inputs=[Path(__file__), *parts, *root.glob("SPEAKERS.TXT")],
                options={"corpus": str(root)},
            )
    return [name for name, parts in found.items() if parts and name.startswith("test")]


def check_parts(root: Path, sets: dict[str, list[str]]) -> None:
    """Missing parts are named; a training, a development and a test set must be left."""
    missing = [part for parts in sets.values() for part in parts if not (root / part).is_dir()]
    there = {name for name, parts in sets.items() if not set(parts) <= set(missing)}
    if not missing or ((root / MINIATURE).exists() and len(there) == len(sets)):
        return
    if not {"train", "dev"} <= there or not {"test_clean", "test_other"} & there:
        folders = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
        raise corpus.CorpusError(
            f"'{root}' lacks {', '.join(missing)}; expected at least a training, a development and a test part; the "
            f"folders in it are: {folders} (https://www.openslr.org/12; run.sh --stage -1 downloads what is missing)"
        )
    logger.warning("'%s' lacks %s; going on without", root, ", ".join(missing))


def read_parts(parts: Sequence[Path], genders: dict[str, str]) -> corpus.Found:
    """All utterances of some parts, except those that lack text or readable audio."""
    audio = corpus.audio_by_id(*parts)
    transcripts = sorted(path for part in parts for path in part.rglob("[!.]*.trans.txt"))
    unwritten = {path.parent for path in audio.values()} - {path.parent for path in transcripts}
    unwritten |= {part / "<reader>" / "<chapter>" for part in parts if not any(part in t.parents for t in transcripts)}
    if unwritten:
        chapter = min(unwritten)
        name = f"{chapter.parent.name}-{chapter.name}.trans.txt"
        raise corpus.CorpusError(f"no transcript {chapter / name}; is {chapter.parts[-3]}.tar.gz unpacked in full?")
    pairs, lonely = corpus.pair(transcripts, audio, r"\d+-\d+-\d+")
    official = sum(UTTERANCES[part.name] for part in parts)
    if len(pairs) != official and not (parts[0].parent / MINIATURE).exists():
        names = " + ".join(part.name for part in parts)
        logger.warning("%s: %d utterances, officially %d", names, len(pairs), official)
    utterances = []
    for identity, path, text in pairs:
        reader = identity.split("-")[0]
        labels = {"gender": genders[reader]} if reader in genders else {}
        utterances.append(Utterance(id=identity, audio=str(path), duration=0, text=text, speaker=reader, labels=labels))
    kept, unreadable = corpus.measured(utterances)
    return corpus.Found(kept, lonely + unreadable)


def read_genders(speakers: Path) -> dict[str, str]:
    """Reader -> f or m from SPEAKERS.TXT (`14 | F | train-clean-360 | 25.03 | name`); empty without the file."""
    text = speakers.read_text(encoding="utf-8", errors="replace") if speakers.exists() else ""
    rows = (line.split("|") for line in text.split("\n") if not line.startswith(";"))
    return {row[0].strip(): row[1].strip().lower() for row in rows if len(row) > 2 and row[1].strip() in ("F", "M")}


if __name__ == "__main__":
    corpus.run(main)
