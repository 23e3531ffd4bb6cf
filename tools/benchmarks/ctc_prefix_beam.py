"""The speed of the CTC prefix beam search, compared with flashlight-text and pyctcdecode.

In an environment of its own:

    pip install --no-deps flashlight-text pyctcdecode pygtrie hypothesis sortedcontainers
    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/ctc_prefix_beam.py
    PYTHONPATH=. python tools/benchmarks/ctc_prefix_beam.py --threads

Beam 10, 250 frames, 500 and 5,000 tokens, one thread, no language model. A plain Python search is
compared, too. Runs are interleaved; a ratio is the median over rounds of the peer's process CPU
seconds / asrtool's. Posteriors are noise with a path of about 40 tokens, as from a model that is
sure of most tokens. flashlight considers all tokens (`all`), or the 11 that can be relevant for a
beam of 10 (`11`). Also printed: how often the likelihood of asrtool's best text, summed over all
paths, is at least that of the peer's. --threads compares asrtool with two threads and one, in
wall-clock time. Peers that are not installed are left out with a message.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.searchers.ctc.prefix_beam import ctc_prefix_beam_search

FRAMES, BEAM = 250, 10
Search = Callable[[Tensor], list[int]]  # log-probabilities (T, V) -> tokens


def posteriors(vocabulary: int, utterances: int, sharpness: float, seed: int = 0) -> Tensor:
    """(B, T, V) log-probabilities of noise with a path of blanks and single tokens.

    sharpness: mean height of the path's logits above the noise; it varies from frame to frame.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(utterances, FRAMES, vocabulary, generator=generator) * 1.5
    path = torch.randint(1, vocabulary, (utterances, FRAMES), generator=generator)
    path = torch.where(torch.rand(utterances, FRAMES, generator=generator) < 0.84, 0, path)
    height = sharpness + 3 * torch.randn(utterances, FRAMES, 1, generator=generator)
    return logits.scatter_add_(2, path[..., None], height).log_softmax(-1)


def ours(log_probs: Tensor) -> list[int]:
    lengths = torch.tensor([len(log_probs)])
    return list(
        ctc_prefix_beam_search(log_probs[None], lengths, BEAM, nbest=1, threads=1)[0][0].tokens
    )


def plain(log_probs: Tensor) -> list[int]:
    lengths = torch.tensor([len(log_probs)])
    return list(
        ctc_prefix_beam_search(log_probs[None], lengths, BEAM, nbest=1, plain=True)[0][0].tokens
    )


def flashlight(vocabulary: int, tokens: int) -> Search:
    from flashlight.lib.text import decoder

    options = decoder.LexiconFreeDecoderOptions(
        beam_size=BEAM,
        beam_size_token=tokens,
        beam_threshold=50.0,
        lm_weight=0.0,
        sil_score=0.0,
        log_add=True,
        criterion_type=decoder.CriterionType.CTC,
    )
    search = decoder.LexiconFreeDecoder(options, decoder.ZeroLM(), 0, 0, [])

    def run(log_probs: Tensor) -> list[int]:
        array = log_probs.numpy()
        best = search.decode(array.ctypes.data, *array.shape)[0].tokens
        return [
            token
            for last, token in zip([-1, *best], best, strict=False)
            if token not in (last, 0, -1)
        ]

    return run


def pyctcdecode(vocabulary: int) -> Search:
    import logging

    logging.disable(logging.WARNING)
    from pyctcdecode import build_ctcdecoder

    search = build_ctcdecoder(["", *(chr(0x4E00 + i) for i in range(vocabulary - 1))])

    def run(log_probs: Tensor) -> list[int]:
        text = search.decode(
            log_probs.numpy(), beam_width=BEAM, beam_prune_logp=-1e9, token_min_logp=-12.0
        )
        return [ord(character) - 0x4E00 + 1 for character in text]

    return run


def likelihood(log_probs: Tensor, tokens: list[int]) -> float:
    """log p of a text, the sum over all its paths."""
    size = torch.tensor([len(tokens)])
    target = torch.tensor([tokens], dtype=torch.int64).view(1, -1)
    return -F.ctc_loss(
        log_probs[:, None].double(), target, torch.tensor([len(log_probs)]), size, reduction="none"
    ).item()


def peers(vocabulary: int) -> dict[str, tuple[Search, int]]:
    """Name -> search, and its maximum number of rounds; slow searches have fewer."""
    searches: dict[str, tuple[Search, int]] = {"asrtool": (ours, 1000), "plain Python": (plain, 3)}
    makers = {
        "flashlight, all": lambda: flashlight(vocabulary, vocabulary),
        f"flashlight, {BEAM + 1}": lambda: flashlight(vocabulary, BEAM + 1),
        "pyctcdecode": lambda: pyctcdecode(vocabulary),
    }
    for name, make in makers.items():
        try:
            searches[name] = make(), 3 if name == "pyctcdecode" else 1000
        except ImportError as error:
            print(f"{name}: left out, {error}")
    return searches


def compare(vocabulary: int, sharpness: float, rounds: int) -> None:
    searches = peers(vocabulary)
    batch = posteriors(vocabulary, rounds, sharpness)
    for search, _ in searches.values():
        search(batch[0])  # warm-up
    times: dict[str, list[float]] = {name: [] for name in searches}
    better: dict[str, list[bool]] = {name: [] for name in searches}
    for index, log_probs in enumerate(batch):
        best = {}
        for name, (search, max_rounds) in searches.items():
            if index < max_rounds:
                start = time.process_time()
                tokens = search(log_probs)
                times[name].append(time.process_time() - start)
                best[name] = likelihood(log_probs, tokens)
        for name, value in best.items():
            better[name].append(best["asrtool"] >= value - 1e-6 * abs(value))
    print(
        f"{vocabulary} tokens, sharpness {sharpness}, load {os.getloadavg()[0]:.1f}, {rounds} "
        "utterances"
    )
    for name, values in times.items():
        ratio = median(theirs / own for theirs, own in zip(values, times["asrtool"], strict=False))
        share = 100 * sum(better[name]) / len(better[name])
        print(
            f"  {name:16} {1000 * median(values):9.2f} ms  {ratio:8.2f} times   not below in "
            f"{share:.1f} %"
        )


def threads(vocabulary: int, rounds: int = 5) -> None:
    batch = posteriors(vocabulary, max(64, 128_000 // vocabulary), 9.0)
    lengths = torch.full((len(batch),), FRAMES)
    best: dict[int, float] = {1: np.inf, 2: np.inf}
    for _ in range(rounds + 1):
        for count in best:
            start = time.perf_counter()
            ctc_prefix_beam_search(batch, lengths, BEAM, nbest=1, threads=count)
            best[count] = min(best[count], time.perf_counter() - start)
    print(
        f"{vocabulary} tokens: two threads {best[1] / best[2]:.2f} times one, load "
        f"{os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=100)
    options.add_argument("--threads", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(1)
    for vocabulary in (500, 5000):
        if args.threads:
            threads(vocabulary)
        else:
            for sharpness in (9.0, 14.0):
                compare(vocabulary, sharpness, args.rounds)


if __name__ == "__main__":
    main()
