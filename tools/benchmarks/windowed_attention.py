"""The speed of windowed attention, compared with masked attention and with `local-attention`.

    PYTHONPATH=. python tools/benchmarks/windowed_attention.py                 # all tables
    PYTHONPATH=. python tools/benchmarks/windowed_attention.py dense peer      # some of them

The tables are dense, short, linear, memory and peer. CPU seconds on one thread; 1 utterance, 4
heads of width 64. Runs are interleaved; a time is the minimum over rounds, a ratio is the ratio of
two such times. `peer` needs `pip install --no-deps local-attention einops hyper-connections`. It
times the same windows: blocks of half a window with one block on each side and `exact_windowsize`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from asrtool.nn.attention import windowed_attention

TABLES = ("dense", "short", "linear", "memory", "peer")
MEGABYTE = 1024


def heads(frames: int, gradient: bool = False, batch: int = 1) -> list[Tensor]:
    """Random queries, keys and values (B, H, T, D)."""
    return [torch.randn(batch, 4, frames, 64, requires_grad=gradient) for _ in range(3)]


def dense(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Attention with all T x T products and a mask for the window."""
    indices = torch.arange(query.shape[2])
    offset = indices - indices[:, None]
    return scaled_dot_product_attention(
        query, key, value, (offset >= -(window // 2)) & (offset < (window + 1) // 2)
    )


def fastest(rounds: int, *runs: Callable[[], object]) -> list[float]:
    """Minimum of the milliseconds of each run over interleaved rounds, without the first round."""
    best = [float("inf")] * len(runs)
    for turn in range(rounds + 1):
        for index, run in enumerate(runs):
            start = time.process_time()
            run()
            if turn:
                best[index] = min(best[index], 1000 * (time.process_time() - start))
    return best


def forward(
    attend: Callable[..., Tensor], inputs: list[Tensor], *rest: object
) -> Callable[[], object]:
    return lambda: attend(*inputs, *rest)


def both_passes(
    attend: Callable[..., Tensor], inputs: list[Tensor], *rest: object
) -> Callable[[], object]:
    """Forward and backward."""
    return lambda: attend(*inputs, *rest).sum().backward()


def print_row(frames: int, window: int, backward: bool, slow: float, fast: float) -> None:
    passes = "both" if backward else "forward"
    print(
        f"{frames:5} {window:5}  {passes:8} {slow:7.2f} {fast:9.2f} {slow / fast:9.2f}", flush=True
    )


def table_dense() -> None:
    print("vs. dense masked attention, ms\n  T     k  pass      dense   windowed  times faster")
    for frames, window, backward in (
        (2000, 16, False),
        (8000, 16, False),
        (8000, 256, False),
        (2000, 16, True),
        (8000, 64, True),
    ):
        inputs, run = heads(frames, backward), both_passes if backward else forward
        slow, fast = fastest(
            5 if frames < 4000 else 1,
            run(dense, inputs, window),
            run(windowed_attention, inputs, None, window),
        )
        print_row(frames, window, backward, slow, fast)


def table_short() -> None:
    print("vs. attention without a mask, ms\n  T     k    plain   windowed  ratio")
    for frames in (25, 50, 100, 125, 150, 200, 300, 400, 500):
        for window in (4, 16, 64, 256):
            inputs = heads(frames)
            plain, ours = fastest(
                60,
                forward(scaled_dot_product_attention, inputs),
                forward(windowed_attention, inputs, None, window),
            )
            print(f"{frames:5} {window:5} {plain:8.3f} {ours:9.3f}  {ours / plain:6.2f}")


def table_linear() -> None:
    print("microseconds per frame\n  k      T 4000   8000  16000  (largest / smallest)")
    for window in (16, 64, 256):
        inputs = [heads(frames, True) for frames in (4000, 8000, 16000)]
        runs = [both_passes(windowed_attention, each, None, window) for each in inputs]
        times = fastest(5, *runs)
        rates = [1000 * spent / each[0].shape[2] for spent, each in zip(times, inputs, strict=True)]
        print(
            f"{window:5} {rates[0]:8.2f} {rates[1]:6.2f} {rates[2]:6.2f}  "
            f"{max(rates) / min(rates):.2f}",
            flush=True,
        )


def table_memory() -> None:
    """Each row is measured in its own process, since the peak of a process never decreases."""
    print("peak memory beyond the inputs, MB\n  T     k  pass")
    for frames, window, backward in (
        (16000, 64, 0),
        (16000, 64, 1),
        (16000, 256, 0),
        (16000, 256, 1),
    ):
        options = [f"{frames},{window},{backward}"]
        run = subprocess.run(
            [sys.executable, __file__, "--peak", *options],
            capture_output=True,
            text=True,
            check=True,
        )
        print(
            f"{frames:5} {window:5}  {'both' if backward else 'forward':8} {run.stdout.strip():>6}",
            flush=True,
        )


def peak(frames: int, window: int, backward: bool) -> None:
    """Print the peak memory of one run, in MB beyond the inputs."""
    run = both_passes if backward else forward
    run(windowed_attention, heads(256, backward), None, 16)()  # warm-up
    inputs = heads(frames, backward)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(windowed_attention, inputs, None, window)()
    print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MEGABYTE))


def table_peer() -> None:
    from local_attention import LocalAttention

    print("vs. local-attention, ms\n  T     k  pass       peer   windowed  times faster")
    for window in (16, 64, 256):
        peer = LocalAttention(
            window_size=window // 2,
            look_backward=1,
            look_forward=1,
            autopad=True,
            exact_windowsize=True,
            use_rotary_pos_emb=False,
        )
        for frames, backward in ((2000, False), (8000, False), (2000, True), (8000, True)):
            inputs, run = heads(frames, backward), both_passes if backward else forward
            slow, fast = fastest(
                7, run(peer, inputs), run(windowed_attention, inputs, None, window)
            )
            print_row(frames, window, backward, slow, fast)
    ragged(LocalAttention)


def ragged(peer: Callable[..., Callable]) -> None:
    """Print the largest error of both in a batch of different lengths, with a window of 9."""
    lengths = torch.tensor([40, 23, 7])
    q, k, v = heads(40, batch=3)
    mask = torch.arange(40) < lengths[:, None]
    indices = torch.arange(40)
    near = (indices - indices[:, None]).abs() <= 4
    exact = scaled_dot_product_attention(
        q, k, v, (near & mask[:, None] | torch.eye(40, dtype=torch.bool))[:, None]
    )
    local = peer(
        window_size=4,
        look_backward=1,
        look_forward=1,
        autopad=True,
        exact_windowsize=True,
        use_rotary_pos_emb=False,
    )
    for name, output in (
        ("local-attention", local(q, k, v, mask=mask)),
        ("windowed", windowed_attention(q, k, v, lengths, 9)),
    ):
        error = (output - exact)[mask[:, None].expand(3, 4, 40)].abs().max()
        print(f"largest error with padding: {name} {float(error):.1e}")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "tables", nargs="*", default=TABLES, metavar="table", help=", ".join(TABLES)
    )
    options.add_argument("--peak", help=argparse.SUPPRESS)
    args = options.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if args.peak:
        frames, window, backward = map(int, args.peak.split(","))
        peak(frames, window, bool(backward))
        return
    for name in args.tables:
        globals()[f"table_{name}"]()


if __name__ == "__main__":
    main()
