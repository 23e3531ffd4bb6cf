#!/usr/bin/env python
"""The cost of streaming: operations, CPU time, cache and latency of an encoder with random weights.

    OMP_NUM_THREADS=1 python studies/overhead.py --config conf/qifusion/train_qifusion.yaml

Compares the encoding of a whole utterance with encoding it chunk by chunk, as it would come from a
microphone. Operations are multiply-adds of matrix products and convolutions (torch's flop counter).
The latency is the mean time that a frame waits for the end of its chunk.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asrtool.encoders import StreamingEncoder
from asrtool.experiment import load_phases
from asrtool.model_folder import build_model
from asrtool.types import Padded

# chunk in milliseconds (None: the whole utterance), left chunks (None: all)
CASES = [(None, None), (640, None), (640, 4), (640, 1), (320, 8), (160, 16), (160, 4)]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--config", type=Path, required=True, help="training config of the model")
    options.add_argument("--seconds", type=float, default=30.0, help="length of the input (noise)")
    args = options.parse_args()
    phase = list(load_phases(args.config).values())[0]
    torch.manual_seed(0)
    encoder = build_model(phase, 100).encoder.eval()
    frames = round(1000 * args.seconds / phase.data.fbank.frame_shift_ms)
    inputs = torch.randn(1, frames, phase.data.fbank.num_mel_bins)
    print(f"{args.config.name}, {args.seconds:g} s\n")
    print(
        "| chunk, ms | left chunks | frames | waiting ms, mean | multiply-adds, G per s | "
        "CPU s per s | cache, MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for chunk_ms, left in CASES:
        chunk = chunk_ms and encoder.frames_of(chunk_ms)
        encoder.left_chunks = left
        flops = FlopCounterMode(display=False)
        with torch.inference_mode():
            with flops, sdpa_kernel(SDPBackend.MATH):  # products in fused kernels are not counted
                run(encoder, inputs, chunk)
            started = time.process_time()
            cache = run(encoder, inputs, chunk)
            used = (time.process_time() - started) / args.seconds
        adds = flops.get_total_flops() / 2e9 / args.seconds
        size = f"{4 * numbers(cache) / 1e6:.2f}" if chunk else ""
        cells = (chunk_ms or "whole", "all" if left is None else left, chunk or "")
        waiting = f"{(chunk_ms or 1000 * args.seconds) / 2:.0f}"
        print(
            f"| {' | '.join(map(str, cells))} | {waiting} | {adds:.2f} | {used:.4f} | {size} |",
            flush=True,
        )


def run(encoder: StreamingEncoder, inputs: torch.Tensor, chunk: int | None) -> object:
    """Encode (1, T, F) inputs; returns the final cache, or None for a whole utterance."""
    if chunk is None:
        encoder(Padded(inputs, torch.tensor([inputs.shape[1]])))
        return None
    cache, step = encoder.init_cache(1, chunk), chunk * encoder.input_frames
    for start in range(0, inputs.shape[1], step):
        piece = inputs[:, start : start + step]
        final = torch.tensor([start + step >= inputs.shape[1]])
        _, cache = encoder.forward_chunk(
            Padded(piece, torch.tensor([piece.shape[1]])), cache, final
        )
    return cache


def numbers(value: object) -> int:
    """How many numbers the tensors of a cache have."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if dataclasses.is_dataclass(value):
        return sum(numbers(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return sum(map(numbers, value.values()))
    return sum(map(numbers, value)) if isinstance(value, list | tuple) else 0


if __name__ == "__main__":
    main()
