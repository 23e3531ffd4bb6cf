"""Stage 4: average checkpoints, encode, search, write `text` (Kaldi) and `hyps.jsonl` (scores, times, n-best)."""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from asrtool import config, distributed, experiment, log, stamp
from asrtool.data import datadir
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.experiment import DecodeConfig
from asrtool.log import logger
from asrtool.recognizer import Recognizer, averaged
from asrtool.types import Batch, Hypothesis

WINDOW = 4000  # utterances that are read, sorted by length and decoded together


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    overrides = experiment.split_overrides(args.set)
    with distributed.process_group(), torch.inference_mode():
        decode(args.exp, experiment.load_decode(args.config, overrides), args.data, args.out, args.force)


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool decode", description=__doc__)
    options.add_argument("--exp", type=Path, required=True, help="experiment folder that stage 3 wrote")
    options.add_argument("--config", type=Path, required=True, help="decode_*.yaml")
    options.add_argument("--data", type=Path, required=True, help="set to decode: a folder that stage 1 wrote")
    options.add_argument("--out", type=Path, required=True, help="folder for text and hyps.jsonl")
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override of the decode config"
    )
    options.add_argument("--force", action="store_true", help="decode again even if nothing changed")
    return options.parse_args(argv)


def decode(exp: Path, settings: DecodeConfig, data: Path, out: Path, force: bool = False) -> None:
    """Decode the set `data` into `out`; ranks take every n-th batch, rank 0 joins what they wrote."""
    weights = averaged(exp, settings) if distributed.is_main() else None
    weights = distributed.broadcast_object(weights)
    recognizer = Recognizer.load(exp, settings, distributed.device(), weights)
    options = {"decode": config.encode(DecodeConfig, settings), "weights": recognizer.fingerprint()}
    with ExitStack() as stack:
        target = None
        if distributed.is_main():
            target = stack.enter_context(stamp.building(out, "decode", [data], options, force))
        target = distributed.broadcast_object(target)
        if target is None:
            return
        run(recognizer, settings, data, target, out)


def run(recognizer: Recognizer, settings: DecodeConfig, data: Path, target: Path, out: Path) -> None:
    """Decode window by window, so that memory does not grow with the set; each rank writes its lines sorted by id."""
    total, utterances = datadir.iterate(data)
    rank = distributed.rank()
    started, audio = time.perf_counter(), 0.0
    shown = None if distributed.is_main() else True
    with (
        open(target / f"hyps.{rank}.jsonl", "w", encoding="utf-8") as stream,
        tqdm(total=total, desc=f"decode {out.name}", unit="utt", disable=shown) as bar,
    ):
        rows = iter(utterances)
        while window := list(itertools.islice(rows, WINDOW)):
            durations = {utterance.id: utterance.duration for utterance in window}
            dataset = Dataset(window, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)
            lines = []
            for batch in EvalLoader(dataset, settings.batch_seconds):
                lines += results(recognizer, batch, settings.nbest, durations)
                bar.update(len(batch) * distributed.world_size())
            for line in sorted(lines, key=lambda line: line["id"]):
                audio += line["seconds"]
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    spent = torch.tensor([time.perf_counter() - started, audio], device=distributed.device())
    wall, audio = distributed.all_sum(spent).tolist()
    if distributed.is_main():
        join(target)
        ranks = distributed.world_size()
        factor = wall / ranks / max(audio, 1e-9)
        text = "%s: %d utterances, %.1f s of audio, real-time factor %.4f on %d rank%s"
        logger.info(text, out, total, audio, factor, ranks, "" if ranks == 1 else "s")


def results(recognizer: Recognizer, batch: Batch, nbest: int, durations: dict[str, float]) -> Iterator[dict]:
    """One line of hyps.jsonl per utterance. `elapsed`: its share, by duration, of the batch's time."""
    started = time.perf_counter()
    found = recognizer.recognize(batch.inputs.to(distributed.device()))
    elapsed = time.perf_counter() - started
    total = sum(durations[name] for name in batch.ids)
    for name, hypotheses in zip(batch.ids, found, strict=True):
        share = elapsed * durations[name] / max(total, 1e-9)
        yield {
            "id": name,
            **describe(recognizer, hypotheses[0]),
            "seconds": round(durations[name], 4),
            "elapsed": round(share, 4),
            **({"nbest": [describe(recognizer, h) for h in hypotheses[:nbest]]} if nbest > 1 else {}),
        }


def describe(recognizer: Recognizer, hypothesis: Hypothesis) -> dict:
    """A hypothesis as JSON; `times`: seconds at which each token was emitted."""
    shift = recognizer.model.frame_shift
    finite = math.isfinite(hypothesis.score)  # minus infinity: the constraints left nothing possible
    line: dict = {"text": hypothesis.text, "score": round(hypothesis.score, 4) if finite else None}
    line["tokens"] = [recognizer.tokenizer.tokens[token] for token in hypothesis.tokens]
    if hypothesis.parts:
        line["parts"] = {name: round(value, 4) for name, value in hypothesis.parts.items()}
    if hypothesis.positions is not None:
        line["times"] = [round(position * shift, 3) for position in hypothesis.positions]
    if hypothesis.confidences is not None:
        line["confidences"] = [round(value, 4) for value in hypothesis.confidences]
    return line


def join(target: Path) -> None:
    """The ranks' sorted parts -> hyps.jsonl and text, sorted by id."""
    parts = sorted(target.glob("hyps.*.jsonl"))
    with ExitStack() as stack:
        streams = [stack.enter_context(open(part, encoding="utf-8")) for part in parts]
        hyps = stack.enter_context(open(target / "hyps.jsonl", "w", encoding="utf-8"))
        text = stack.enter_context(open(target / "text", "w", encoding="utf-8"))
        for row in heapq.merge(*streams, key=identity):
            line = json.loads(row)
            hyps.write(row)
            text.write(f"{line['id']} {line['text']}".rstrip() + "\n")
    for part in parts:
        part.unlink()


def identity(row: str) -> str:
    return json.loads(row)["id"]


if __name__ == "__main__":
    main()
