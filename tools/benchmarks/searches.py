#!/usr/bin/env python3
"""The time of several searches with one trained model on a whole set, interleaved.

    cd egs/librispeech
    OMP_NUM_THREADS=1 PYTHONPATH=../.. python ../../tools/benchmarks/searches.py \\
        --exp exp/mini/train_speech_llm_mini --data dump/mini/fbank80-online/test_clean \\
        --config conf/speech_llm/decode_llm_mini.yaml conf/speech_llm/decode_llm_draft_mini.yaml \\
        --set searcher.beam=1 --set ""

Each utterance is recognised alone by every config in turn, in an order that changes from one
utterance to the next. Prints CPU seconds of the encoder and of the search, how many times as fast
as the first config's search each is, how many utterances have the tokens that the first config
found, and, where drafts are verified, the passes of the language model. One `--set` per config, in
their order: overrides of that config, separated by spaces.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from asrtool import experiment
from asrtool.bin.decode import Decoding, data_config
from asrtool.data.kaldi import datadir
from asrtool.data.loader import EvalLoader
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.types import Hypothesis, Padded

ALONE = 1e-3  # seconds of a batch: one utterance is in it whatever its length


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--exp", type=Path, required=True, help="experiment or packed model")
    options.add_argument("--data", type=Path, required=True, help="set, as for `asrtool decode`")
    options.add_argument("--config", type=Path, nargs="+", required=True, help="decode_*.yaml")
    options.add_argument("--set", action="append", help="overrides of one config; may be repeated")
    options.add_argument("--utterances", type=int, help="how many to take; all by default")
    args = options.parse_args()
    changes = args.set or [""] * len(args.config)
    if len(changes) != len(args.config):
        options.error(f"{len(changes)} --set for {len(args.config)} --config: give each its own")
    trained = Experiment.open(args.exp)
    names, recognizers = [], []
    for path, change in zip(args.config, changes, strict=True):
        overrides = experiment.split_overrides([change])
        settings = experiment.load_decode(path, overrides)
        names.append(" ".join([path.stem, *overrides]))
        recognizers.append(Recognizer.load(trained, settings))
    with torch.inference_mode():
        measure(trained, recognizers, names, args.data, args.utterances)


def measure(
    trained: Experiment,
    recognizers: Sequence[Recognizer],
    names: Sequence[str],
    data: Path,
    most: int | None,
) -> None:
    """Recognise a set by all recognisers and print their times."""
    first = recognizers[0]
    inputs = data_config(trained.phase(first.settings.phase)[1], first.settings, data)
    dataset = Decoding(first, str(data), inputs).dataset(datadir.read(data)[:most])
    counts = [Counter() for _ in recognizers]
    for number, (batch, unreadable) in enumerate(EvalLoader(dataset, ALONE).each()):
        if unreadable:
            raise SystemExit(f"an utterance cannot be read: {unreadable}")
        found: dict[int, Hypothesis] = {}
        for place in range(len(recognizers)):
            which = (place + number) % len(recognizers)
            found[which] = recognize(recognizers[which], batch.inputs, counts[which])
        for which, hypothesis in found.items():
            counts[which]["the same"] += hypothesis.tokens == found[0].tokens
    print(f"{len(dataset.utterances)} utterances, {counts[0]['tokens']} tokens")
    size = max(map(len, names))
    for name, count in zip(names, counts, strict=True):
        passes = f"; {count['passes']} passes" if count["passes"] else ""
        print(
            f"{name:{size}} encoder {count['encoder']:7.2f} CPU s, search {count['search']:7.2f}, "
            f"{counts[0]['search'] / count['search']:5.2f} times as fast, "
            f"the same tokens in {count['the same']}{passes}"
        )


def recognize(recognizer: Recognizer, inputs: Padded, count: Counter) -> Hypothesis:
    """The best hypothesis of one utterance, which is counted."""
    began = time.process_time()
    encoded = recognizer.encode(inputs)
    between = time.process_time()
    [[best, *_]] = recognizer.search_encoded(encoded)
    count["search"] += time.process_time() - between
    count["encoder"] += between - began
    count["tokens"] += len(best.tokens)
    count["passes"] += 0 if best.drafted is None else best.drafted.passes
    return best


if __name__ == "__main__":
    main()
