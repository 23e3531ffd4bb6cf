"""Align known transcripts with their audio, a set or one file: times of words and tokens as ctm,
TextGrid and JSON.

    asrtool align exp/train_conformer --data data/test --out exp/train_conformer/align/test
    asrtool align exp/train_conformer --audio a.wav --text "GOOD MORNING"

Writes words.ctm and tokens.ctm (seconds of the recording), alignments.jsonl and
textgrid/<utterance>.TextGrid (seconds of the utterance; a / of its id is written %2F), and
failed.jsonl: utterances that are too short for their text, or cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from asrtool import distributed, experiment, imports, log, work
from asrtool.align import Timed, words_of
from asrtool.align.formats import ctm, textgrid
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset
from asrtool.log import logger, plural
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.system import file_names
from asrtool.types import Batch, Utterance

SECONDS = 60.0  # padded audio of one batch


def main(argv: list[str] | None = None) -> None:
    options, args = parse(argv)
    if (args.data is None) == (args.audio is None):
        options.error("give either --data and --out, or --audio and --text")
    if (args.out if args.audio is None else args.text) is None:
        options.error("--data needs --out" if args.audio is None else "--audio needs --text")
    log.set_up()
    imports.take(args)
    with distributed.process_group(), torch.inference_mode():
        recognizer = load(args.exp, experiment.split_overrides(args.set))
        if args.audio is not None:
            sys.stdout.write(
                ctm(args.audio.stem, recognizer.align(args.audio, args.text, channel=args.channel))
            )
            return
        options = {"weights": recognizer.fingerprint()}
        work.through(
            Aligning(recognizer, args.data, args.out), args.data, args.out, options, args.force
        )


def parse(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    options = argparse.ArgumentParser(
        prog="asrtool align",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiment.add_model_argument(options, "exp", "; it needs a CTC head")
    options.add_argument(
        "--data",
        type=Path,
        help="set to align: a folder that stage 1 wrote, or any data directory with text",
    )
    options.add_argument("--out", type=Path, help="folder to write")
    options.add_argument(
        "--audio", type=Path, help="one audio file, whose words are printed as ctm lines"
    )
    options.add_argument("--text", help="transcript of --audio")
    options.add_argument(
        "--channel",
        type=int,
        help="channel of --audio, counted from 0; default: the mean of all channels",
    )
    experiment.add_set_option(options, "which weights, as in average=1 or unfinished=true")
    options.add_argument("--force", action="store_true", help="align again even if nothing changed")
    imports.add_options(options)
    return options, options.parse_args(argv)


def load(exp: Path, overrides: Sequence[str] = ()) -> Recognizer:
    """The recogniser with averaged weights, which rank 0 writes if they do not exist yet."""
    trained = Experiment.open(exp)
    decode = trained.decode_config(overrides=overrides)
    weights = trained.weights(decode) if distributed.is_main() else None
    weights = distributed.broadcast_object(weights)
    return Recognizer.load(trained, decode, distributed.device(), weights)


@dataclass
class Aligning:
    """The `work.Task` of this command."""

    recognizer: Recognizer
    data: Path
    out: Path
    name = "align"
    file = "alignments.jsonl"
    batch_seconds = SECONDS

    def dataset(self, utterances: Sequence[Utterance]) -> Dataset:
        recognizer = self.recognizer
        return Dataset(utterances, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)

    def lines(self, batch: Batch, seconds: Mapping[str, float]) -> list[dict]:
        tokens = [row.tolist() for row in batch.targets.unpad()]
        alignments = self.recognizer.align_inputs(batch.inputs, tokens)
        rows = zip(batch.ids, batch.texts, alignments, strict=True)
        return [self._line(key, text, timed, seconds[key]) for key, text, timed in rows]

    def _line(self, key: str, text: str, timed: list[Timed] | None, seconds: float) -> dict:
        if timed is None:
            length = plural(len(self.recognizer.tokenizer.encode(text)), "token")
            return {
                "id": key,
                "error": f"{key}: {seconds:.2f} seconds have too few frames for its {length}: "
                f"{text}",
            }
        words = [
            {"text": w.text, "start": w.start, "end": w.end, "confidence": w.confidence}
            for w in words_of(timed)
        ]
        for part in words:
            part["confidence"] = round(part["confidence"], 4)
        tokens = [{**asdict(part), "confidence": round(part.confidence, 4)} for part in timed]
        return {
            "id": key,
            "text": text,
            "seconds": round(seconds, 4),
            "words": words,
            "tokens": tokens,
        }

    def write(self, target: Path, lines: Iterable[Mapping]) -> None:
        """Lines and the utterances of `datadir.iterate` are sorted by id: one pass joins them."""
        (target / "textgrid").mkdir()
        utterances = iter(datadir.iterate(self.data)[1])
        count = words = 0
        with (
            open(target / self.file, "w", encoding="utf-8") as jsonl,
            open(target / "words.ctm", "w", encoding="utf-8") as word_ctm,
            open(target / "tokens.ctm", "w", encoding="utf-8") as token_ctm,
        ):
            for line in lines:
                utterance = next(row for row in utterances if row.id == line["id"])
                jsonl.write(json.dumps(line, ensure_ascii=False) + "\n")
                timed = [Timed(**part) for part in line["tokens"]]
                tiers = {"words": words_of(timed), "tokens": timed}
                recording = utterance.recording or utterance.id
                word_ctm.write(ctm(recording, tiers["words"], utterance.start))
                token_ctm.write(ctm(recording, timed, utterance.start))
                grid = textgrid(tiers, line["seconds"])
                name = file_names.of(utterance.id, ".TextGrid")
                (target / "textgrid" / name).write_text(grid, encoding="utf-8")
                count, words = count + 1, words + len(tiers["words"])
        counts = plural(count, "utterance"), plural(words, "word")
        logger.info("%s: aligned %s with %s", self.out, *counts)


if __name__ == "__main__":
    main()
