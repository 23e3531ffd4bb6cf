"""Stage 4: average checkpoints, encode, search, write `text` (Kaldi) and `hyps.jsonl` (scores, times, n-best)."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
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
from asrtool.types import Batch, Hypothesis, Utterance


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
        run(recognizer, settings, datadir.read(data), target, out)


def run(
    recognizer: Recognizer, settings: DecodeConfig, utterances: Sequence[Utterance], target: Path, out: Path
) -> None:
    """Each rank writes its share as it goes; what it keeps in memory are the offsets of its lines."""
    part = target / f"hyps.{distributed.rank()}.jsonl"
    dataset = Dataset(utterances, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)
    loader = EvalLoader(dataset, settings.batch_seconds)
    durations = {utterance.id: utterance.duration for utterance in utterances}
    started, audio = time.perf_counter(), 0.0
    with open(part, "w", encoding="utf-8") as stream:
        for batch in tqdm(
            loader, desc=f"decode {out.name}", unit="batch", disable=None if distributed.is_main() else True
        ):
            for line in results(recognizer, batch, settings.nbest, durations):
                audio += line["seconds"]
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    spent = torch.tensor([time.perf_counter() - started, audio], dtype=torch.float64)
    spent = distributed.all_sum(spent.to(distributed.device()).float()).tolist()
    if distributed.is_main():
        join(target)
        world = distributed.world_size()
        logger.info(
            "%s: %d utterances, %.1f s of audio, real-time factor %.4f on %d %s",
            *(out, len(utterances), spent[1], spent[0] / max(spent[1], 1e-9)),
            *(world, "process" if world == 1 else "processes"),
        )


def results(recognizer: Recognizer, batch: Batch, nbest: int, durations: dict[str, float]) -> Iterator[dict]:
    """One line of hyps.jsonl per utterance. `elapsed`: its share, by duration, of the batch's time."""
    started = time.perf_counter()
    found = recognizer.recognize(batch.inputs.to(distributed.device()))
    elapsed = time.perf_counter() - started
    total = sum(durations[identity] for identity in batch.ids)
    for identity, hypotheses in zip(batch.ids, found, strict=True):
        share = elapsed * durations[identity] / max(total, 1e-9)
        yield {
            "id": identity,
            **describe(recognizer, hypotheses[0]),
            "seconds": round(durations[identity], 4),
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
    """The ranks' parts -> hyps.jsonl and text, sorted by id; lines are copied one at a time."""
    places = []
    parts = sorted(target.glob("hyps.*.jsonl"))
    for number, part in enumerate(parts):
        with open(part, "rb") as stream:
            offset = 0
            for line in stream:
                places.append((json.loads(line)["id"], number, offset))
                offset += len(line)
    places.sort()
    with ExitStack() as stack:
        streams = [stack.enter_context(open(part, "rb")) for part in parts]
        hyps = stack.enter_context(open(target / "hyps.jsonl", "wb"))
        text = stack.enter_context(open(target / "text", "w", encoding="utf-8"))
        for identity, number, offset in places:
            streams[number].seek(offset)
            line = streams[number].readline()
            hyps.write(line)
            text.write(f"{identity} {json.loads(line)['text']}".rstrip() + "\n")
    for part in parts:
        part.unlink()


if __name__ == "__main__":
    main()
