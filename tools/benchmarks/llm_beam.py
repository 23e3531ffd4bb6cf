#!/usr/bin/env python3
"""The speed of a speech LLM's search with its key-value cache, compared with no cache.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/llm_beam.py

Without the cache, each step computes the whole prefix again. Also checks that both give the same
tokens. The model is a Llama of 50 M parameters with random weights behind a small Conformer. 60
word pieces in 16 seconds are typical of read speech; 12.5 rows per second are those of HuBERT with
an adapter of rate 4. Runs are interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from asrtool.downsamplers import Conv1dMlpConfig
from asrtool.encoders import ENCODERS
from asrtool.models import SpeechLlm, SpeechLlmConfig
from asrtool.models.llm import LlmConfig
from asrtool.models.llm_scorer import LlmScorer
from asrtool.searchers import SEARCHERS, LlmBeamConfig
from asrtool.searchers.llm_beam import LlmConstraintsConfig
from asrtool.tuning import EncoderTuning, Tuning
from asrtool.types import Padded

VOCABULARY = 18000


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--tokens", type=int, default=60, help="length of the hypotheses")
    options.add_argument("--seconds", type=float, default=16, help="length of the speech")
    options.add_argument(
        "--rate", type=float, default=12.5, help="rows per second: 6.25, 12.5 or 25"
    )
    options.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="beam sizes")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--shape", default="llama-50m", help="model.llm.shape of the config")
    args = options.parse_args()
    model = build(args.shape, round(25 / args.rate))
    size = sum(value.numel() for value in model.llm.parameters()) / 1e6
    with torch.inference_mode():
        frames = round(100 * args.seconds)
        encoded = model.encode(Padded(torch.randn(1, frames, 80), torch.tensor([frames])))
    rows = encoded.frames.data.shape[1]
    print(f"language model: {size:.1f} M parameters; {rows} rows of speech; {args.tokens} tokens")
    for beam in args.beams:
        limits = LlmConstraintsConfig(max_tokens=args.tokens, min_tokens=args.tokens)
        config = LlmBeamConfig(beam=beam, constraints=limits)
        searchers = {
            caching: SEARCHERS.build(
                config, model=model, scorers={"llm": LlmScorer(model, caching)}
            )
            for caching in (True, False)
        }
        seconds: dict[bool, list[float]] = {True: [], False: []}
        tokens = {}
        for _ in range(args.rounds):
            for caching, searcher in searchers.items():
                start = time.process_time()
                tokens[caching] = [hypothesis.tokens for hypothesis in searcher.search(encoded)[0]]
                seconds[caching].append(time.process_time() - start)
        cached, uncached = (statistics.median(seconds[caching]) for caching in (True, False))
        same = "the same" if tokens[True] == tokens[False] else "DIFFERENT"
        print(
            f"beam {beam}: {cached:.2f} CPU s with the cache, {uncached:.2f} without, "
            f"{uncached / cached:.1f} times; {same} tokens"
        )


def build(shape: str, rate: int) -> SpeechLlm:
    torch.manual_seed(0)
    encoder = ENCODERS.config_type("conformer")(
        num_layers=1, dim=64, num_heads=2, ffn_dim=64, kernel=3
    )
    config = SpeechLlmConfig(
        encoder=encoder,
        encoder_tuning=EncoderTuning(mode="full"),
        adapter=Conv1dMlpConfig(rate=rate, hidden_dim=64),
        llm=LlmConfig(shape=shape, prompt="{speech}", tuning=Tuning(mode="full")),
    )
    return SpeechLlm(
        config,
        input_dim=80,
        vocab_size=VOCABULARY,
        frame_shift=0.01,
        heads=frozenset({"llm"}),
    ).eval()


if __name__ == "__main__":
    main()
