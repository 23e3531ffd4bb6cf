"""The speed of aligned cross entropy, compared with torch's CTC loss on the same logits.

    PYTHONPATH=. python tools/benchmarks/axe.py                    # CPU seconds on one thread
    PYTHONPATH=. python tools/benchmarks/axe.py --sizes 10,500     # combinations of T and U
    PYTHONPATH=. python tools/benchmarks/axe.py --device cuda      # wall-clock time on a GPU

Measures forward and backward from logits to their gradient, log_softmax included, for 16 utterances
and 5,000 classes. Runs are interleaved; a ratio is the median over rounds of AXE's time / CTC's
time. With more tokens than frames, CTC has no path; its time is printed nevertheless.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.losses.axe import aligned_cross_entropy

BATCH, VOCABULARY = 16, 5000


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument(
        "--sizes",
        help="numbers of frames and tokens to combine, such as 10,50,100 (default: two pairs)",
    )
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    torch.set_num_threads(1)
    pairs = [(40, 30), (128, 100)]
    if args.sizes:
        sizes = [int(size) for size in args.sizes.split(",")]
        pairs = list(product(sizes, sizes))
    print(f"{'T':>4} {'U':>4}  {'AXE ms':>8} {'CTC ms':>8}  {'ratio':>6}")
    for frames, tokens in pairs:
        ours, theirs = compare(frames, tokens, args.rounds, torch.device(args.device))
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        print(
            f"{frames:4} {tokens:4}  {1e3 * median(ours):8.1f} {1e3 * median(theirs):8.1f}  "
            f"{ratio:6.3f}",
            flush=True,
        )


def compare(
    frames: int, tokens: int, rounds: int, device: torch.device
) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    logits = torch.randn(BATCH, frames, VOCABULARY, device=device, requires_grad=True)
    targets = torch.randint(1, VOCABULARY, (BATCH, tokens), device=device)
    lengths, target_lengths = (
        torch.full((BATCH,), size, device=device) for size in (frames, tokens)
    )

    def axe() -> Tensor:
        return aligned_cross_entropy(logits.log_softmax(-1), lengths, targets, target_lengths)

    def ctc() -> Tensor:
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(
            log_probs, targets, lengths, target_lengths, reduction="none", zero_infinity=True
        )

    for loss in (axe, ctc):
        seconds(loss, logits)
    times = [(seconds(axe, logits), seconds(ctc, logits)) for _ in range(rounds)]
    return [ours for ours, _ in times], [theirs for _, theirs in times]


def seconds(loss: Callable[[], Tensor], logits: Tensor) -> float:
    """Time of one forward and backward: process time on a CPU, wall-clock time elsewhere."""
    clock = time.process_time if logits.device.type == "cpu" else time.perf_counter
    logits.grad = None
    start = clock()
    loss().sum().backward()
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
