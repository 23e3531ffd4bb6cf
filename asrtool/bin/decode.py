"""Stage 4: average checkpoints, encode, search, write `text` (Kaldi) and `hyps.jsonl` (scores, times, n-best).

A stopped decoding goes on where it was. An utterance that cannot be read or recognised is named in `failed.jsonl`, and
the rest goes on; it is in neither `text` nor `hyps.jsonl`, so that scoring asks what to do about it. The same command
tries those again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asrtool import config, distributed, experiment, log, stamp
from asrtool.data import datadir
from asrtool.data.loader import Dataset, EvalLoader, names
from asrtool.experiment import DecodeConfig
from asrtool.journal import Journal
from asrtool.log import logger
from asrtool.recognizer import Recognition, Recognizer, averaged
from asrtool.types import Batch, Hypothesis, Padded, Utterance

WINDOW = 4000  # utterances that are read, sorted by length and decoded together
FAILED = "failed.jsonl"
HOPELESS = 20  # failures without one success end the command
PROBLEMS = (RuntimeError, ValueError, MemoryError)  # of one utterance: out of memory, NaN, an audio without frames


class DecodeError(RuntimeError):
    """Nothing can be decoded; the message gives the first reason."""


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    overrides = experiment.split_overrides(args.set)
    with distributed.process_group(), torch.inference_mode():
        decode(args.exp, experiment.load_decode(args.config, overrides), args.data, args.out, args.force, args.lm)


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool decode", description=__doc__)
    options.add_argument("--exp", type=Path, required=True, help="experiment that stage 3 wrote, or a packed model")
    options.add_argument("--config", type=Path, required=True, help="decode_*.yaml")
    options.add_argument("--data", type=Path, required=True, help="set to decode: a folder that stage 1 wrote")
    options.add_argument("--out", type=Path, required=True, help="folder for text and hyps.jsonl")
    options.add_argument("--lm", type=Path, help="experiment of a language model, for weights.lm or rescore")
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override of the decode config"
    )
    options.add_argument("--force", action="store_true", help="decode again even if nothing changed")
    return options.parse_args(argv)


def decode(
    exp: Path, settings: DecodeConfig, data: Path, out: Path, force: bool = False, lm: Path | None = None
) -> None:
    """Decode the set `data` into `out`; ranks take every n-th batch, rank 0 joins what they wrote."""
    weights = averaged(exp, settings) if distributed.is_main() else None
    weights = distributed.broadcast_object(weights)
    recognizer = Recognizer.load(exp, settings, distributed.device(), weights, lm)
    options = {"decode": config.encode(DecodeConfig, settings), "weights": recognizer.fingerprint()}
    with ExitStack() as stack:
        started = None
        if distributed.is_main():
            about = stamp.describe("decode", [data], options)
            again = not force and stamp.read(out) == about and (out / FAILED).exists()
            target = stack.enter_context(stamp.building(out, "decode", [data], options, force or again))
            if target is not None:
                started = (target, begin(out, data, about, force, again))
        started = distributed.broadcast_object(started)
        if started is None:
            return
        target, run_number = started
        run(recognizer, data, target, Journal(part(out), run_number, distributed.rank()), out.name)


def part(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def begin(out: Path, data: Path, about: Mapping, force: bool, again: bool) -> int:
    """The number of this run; `again`: what `out` holds is kept and only failures are tried once more."""
    if force or again:
        shutil.rmtree(part(out), ignore_errors=True)
    number = Journal.begin(part(out), about)
    if number:
        logger.info("%s: an earlier run was stopped; going on from there", out)
    if not again:
        return number
    with open(out / FAILED, encoding="utf-8") as failed:
        logger.info("%s: %d utterances failed and are tried again", out, sum(1 for _ in failed))
    journal = Journal(part(out), 0)
    with open(out / "hyps.jsonl", encoding="utf-8") as stream:
        lines = map(json.loads, stream)
        line = next(lines, None)
        for group, window in windows(data):
            kept = []
            while line is not None and line["id"] <= window[-1].id:
                kept.append(line)
                line = next(lines, None)
            journal.write(group, kept)
    return 1


def windows(data: Path) -> Iterator[tuple[int, list[Utterance]]]:
    """The utterances of a set, some at a time, in the order of their ids."""
    rows = iter(datadir.iterate(data)[1])
    for number in itertools.count():
        window = list(itertools.islice(rows, WINDOW))
        if not window:
            return
        yield number, window


def run(recognizer: Recognizer, data: Path, target: Path, journal: Journal, name: str) -> None:
    """Decode window by window, so that memory does not grow with the set."""
    total = datadir.iterate(data)[0]
    world = distributed.world_size()
    tally = {"done": 0, "failed": 0}
    shown = None if distributed.is_main() else True
    with tqdm(total=total, desc=f"decode {name}", unit="utt", disable=shown) as bar:
        for group, window in windows(data):
            done = journal.done(group)
            bar.update(len(done))
            durations = {utterance.id: utterance.duration for utterance in window}
            bad = [(u.id, u.duration) for u in window if not u.duration > 0]
            empty = [{"id": key, "error": f"{key}: lasts {seconds:g} seconds"} for key, seconds in bad]
            if distributed.is_main():
                journal.write(group, empty)
                count(empty, tally)
            window = [utterance for utterance in window if utterance.duration > 0]
            if not window:
                continue
            dataset = Dataset(window, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)
            for batch, unreadable in EvalLoader(dataset, recognizer.settings.batch_seconds, done=done).each():
                lines = [{"id": key, "error": why} for key, why in unreadable.items()]
                lines += results(recognizer, batch, durations) if batch is not None else []
                journal.write(group, lines)
                count(lines, tally)
                bar.update(min(len(lines) * world, total - bar.n))
    journal.close()
    if distributed.is_main():
        journal.wait(world)
        groups = -(-total // WINDOW)
        summary = join(target, (line for group in range(groups) for line in journal.lines(group)))
        report(name, total, summary, recognizer)
        shutil.rmtree(journal.folder)


def count(lines: Sequence[Mapping], tally: dict[str, int]) -> None:
    """Keep count; end where nothing but failures comes."""
    failures = [line for line in lines if "error" in line]
    tally["done"] += len(lines) - len(failures)
    tally["failed"] += len(failures)
    if not tally["done"] and tally["failed"] >= HOPELESS:
        last = failures[-1]["error"]
        raise DecodeError(f"not one of {tally['failed']} utterances could be decoded, the last one: {last}")


def results(recognizer: Recognizer, batch: Batch, durations: Mapping[str, float]) -> list[dict]:
    """One line of hyps.jsonl, or of failed.jsonl, per utterance; what fails together is tried apart.

    `frames`: encoder frames, where the utterance was not cut into windows; `latency`: seconds from the start of the
    batch to the result; `elapsed`: the utterance's share of it, by duration; `rtf`: elapsed by the seconds of audio.
    """
    began = time.perf_counter()
    try:
        found, frames = recognize(recognizer, batch)
    except PROBLEMS as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [{"id": batch.ids[0], "error": f"{batch.ids[0]}: {str(error).strip() or type(error).__name__}"}]
        middle = len(batch) // 2
        halves = [rows(batch, slice(0, middle)), rows(batch, slice(middle, None))]
        return [line for half in halves for line in results(recognizer, half, durations)]
    latency = time.perf_counter() - began
    total = max(sum(durations[key] for key in batch.ids), 1e-9)
    lines = []
    for key, result, kept in zip(batch.ids, found, frames, strict=True):
        elapsed = latency * durations[key] / total
        timing = {"seconds": durations[key], "elapsed": elapsed, "latency": latency}
        timing["rtf"] = elapsed / max(durations[key], 1e-9)
        described = {**describe(recognizer, result), **({} if kept is None else {"frames": kept})}
        lines.append({"id": key, **described, **{name: round(value, 6) for name, value in timing.items()}})
    return lines


def recognize(
    recognizer: Recognizer, batch: Batch
) -> tuple[list[Sequence[Hypothesis] | Recognition], list[int | None]]:
    """An n-best list and the number of encoder frames for each utterance; a `Recognition` and None of those that the
    config wants cut into windows."""
    limit = recognizer.settings.windows
    seconds = [length * recognizer.step for length in batch.inputs.lengths.tolist()]
    if limit is None or max(seconds) <= limit.max_seconds:
        return recognizer.search_counted(batch.inputs)
    return recognizer.transcribe(batch.inputs.unpad()), [None] * len(batch)


def rows(batch: Batch, chosen: slice) -> Batch:
    """Some utterances of a batch, with no more padding than they need."""
    lengths = batch.inputs.lengths[chosen]
    inputs = Padded(batch.inputs.data[chosen, : int(lengths.max())], lengths)
    targets = Padded(batch.targets.data[chosen], batch.targets.lengths[chosen])
    return replace(batch, ids=batch.ids[chosen], inputs=inputs, targets=targets, labels={}, texts=batch.texts[chosen])


def describe(recognizer: Recognizer, result: Sequence[Hypothesis] | Recognition) -> dict:
    """The best hypothesis as JSON, and the n-best list where the config asks for one."""
    nbest = result.nbest if isinstance(result, Recognition) else result
    line = hypothesis_line(recognizer, nbest[0])
    if isinstance(result, Recognition) and result.windows > 1:
        line["windows"] = result.windows
        if result.words is not None:
            line["times"] = [round(part.start, 3) for word in result.words for part in word.parts]
    wanted = recognizer.settings.nbest
    if wanted > 1:
        line["nbest"] = [hypothesis_line(recognizer, hypothesis) for hypothesis in nbest[:wanted]]
    return line


def hypothesis_line(recognizer: Recognizer, hypothesis: Hypothesis) -> dict:
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


def join(target: Path, lines: Iterable[Mapping]) -> dict:
    """Write hyps.jsonl, text and, where there are failures, failed.jsonl; what there is to say about them."""
    failed: list[str] = []
    audio = elapsed = 0.0
    latencies = []
    with ExitStack() as stack:
        hyps, text, errors = (
            stack.enter_context(open(target / name, "w", encoding="utf-8")) for name in ("hyps.jsonl", "text", FAILED)
        )
        for line in lines:
            if "error" in line:
                failed.append(line["id"])
                errors.write(json.dumps(line, ensure_ascii=False) + "\n")
                continue
            hyps.write(json.dumps(line, ensure_ascii=False) + "\n")
            text.write(f"{line['id']} {line['text']}".rstrip() + "\n")
            audio, elapsed = audio + line["seconds"], elapsed + line["elapsed"]
            latencies.append(line["latency"])
    if not failed:
        (target / FAILED).unlink()
    return {"failed": failed, "audio": audio, "elapsed": elapsed, "latencies": latencies}


def report(name: str, total: int, summary: Mapping, recognizer: Recognizer) -> None:
    """Say how long it took, and name what failed; raise where nothing was decoded."""
    failed, ranks = summary["failed"], distributed.world_size()
    if len(failed) == total:
        raise DecodeError(f"{name}: not one of {total} utterances could be decoded: {names(failed)}")
    median, most, longest = np.quantile(summary["latencies"], (0.5, 0.95, 1.0))
    logger.info(
        "%s: %d utterances, %.1f s of audio, real-time factor %.4f on %d rank%s; seconds until a result: median %.3f, "
        "95 %% within %.3f, at most %.3f",
        *(name, total - len(failed), summary["audio"], summary["elapsed"] / max(summary["audio"], 1e-9)),
        *(ranks, "" if ranks == 1 else "s", median, most, longest),
    )
    if failed:
        logger.error(
            "%s: %d of %d utterances failed and have no hypothesis; %s says why. Scoring counts them only if asked "
            "(--missing deletions): %s",
            *(name, len(failed), total, FAILED, names(failed)),
        )


if __name__ == "__main__":
    main()
