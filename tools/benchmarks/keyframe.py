"""The speed-up by key frames of a 12-layer Conformer and of its decoder's cross-attention.

    PYTHONPATH=. python tools/benchmarks/keyframe.py             # utterances of 5 to 30 seconds
    PYTHONPATH=. python tools/benchmarks/keyframe.py --rate 5    # key frames per second

CPU seconds on one thread, forward only. Width 256, 4 heads, feed-forward 2048, kernel 15, 25 frames
per second, 4,233 tokens, key frames before layer 7 of 12. The head is rigged to emit `--rate`
tokens per second, 3.5 by default. Runs are interleaved; a ratio is the median over rounds of
seconds with all frames / seconds with key frames:

    layers     layers 7 to 12
    attention  the six cross-attentions of the decoder, keys and values included, over as many
               tokens as key frames
    both       the sum of these two
    encoder    the whole encoder: stem, first six layers, inter-CTC head, fusion and last six
               layers, compared with one without head and fusion; `saved` is the difference in ms
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from asrtool.decoders import TransformerDecoder, TransformerDecoderConfig
from asrtool.downsamplers import Conv2dConfig, KeyframeConfig
from asrtool.encoders import ConformerConfig
from asrtool.encoders.conformer import Conformer
from asrtool.nn.masks import attention_mask
from asrtool.types import Padded

BINS, VOCABULARY, LAYER = 80, 4233, 6


class RiggedHead(nn.Linear):
    """A CTC head that emits a token in each `interval`-th frame and blanks in between."""

    interval = 7.0

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        key = torch.arange(0, x.shape[1], self.interval).long()
        logits[:, :, 0] += 1e4
        logits[:, key, 1] += 2e4
        return logits


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rate", type=float, default=3.5, help="key frames per second")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", default="5,10,15,20,30", help="lengths of utterances")
    args = options.parse_args()
    torch.set_num_threads(1)
    baseline, keyframe = encoders(args.rate).values()
    decoder = TransformerDecoder(TransformerDecoderConfig(), dim=256, vocab_size=VOCABULARY).eval()
    columns = f"{'layers':>7} {'attention':>9} {'both':>6} {'encoder':>8} {'saved':>6}"
    print(f"{'seconds':>7} {'frames':>6} {'kept':>5}  {columns}")
    for seconds in map(int, args.seconds.split(",")):
        print(row(seconds, baseline, keyframe, decoder, args.rounds), flush=True)


def encoders(rate: float) -> dict[str, Conformer]:
    """One that keeps every frame, and one whose head selects `rate` key frames a second."""
    RiggedHead.interval = 25 / rate
    keyframe = encoder({LAYER: KeyframeConfig()})
    keyframe.downsamplers[str(LAYER)].head.__class__ = RiggedHead
    return {"all frames": encoder({}), "key frames": keyframe}


def encoder(downsamplers: dict[int, object]) -> Conformer:
    config = ConformerConfig(downsamplers={0: Conv2dConfig(), **downsamplers})
    return Conformer(config, input_dim=BINS, vocab_size=VOCABULARY, frame_shift=0.01).eval()


@torch.inference_mode()
def row(
    seconds: int, baseline: Conformer, keyframe: Conformer, decoder: nn.Module, rounds: int
) -> str:
    torch.manual_seed(0)
    inputs = Padded(torch.randn(1, 100 * seconds, BINS), torch.tensor([100 * seconds]))
    full, kept = baseline(inputs), keyframe(inputs)
    tokens = torch.randn(1, kept.frames.data.shape[1] + 1, 256)
    pairs = {
        "layers": [layers(baseline, part.frames, part.positions) for part in (full, kept)],
        "attention": [attention(decoder, tokens, part.frames) for part in (full, kept)],
        "encoder": [lambda: baseline(inputs), lambda: keyframe(inputs)],
    }
    spent = {
        name: [(cpu(with_all), cpu(with_key)) for _ in range(rounds)]
        for name, (with_all, with_key) in pairs.items()
    }
    spent["both"] = [
        (a + c, b + d) for (a, b), (c, d) in zip(spent["layers"], spent["attention"], strict=True)
    ]
    ratio = {name: median(a / b for a, b in values) for name, values in spent.items()}
    counts = f"{seconds:7} {full.frames.data.shape[1]:6} {kept.frames.data.shape[1]:5}"
    saved = 1e3 * median(a - b for a, b in spent["encoder"])
    ratios = (
        f"{ratio['layers']:7.2f} {ratio['attention']:9.2f} {ratio['both']:6.2f} "
        f"{ratio['encoder']:8.2f}"
    )
    return f"{counts}  {ratios} {saved:6.1f}"


def layers(encoder: Conformer, frames: Padded, positions: Tensor) -> Callable[[], None]:
    """Layers 7 to 12 over these frames."""

    def run() -> None:
        scope, _ = encoder._scope(frames, positions, None, None)
        x = frames.data
        for layer in encoder.layers[LAYER:]:
            x, _ = layer(x, scope)

    return run


def attention(decoder: nn.Module, tokens: Tensor, frames: Padded) -> Callable[[], None]:
    """The decoder's cross-attentions over these frames."""
    mask = attention_mask(frames.mask)

    def run() -> None:
        for layer in decoder.layers:
            layer.cross_attention(tokens, layer.cross_attention.project(frames.data), mask)

    return run


def cpu(run: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
