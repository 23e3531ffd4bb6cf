"""Time the last layer and the cross entropy of a language model with a large vocabulary, in CPU
seconds of forward and backward pass, and the same in the obvious way.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/llm_head.py

The obvious way multiplies the slice of the last positions, which reads the frozen weights once per
utterance, and puts the classes in dimension 1. Defaults are the sizes of gemma-3-270m with 40 s of
speech. Both take turns; a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool.losses import LOSSES, CrossEntropyConfig
from asrtool.models.llm import Caller
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


class Llm(nn.Module):
    """Hidden states as they are, and the last layer of a language model."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, vocab_size, bias=False).requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, inputs_embeds: Tensor, logits_to_keep: int, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(inputs_embeds[:, -logits_to_keep:]))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--vocab-size", type=int, default=262144)
    options.add_argument("--dim", type=int, default=640)
    options.add_argument("--tokens", type=int, default=36, help="of an utterance, and its end")
    options.add_argument("--rows", type=int, default=88, help="of the prompt, speech and tokens")
    options.add_argument("--utterances", type=int, default=4)
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    torch.set_num_threads(1)
    llm = Llm(args.vocab_size, args.dim)
    plain = llm.head.weight
    caller = Caller(llm)
    hidden = torch.randn(args.utterances, args.rows, args.dim, requires_grad=True)
    targets = torch.randint(1, args.vocab_size, (args.utterances, args.tokens - 1))
    sizes = torch.full((args.utterances,), args.tokens - 1)
    batch = Batch(
        ids=tuple(map(str, range(args.utterances))),
        inputs=Padded(hidden, torch.full((args.utterances,), args.rows)),
        targets=Padded(targets, sizes),
    )
    eos = 0

    def ours() -> Tensor:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
        logits = Padded(caller(llm, hidden, mask, args.tokens).logits, sizes + 1)
        encoder = EncoderOutput(frames=batch.inputs, positions=None, taps={})
        loss = LOSSES.build(CrossEntropyConfig(weight=1.0, input="llm", smoothing=0.0), eos=eos)
        return loss(ModelOutput(encoder=encoder, heads={"llm": logits}), batch).sum()

    def obvious() -> Tensor:
        logits = F.linear(hidden[:, -args.tokens :], plain)
        wanted = batch.targets.append(eos).data
        return F.cross_entropy(logits.transpose(1, 2), wanted, reduction="sum")

    torch.testing.assert_close(ours(), obvious(), rtol=1e-4, atol=1e-4)  # and warm up
    rounds = [(cost(ours), cost(obvious)) for _ in range(args.rounds)]
    seconds = median(own for own, _ in rounds)
    ratio = median(theirs / own for own, theirs in rounds)
    print(f"{seconds:.2f} CPU s; the obvious way {ratio:.2f} times as long")


def cost(run: object) -> float:
    start = time.process_time()
    run().backward()
    return time.process_time() - start


if __name__ == "__main__":
    main()
