"""The speed of the joint CTC/attention beam search, compared with ESPnet's, and of rescoring.

    pip install --no-deps espnet                                # in an environment of its own
    pip install typeguard humanfriendly configargparse
    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/joint_beam.py
    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/joint_beam.py --rescoring

Decoders of 6 layers, width 256, 4 heads, feed-forward 2048, random weights; 250 frames, beam 10,
weights 0.7 and 0.3, one thread. Every hypothesis has 41 tokens (the minimum and maximum length), so
both searches run the same steps. asrtool searches 12 utterances in one batch (120 seconds, the
default of decoding), ESPnet (`BatchBeamSearch`) one utterance after the other; both are their
defaults. A ratio is the median over rounds of ESPnet's process CPU seconds per utterance /
asrtool's.

--rescoring: 10 hypotheses of 60 tokens for each of 12 utterances of 250 frames. A ratio is the time
of a decoder pass over 10 copies of the frames / that of asrtool, which does not copy them. Once the
hypotheses have nothing in common; once they are similar, like an n-best list: they differ in four
tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from types import MappingProxyType, SimpleNamespace
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from asrtool.decoders import TransformerDecoder, TransformerDecoderConfig
from asrtool.searchers import Beam, ConstraintsConfig, JointBeamConfig
from asrtool.types import EncoderOutput, Padded

DIM, FRAMES, TOKENS, BEAM, UTTERANCES = 256, 250, 41, 10, 12


class Model:
    """A `SearchModel` without an encoder: its input is encoded frames."""

    blank, frame_shift = 0, 0.04
    heads = MappingProxyType(
        {"ctc": SimpleNamespace(alignment="ctc"), "attention": SimpleNamespace(alignment=None)}
    )

    def __init__(self, vocabulary: int) -> None:
        torch.manual_seed(0)
        self.eos = vocabulary - 1
        config = TransformerDecoderConfig(num_layers=6, num_heads=4, ffn_dim=2048)
        self.decoder = TransformerDecoder(config, dim=DIM, vocab_size=vocabulary).eval()
        self.head = nn.Linear(DIM, vocabulary)

    def log_probs(self, encoded: EncoderOutput, head: str = "ctc") -> Padded:
        return Padded(self.head(encoded.frames.data).log_softmax(-1), encoded.frames.lengths)

    def scorers(self) -> dict:
        return {"attention": self.decoder}


def encoded(utterances: int) -> EncoderOutput:
    frames = torch.randn(utterances, FRAMES, DIM, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(FRAMES).expand(utterances, -1)
    return EncoderOutput(
        frames=Padded(frames, torch.full((utterances,), FRAMES)), positions=positions
    )


def ours(vocabulary: int) -> Callable[[EncoderOutput], object]:
    constraints = ConstraintsConfig(min_tokens=TOKENS, max_tokens=TOKENS)
    return Beam(JointBeamConfig(beam=BEAM, constraints=constraints), model=Model(vocabulary)).search


def espnet(vocabulary: int) -> Callable[[Tensor], object]:
    for name in ("espnet_tts_frontend", "torch_complex", "s3prl", "ctc_segmentation"):
        sys.modules.setdefault(name, MagicMock())
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.scorers.ctc import CTCPrefixScorer
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as PeerDecoder

    torch.manual_seed(0)
    decoder = PeerDecoder(
        vocabulary, DIM, attention_heads=4, linear_units=2048, num_blocks=6
    ).eval()
    scorers = {
        "decoder": decoder,
        "ctc": CTCPrefixScorer(ctc=CTC(vocabulary, DIM).eval(), eos=vocabulary - 1),
    }
    search = BatchBeamSearch(
        beam_size=BEAM,
        weights={"decoder": 0.7, "ctc": 0.3},
        scorers=scorers,
        sos=vocabulary - 1,
        eos=vocabulary - 1,
        vocab_size=vocabulary,
        token_list=[str(i) for i in range(vocabulary)],
        pre_beam_score_key="full",
    ).eval()

    def run(frames: Tensor) -> object:
        with torch.no_grad():
            return search(x=frames, maxlenratio=-TOKENS, minlenratio=1 - TOKENS)

    return run


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(vocabulary: int, rounds: int) -> None:
    mine = ours(vocabulary)
    batch, single = encoded(UTTERANCES), encoded(1)
    try:
        theirs = espnet(vocabulary)
    except ImportError as error:
        print(f"ESPnet: left out, {error}")
        theirs = None
    times: dict[str, list[float]] = {"asrtool, 12": [], "asrtool, 1": [], "ESPnet": []}
    mine(single)  # warm-up
    for _ in range(rounds):
        times["asrtool, 12"].append(seconds(lambda: mine(batch)) / UTTERANCES)
        times["asrtool, 1"].append(seconds(lambda: mine(single)))
        if theirs is not None:
            times["ESPnet"].append(seconds(lambda: theirs(single.frames.data[0])))
    print(f"{vocabulary} tokens, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    for name, values in times.items():
        if values:
            ratio = median(
                value / own for value, own in zip(values, times["asrtool, 12"], strict=True)
            )
            print(f"  {name:12} {median(values):8.3f} CPU s per utterance   {ratio:6.2f} times")


def rescoring(vocabulary: int, rounds: int) -> None:
    decoder, frames = Model(vocabulary).decoder, encoded(UTTERANCES)
    copies = EncoderOutput(
        frames=Padded(*(part.repeat_interleave(BEAM, 0) for part in frames.frames)),
        positions=frames.positions.repeat_interleave(BEAM, 0),
    )
    generator = torch.Generator().manual_seed(2)
    different = torch.randint(1, vocabulary - 1, (UTTERANCES * BEAM, 60), generator=generator)
    similar = different[::BEAM].repeat_interleave(BEAM, 0).clone()
    indices = (
        torch.rand(UTTERANCES, 60, generator=generator).argsort(1)[:, :4].repeat_interleave(BEAM, 0)
    )
    # which of the four tokens hypothesis n replaces: the bits of n
    replaced = torch.arange(BEAM).repeat(UTTERANCES)[:, None] >> torch.arange(4) & 1
    similar.scatter_(1, indices, 1 + (similar.gather(1, indices) - 1 + replaced) % (vocabulary - 2))
    for name, tokens in (("nothing in common", different), ("an n-best list", similar)):
        targets = Padded(tokens, torch.full((len(tokens),), 60))
        times: list[list[float]] = [[], []]
        runs = [partial(decoder.sequence_scores, case, targets) for case in (frames, copies)]
        with torch.inference_mode():
            for _ in range(rounds + 1):
                for run, spent in zip(runs, times, strict=True):
                    spent.append(seconds(run))
            shared, copied = (run() for run in runs)
        same = bool((shared.view(-1, BEAM).argmax(1) == copied.view(-1, BEAM).argmax(1)).all())
        ratio = median(theirs / own for own, theirs in zip(times[0][1:], times[1][1:], strict=True))
        text = (
            f"  {name}: {median(times[0]):.2f} CPU s, copies {ratio:.2f} times; largest difference "
        )
        print(
            f"{vocabulary} tokens",
            text,
            f"{(shared - copied).abs().max():.1e}, the same choice: {same}",
        )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rescoring", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for vocabulary in (500, 5000):
        (rescoring if args.rescoring else compare)(vocabulary, args.rounds)


if __name__ == "__main__":
    main()
