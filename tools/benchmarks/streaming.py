"""Streaming with random weights: real-time factor, memory over a long stream, and drift.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/streaming.py [--seconds 1800]

Feeds noise in pieces of one chunk to `asrtool.streaming.Stream`: features, encoder, CTC prefix beam
search, rescoring at the end of each text. The default model is the Conformer of
egs/kespeech/conf/u2pp/train_u2pp_conformer.yaml (12 layers, width 256) with 5,000 tokens. The noise
is periodic with a whole number of chunks. So the frames of each period must be equal to those of
the first period with a full left context; any difference is drift.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from asrtool.data import tokenizers
from asrtool.experiment import DecodeConfig, load_phases
from asrtool.model_folder import build_model
from asrtool.recognizer import Recognizer
from asrtool.searchers import SEARCHERS, CtcPrefixBeamConfig, RescoringConfig
from asrtool.streaming import Stream

CONFIG = Path(__file__).parents[2] / "egs/kespeech/conf/u2pp/train_u2pp_conformer.yaml"
TOKENS = 5000
PERIOD = 10  # chunks after which the noise repeats


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--config", type=Path, default=CONFIG, help="training config whose model is built"
    )
    options.add_argument("--chunk", type=int, default=16, help="chunk size in encoder frames")
    options.add_argument("--left-chunks", type=int, default=4, help="left chunks; -1: all")
    options.add_argument("--seconds", type=float, default=60.0, help="length of the stream")
    options.add_argument(
        "--greedy", action="store_true", help="CTC prefix beam search without the second pass"
    )
    args = options.parse_args()
    torch.set_num_threads(1)
    recognizer = untrained(args)
    encoder = recognizer.model.encoder
    size = round(args.chunk * encoder.seconds_per_frame * recognizer.rate)
    noise = np.random.default_rng(0).normal(0, 0.05, PERIOD * size).astype(np.float32)
    chunk_ms = 1000 * args.chunk * encoder.seconds_per_frame
    parameters = sum(value.numel() for value in encoder.parameters()) / 1e6
    print(
        f"{args.config.name}: encoder of {parameters:.1f} M parameters, chunks of {args.chunk}, "
        f"{chunk_ms:.0f} ms"
    )
    stream, outputs = Stream(recognizer), DriftMonitor(encoder)
    started, cpu = time.perf_counter(), time.process_time()
    pieces, texts = round(args.seconds * recognizer.rate / size), 0
    marks = {pieces * share // 8 for share in range(1, 9)}
    for number in range(1, pieces + 1):
        start = (number - 1) % PERIOD * size
        result = stream.accept(noise[start : start + size], final=number == pieces)
        texts += result is not None and result.final
        if number in marks:
            seconds = number * size / recognizer.rate
            used = (time.process_time() - cpu) / seconds
            print(
                f"  {seconds:8.1f} s: CPU s per s of audio {used:.4f}, resident {resident():.1f} "
                "MB",
                flush=True,
            )
    latency = stream.latency.json()
    print(
        f"{texts} texts, wall {time.perf_counter() - started:.1f} s, work per chunk in s: "
        f"{latency['work']}"
    )
    print(f"second pass in s: {latency['second_pass']}; peak resident {peak():.1f} MB")
    print(
        f"largest difference between periods {outputs.drift:.1e}, positions without a gap: "
        f"{outputs.gapless}"
    )


class DriftMonitor:
    """Compares the encoder's frames with those of the first period with a full left context."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        self.drift, self.gapless, self.next, self.past, self.number = 0.0, True, 0, {}, 0
        original = encoder.forward_chunk

        def forward_chunk(*args):
            output, cache = original(*args)
            if output.frames.data.shape[1]:
                self.check(output.frames.data[0], output.positions[0].tolist(), encoder._span)
            return output, cache

        encoder.forward_chunk = forward_chunk

    def check(self, frames: torch.Tensor, positions: list[int], span: int) -> None:
        """frames: (S, D) of a chunk."""
        self.gapless &= positions == list(range(self.next, self.next + span * len(positions), span))
        self.next = positions[-1] + span
        phase = self.number % PERIOD
        if (
            self.number >= 8 * PERIOD
            and phase in self.past
            and self.past[phase].shape == frames.shape
        ):
            self.drift = max(self.drift, float((frames - self.past[phase]).abs().max()))
        elif self.number >= 7 * PERIOD:
            self.past[phase] = frames.clone()
        self.number += 1


def untrained(args: argparse.Namespace) -> Recognizer:
    """The model of a training config with random weights."""
    phase = list(load_phases(args.config).values())[0]
    torch.manual_seed(0)
    model = build_model(phase, TOKENS).eval()
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(chr(0x4E00 + number) for number in range(TOKENS - 3))
        tokenizer = tokenizers.train([text], "char", 0, Path(folder))
    searcher = CtcPrefixBeamConfig(beam=10)
    if not args.greedy and {"attention", "reverse"} <= phase.heads:
        searcher = RescoringConfig(weights={"ctc": 0.5, "attention": 0.35, "reverse": 0.15})
    model.encoder.left_chunks = None if args.left_chunks == -1 else args.left_chunks
    chunk_ms = 1000 * args.chunk * model.encoder.seconds_per_frame
    settings = DecodeConfig(searcher=searcher, chunk_ms=chunk_ms, left_chunks=args.left_chunks)
    built = SEARCHERS.build(searcher, model=model, tokens=tokenizer.tokens)
    return Recognizer(
        config=phase,
        settings=settings,
        model=model,
        searcher=built,
        tokenizer=tokenizer,
        cmvn=None,
        weights=Path("none"),
    )


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
