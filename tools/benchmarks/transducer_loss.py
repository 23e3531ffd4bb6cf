"""Time and memory of a transducer's head and loss, compared with all logits at once.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/transducer_loss.py
    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/transducer_loss.py --vocabulary 5000

One training step of predictor, joiner and loss, forward and backward, for `--utterances` utterances
of 5 to `--seconds` seconds: 25 frames and 5 tokens a second, joiner of 512. `direct` keeps the
logits (B, S, U + 1, V) and leaves the gradient of everything, also of the sum over anti-diagonals,
to autograd. A ratio is direct / asrtool: of process CPU seconds on one thread, the median over
rounds of interleaved runs, and of the memory that a process of its own takes at most beyond what it
had before the step (Linux).
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import pad

from asrtool.heads import TransducerHead, TransducerHeadConfig
from asrtool.losses import transducer_loss
from asrtool.losses.transducer import turned
from asrtool.types import Batch, EncoderOutput, Padded

FRAMES, TOKENS, DIM = 25, 5, 256  # a second; width of the encoder
IMPOSSIBLE = -1e30  # finite: the gradient of a sum of two impossible ways would be NaN


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--utterances", type=int, default=8)
    options.add_argument("--seconds", type=int, default=12, help="of the longest one")
    options.add_argument("--vocabulary", type=int, default=500)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    torch.set_num_threads(1)
    sizes = (args.utterances, args.seconds, args.vocabulary)
    head, encoded, batch = make(*sizes)
    steps = {name: [] for name in STEPS}
    losses = {}
    for _ in range(args.rounds):
        for name, step in STEPS.items():
            began = time.process_time()
            losses[name] = step(head, encoded, batch)
            steps[name].append(time.process_time() - began)
    torch.testing.assert_close(*losses.values(), rtol=1e-4, atol=1e-3)
    taken = {name: memory(name, sizes) for name in STEPS}
    for name in STEPS:
        print(f"{name:>8}: {median(steps[name]):7.2f} CPU s, {taken[name]:6.0f} MiB")
    pairs = zip(steps["direct"], steps["asrtool"], strict=True)
    print(f"direct / asrtool: time {median(one / other for one, other in pairs):.2f}, ", end="")
    print(f"memory {taken['direct'] / taken['asrtool']:.1f}")


def make(utterances: int, seconds: int, vocabulary: int) -> tuple:
    """A head, and random frames and texts of a batch."""
    torch.manual_seed(0)
    model = SimpleNamespace(dim=DIM, vocab_size=vocabulary)
    head = TransducerHead(TransducerHeadConfig(), name="transducer", model=model)
    lengths = torch.linspace(seconds, min(5, seconds), utterances)
    frames = Padded.stack([torch.randn(round(FRAMES * s), DIM) for s in lengths.tolist()])
    targets = Padded.stack(
        [torch.randint(1, vocabulary - 1, (round(TOKENS * s),)) for s in lengths.tolist()]
    )
    positions = torch.arange(frames.data.shape[1]).expand(utterances, -1)
    batch = Batch(ids=tuple(map(str, range(utterances))), inputs=frames, targets=targets)
    return head, EncoderOutput(frames=frames, positions=positions), batch


def ours(head: TransducerHead, encoded: EncoderOutput, batch: Batch) -> Tensor:
    loss = transducer_loss(*head(encoded, batch))
    loss.sum().backward()
    return loss.detach()


def direct(head: TransducerHead, encoded: EncoderOutput, batch: Batch) -> Tensor:
    frames, said = head.frames(encoded).data, head.predictor(batch.targets.data)
    log_probs = head.logits(frames[:, :, None], said[:, None]).log_softmax(-1)
    following = pad(batch.targets.data, (0, 1))[:, None, :, None]
    tokens = log_probs.gather(3, following.expand(-1, frames.shape[1], -1, 1))[..., 0].double()
    blanks = log_probs[..., 0].double()
    outside = ~head_mask(encoded.frames, batch.targets)
    blank, token = (
        turned(plane.masked_fill(outside, IMPOSSIBLE)).clamp(min=IMPOSSIBLE)
        for plane in (blanks, tokens)
    )
    alpha = pad(torch.zeros_like(blank[0, :, :1]), (0, blank.shape[2] - 1), value=IMPOSSIBLE)
    alphas = [alpha]
    for here, up in zip(blank, token, strict=True):
        arrived = pad((alpha + up)[:, :-1], (1, 0), value=IMPOSSIBLE)
        alpha = torch.logaddexp(alpha + here, arrived)
        alphas.append(alpha)
    ends = encoded.frames.lengths + batch.targets.lengths
    rows = torch.arange(len(ends))
    # the last step is a blank, from the last frame and token
    before = torch.stack(alphas)[ends - 1, rows, batch.targets.lengths]
    loss = -(before + blanks[rows, encoded.frames.lengths - 1, batch.targets.lengths])
    loss.sum().backward()
    return loss.detach()


def head_mask(frames: Padded, targets: Padded) -> Tensor:
    """(B, S, U + 1) bool."""
    columns = torch.arange(targets.data.shape[1] + 1) <= targets.lengths[:, None]
    return frames.mask[:, :, None] & columns[:, None]


STEPS = {"direct": direct, "asrtool": ours}


def memory(name: str, sizes: tuple[int, int, int]) -> float:
    """MiB that one step takes at most."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(more, (name, sizes))


def more(name: str, sizes: tuple[int, int, int]) -> float:
    torch.set_num_threads(1)
    STEPS[name](*make(1, 1, 20))  # what is allocated once
    made = make(*sizes)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak()
    STEPS[name](*made)
    return peak() - before


def peak() -> float:
    """MiB of this process; a peak of `getrusage` begins with that of the process before it."""
    line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line[1]) / 1024


if __name__ == "__main__":
    main()
