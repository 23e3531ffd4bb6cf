#!/usr/bin/env python
"""LibriSpeech (https://www.openslr.org/12) -> data directories.

Reads the official tree <part>/<speaker>/<chapter>/{<speaker>-<chapter>.trans.txt,<utterance id>.flac}, whatever the
extension of the audio, below --corpus or below its LibriSpeech/; or a folder of prepared sets (see
asrtool/data/corpus.py).
"""

from __future__ import annotations

from pathlib import Path

from asrtool.data import corpus
from asrtool.log import logger
from asrtool.types import Utterance

PARTS = {  # set -> official parts it is made of
    "dev": ("dev-clean", "dev-other"),
    "test_clean": ("test-clean",),
    "test_other": ("test-other",),
}


def main() -> None:
    options = corpus.parser(__doc__)
    options.add_argument("--train-parts", default="train-clean-100 train-clean-360 train-other-500")
    args = options.parse_args()
    sets = corpus.prepared_sets(args.corpus)
    if sets:
        write_prepared(sets, args.out)
        return
    if not any((args.corpus / part).is_dir() for part in (*args.train_parts.split(), "dev-clean", "test-clean")):
        args.corpus = corpus.folder(args.corpus, "LibriSpeech", "audio/LibriSpeech")
    parts = {"train": tuple(args.train_parts.split()), **PARTS}
    found = {name: [part for part in wanted if (args.corpus / part).is_dir()] for name, wanted in parts.items()}
    missing = [part for name, wanted in parts.items() for part in wanted if part not in found[name]]
    tests = [name for name in ("test_clean", "test_other") if found[name]]
    if not (found["train"] and found["dev"] and tests):
        raise corpus.CorpusError(
            f"'{args.corpus}' lacks {', '.join(missing)}; at least one training, one dev and one test part are needed "
            "(https://www.openslr.org/12; stage -1 downloads them)"
        )
    if missing:
        logger.warning("%s: missing parts, going on without them: %s", args.corpus, ", ".join(missing))
    for name, members in found.items():
        if members:
            folders = [args.corpus / part for part in members]
            files = [line for folder in folders for line in (folder.name, *corpus.listing(folder))]
            corpus.write_set(
                args.out / name,
                lambda _, folders=folders: corpus.measured([u for folder in folders for u in read_part(folder)]),
                inputs=[file for folder in folders for file in sorted(folder.rglob("*.trans.txt"))],
                options={"parts": members, "files": files},
            )
    corpus.write_test_sets(args.out, tests)


def write_prepared(sets: dict[str, Path], out: Path) -> None:
    tests = sorted(name for name in sets if name.startswith("test"))
    missing = [name for name in ("train", "dev") if name not in sets] + ([] if tests else ["test"])
    if missing:
        raise corpus.CorpusError(f"the prepared sets {', '.join(sets)} lack: {', '.join(missing)}")
    for name in ("train", "dev", *tests):
        corpus.write_set(out / name, lambda _, name=name: corpus.read_prepared(sets[name]), inputs=[sets[name]])
    corpus.write_test_sets(out, tests)


def read_part(folder: Path) -> list[Utterance]:
    """One official part; a transcript without audio, or audio without a transcript, is named and counted."""
    audio, utterances = corpus.audio_by_id(folder), []
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for number, line in enumerate(transcript.read_text(encoding="utf-8-sig").splitlines(), 1):
            identity, _, text = line.partition(" ")
            if identity.count("-") != 2:
                raise corpus.CorpusError(
                    f"{transcript}:{number}: expected '<speaker>-<chapter>-<number> TEXT', got '{line[:40]}'"
                )
            path = audio.pop(identity, None)
            if path is None:
                logger.warning(
                    "left out %s: %s:%d has its text, but no audio has its name", identity, transcript, number
                )
                continue
            utterances.append(
                Utterance(
                    id=identity,
                    audio=str(path.resolve()),
                    duration=0.0,
                    text=text.strip(),
                    speaker=identity.rsplit("-", 1)[0],
                )
            )
    if audio:
        logger.warning(
            "left out %d audio files of %s without a transcript, first: %s", len(audio), folder, sorted(audio)[0]
        )
    return utterances


corpus.run(main)
