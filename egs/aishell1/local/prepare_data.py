#!/usr/bin/env python
"""AISHELL-1 (https://www.openslr.org/33) -> data directories train, dev, test.

Reads the official tree wav/{train,dev,test}/<speaker>/<utterance id>.wav (any audio format) and
transcript/aishell_transcript_v0.8.txt in --corpus or its data_aishell/; or a folder of data
directories (see asrtool/data/prepared.py).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from asrtool.data import corpus, prepared, tree
from asrtool.errors import UserError
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

UTTERANCES = {"train": 120098, "dev": 14326, "test": 7176}
CHARACTERS = {"test": 104765}  # characters of the official set, without spaces
TRANSCRIPT = Path("transcript", "aishell_transcript_v0.8.txt")


def main() -> None:
    args = corpus.parser(__doc__).parse_args()
    ready = prepared.find(args.corpus)
    sets = (
        prepared.sources(ready)
        if ready
        else official(tree.root(args.corpus, "data_aishell", "wav"))
    )
    corpus.write_sets(args.out, sets)
    corpus.write_test_sets(args.out, [name for name in sets if name.startswith("test")])


def official(root: Path) -> dict[str, corpus.Source]:
    transcript = tree.need(root / TRANSCRIPT)
    folders = {name: tree.need(root / "wav" / name) for name in UTTERANCES}
    check_unpacked(root, folders)
    info = root.parent / "resource_aishell" / "speaker.info"
    genders = read_genders(info)
    read_once = cache(lambda: read(transcript, folders))  # one transcript for all sets
    return {
        name: corpus.Source(
            lambda _, name=name: build(name, *read_once()[name], genders, tree.is_miniature(root)),
            [Path(__file__), transcript, folder, *([info] if genders else [])],
            {"corpus": str(root)},
        )
        for name, folder in folders.items()
    }


def check_unpacked(root: Path, folders: dict[str, Path]) -> None:
    """Raise UserError if a speaker's archive, inside the archive of the corpus, is still packed."""
    unpacked = {speaker.name for folder in folders.values() for speaker in folder.iterdir()}
    for archive in sorted((root / "wav").glob("*.tar.gz")):
        speaker = archive.name.removesuffix(".tar.gz")
        if speaker not in unpacked:
            raise UserError(
                f"{archive} is not unpacked: expected "
                f"{root / 'wav' / '{train,dev,test}' / speaker}; "
                f"`local/download_data.sh {root}` unpacks the remaining archives"
            )


def read(
    transcript: Path, folders: dict[str, Path]
) -> dict[str, tuple[list[Utterance], list[str]]]:
    """Set -> its utterances, and a sentence for each that lacks text or audio."""
    audio = {name: tree.audio_by_id(folder) for name, folder in folders.items()}
    texts = tree.Table([transcript], r"[A-Z]+\d+S\d+W\d+")
    joined = tree.join(
        texts, {key: path for paths in audio.values() for key, path in paths.items()}
    )
    normalize = normalizer("zh")
    set_of = {speaker_of(path): name for name, paths in audio.items() for path in paths.values()}
    sets: dict[str, tuple[list[Utterance], list[str]]] = {name: ([], []) for name in folders}
    for key in joined.ids:
        name = next(name for name in folders if key in audio[name])
        path = audio[name][key]
        row = Utterance(
            id=key,
            audio=path,
            duration=0,
            text=normalize(texts[key]).upper(),
            speaker=speaker_of(path),
        )
        sets[name][0].append(row)
    for key, sentence in joined.left_out.items():
        sets[set_of.get(key[key.rfind("S") : key.rfind("W")], "train")][1].append(sentence)
    return sets


def build(
    name: str,
    utterances: list[Utterance],
    left_out: list[str],
    genders: dict[str, str],
    miniature: bool,
) -> corpus.CorpusSet:
    for row in utterances:
        row.labels.update({"gender": genders[row.speaker]} if row.speaker in genders else {})
    kept, unreadable = corpus.measured(utterances)
    if not miniature:
        corpus.compare(name, kept, UTTERANCES[name], CHARACTERS.get(name))
    return corpus.CorpusSet(kept, left_out + unreadable)


def speaker_of(path: str) -> str:
    return path.split("/")[-2]


def read_genders(info: Path) -> dict[str, str]:
    """Speaker -> f or m, from resource_aishell/speaker.info (`0002 F`); empty without the file."""
    rows = (line.split() for _, line in tree.lines(info)) if info.exists() else ()
    return {
        f"S{row[0].removeprefix('S')}": row[1].lower() for row in rows if row[1:] in (["F"], ["M"])
    }


if __name__ == "__main__":
    corpus.run(main)
