"""Compare attention within windows with attention to everybody and a mask, and with the package
`local-attention`.

    PYTHONPATH=. python tools/benchmarks/windowed_attention.py                 # every table, CPU
        seconds on one thread
    PYTHONPATH=. python tools/benchmarks/windowed_attention.py dense peer      # of dense, short,
        linear, memory, peer

1 utterance, 4 heads of width 64. Runs are interleaved; a time is the least over rounds, a ratio is
of those. `peer` needs `pip install local-attention` (with --no-deps, and einops and
hyper-connections) and times the same windows: blocks of half a window, one on each side, exact.
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
    return [torch.randn(batch, 4, frames, 64, requires_grad=gradient) for _ in range(3)]


def dense(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """All T x T products, as one writes it by hand."""
    places = torch.arange(query.shape[2])
    offset = places - places[:, None]
    return scaled_dot_product_attention(
        query, key, value, (offset >= -(window // 2)) & (offset < (window + 1) // 2)
    )


def least(rounds: int, *ways: Callable[[], object]) -> list[float]:
    """Milliseconds of each way, interleaved; the first run of each is not counted."""
    best = [float("inf")] * len(ways)
    for turn in range(rounds + 1):
        for place, way in enumerate(ways):
            start = time.process_time()
            way()
            if turn:
                best[place] = min(best[place], 1000 * (time.process_time() - start))
    return best


def forward(
    attend: Callable[..., Tensor], inputs: list[Tensor], *rest: object
) -> Callable[[], object]:
    return lambda: attend(*inputs, *rest)


def both_ways(
    attend: Callable[..., Tensor], inputs: list[Tensor], *rest: object
) -> Callable[[], object]:
    """Forward and backward."""
    return lambda: attend(*inputs, *rest).sum().backward()


def say(frames: int, window: int, backward: bool, slow: float, fast: float) -> None:
    what = "both" if backward else "forward"
    print(f"{frames:5} {window:5}  {what:8} {slow:7.2f} {fast:9.2f} {slow / fast:9.2f}", flush=True)


def table_dense() -> None:
    print("against dense masked attention, ms\n  T     k  pass      dense   windowed  times faster")
    for frames, window, backward in (
        (2000, 16, False),
        (8000, 16, False),
        (8000, 256, False),
        (2000, 16, True),
        (8000, 64, True),
    ):
        inputs, way = heads(frames, backward), both_ways if backward else forward
        slow, fast = least(
            5 if frames < 4000 else 1,
            way(dense, inputs, window),
            way(windowed_attention, inputs, None, window),
        )
        say(frames, window, backward, slow, fast)


def table_short() -> None:
    print("against attention without any mask, ms\n  T     k    plain   windowed  ratio")
    for frames in (25, 50, 100, 125, 150, 200, 300, 400, 500):
        for window in (4, 16, 64, 256):
            inputs = heads(frames)
            ways = (
                forward(scaled_dot_product_attention, inputs),
                forward(windowed_attention, inputs, None, window),
            )
            plain, ours = least(60, *ways)
            print(f"{frames:5} {window:5} {plain:8.3f} {ours:9.3f}  {ours / plain:6.2f}")


def table_linear() -> None:
    print("seconds a frame, microseconds\n  k      T 4000   8000  16000  (largest / smallest)")
    for window in (16, 64, 256):
        inputs = [heads(frames, True) for frames in (4000, 8000, 16000)]
        times = least(5, *(both_ways(windowed_attention, each, None, window) for each in inputs))
        rates = [1000 * spent / each[0].shape[2] for spent, each in zip(times, inputs, strict=True)]
        print(
            f"{window:5} {rates[0]:8.2f} {rates[1]:6.2f} {rates[2]:6.2f}  "
            f"{max(rates) / min(rates):.2f}",
            flush=True,
        )


def table_memory() -> None:
    """A process each, since the peak of a process never falls."""
    print("peak of the process above its state with inputs, MB\n  T     k  pass")
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
    small = heads(256, backward)
    both_ways(windowed_attention, small, None, 16)() if backward else windowed_attention(
        *small, None, 16
    )
    inputs = heads(frames, backward)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = both_ways(windowed_attention, inputs, None, window)
    run() if backward else windowed_attention(*inputs, None, window)
    print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MEGABYTE))


def table_peer() -> None:
    from local_attention import LocalAttention

    print("against local-attention, ms\n  T     k  pass       peer   windowed  times faster")
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
            inputs, way = heads(frames, backward), both_ways if backward else forward
            slow, fast = least(7, way(peer, inputs), way(windowed_attention, inputs, None, window))
            say(frames, window, backward, slow, fast)
    ragged(LocalAttention)


def ragged(peer: Callable[..., Callable]) -> None:
    """How far each is from the definition where utterances of a batch end earlier than others; odd
    window of 9.
    """
    lengths = torch.tensor([40, 23, 7])
    q, k, v = heads(40, batch=3)
    mask = torch.arange(40) < lengths[:, None]
    places = torch.arange(40)
    near = (places - places[:, None]).abs() <= 4
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
    for name, found in (
        ("local-attention", local(q, k, v, mask=mask)),
        ("windowed", windowed_attention(q, k, v, lengths, 9)),
    ):
        error = (found - exact)[mask[:, None].expand(3, 4, 40)].abs().max()
        print(f"largest error on ragged ends: {name} {float(error):.1e}")


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
