#!/usr/bin/env python3
"""The speed of a speech LLM's greedy search with drafts of CTC, compared with none.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/llm_draft.py --weights <gemma-3-270m>

Computes every pass of the language model in full, but does not need one that was trained on speech:
the log-probability of the reference's next token is raised above all others in both searches, and
the speech is random. Drafts are the reference with a share of wrong words: 70 % replaced, 15 % left
out, 15 % inserted. The CTC head itself is not timed; one over characters takes milliseconds.

Both searches are strict, so they must have the same tokens. Runs are interleaved; medians of CPU
seconds for all sentences. A pass is one call of the language model, for all rows of a batch.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asrtool.downsamplers import Conv1dMlpConfig
from asrtool.encoders import ENCODERS
from asrtool.models import SpeechLlm, SpeechLlmConfig
from asrtool.models.llm import LlmConfig
from asrtool.models.llm_scorer import LlmScorer
from asrtool.searchers import SEARCHERS, LlmBeamConfig, LlmDraftConfig
from asrtool.searchers.drafts import Draft
from asrtool.tuning import EncoderTuning, Tuning
from asrtool.types import EncoderOutput, Hypothesis, Padded

SENTENCES = (
    "the ferry left the harbour an hour late because the captain was waiting for a letter that "
    "nobody on board had seen",
    "when the snow had melted the two brothers walked down to the mill and asked the old man for "
    "work and he gave them bread instead",
    "most of the books in her library were about gardens although she had never owned one and did "
    "not intend to",
    "he counted the coins twice put them back into the drawer and told us that the shop would stay "
    "closed until spring",
)
WORDS_PER_SECOND, ROWS_PER_SECOND = 2.7, 10
CERTAIN = 100.0  # nats by which the reference's token is raised


# a head without weights: drafts are given, but the search asks for one that could draft
DRAFTING = "inter_ctc"


class ToldState(NamedTuple):
    inner: Any
    utterances: Tensor  # (N,)
    read: Tensor  # (N,): tokens of each row


class Told:
    """The language model's scorer, which is told the references."""

    partial = False

    def __init__(self, scorer: LlmScorer, references: Sequence[Sequence[int]], eos: int) -> None:
        self.scorer = scorer
        self.references = [[*reference, eos] for reference in references]
        self.passes = 0

    def _tell(self, log_probs: Tensor, utterance: int, place: int) -> Tensor:
        """log_probs (U, V) of the tokens from `place` on."""
        for row, token in zip(log_probs, self.references[utterance][place:], strict=False):
            row[token] += CERTAIN
        return log_probs

    def _begin(self, inner: Any, encoded: EncoderOutput) -> ToldState:
        rows = torch.arange(len(encoded.frames.lengths))
        return ToldState(inner, rows, torch.zeros_like(rows))

    def start(self, encoded: EncoderOutput, beam: int) -> ToldState:
        self.passes += 1
        return self._begin(self.scorer.start(encoded, beam), encoded)

    def score(
        self, prefixes: Tensor, state: ToldState, candidates: None
    ) -> tuple[Tensor, ToldState]:
        self.passes += prefixes.shape[1] > 1
        log_probs, inner = self.scorer.score(prefixes, state.inner, candidates)
        for row, utterance in enumerate(state.utterances.tolist()):
            self._tell(log_probs[row, None], utterance, prefixes.shape[1] - 1)
        return log_probs, state._replace(inner=inner)

    def prepare(self, encoded: EncoderOutput) -> ToldState:
        return self._begin(self.scorer.prepare(encoded), encoded)

    def verify(self, state: ToldState, newest: Tensor | None, draft: Padded):
        self.passes += 1
        rows, inner = self.scorer.verify(state.inner, newest, draft)
        read = state.read + (newest is not None)
        places = zip(rows, state.utterances.tolist(), read.tolist(), strict=True)
        told = (self._tell(row, utterance, place) for row, utterance, place in places)
        return told, ToldState(inner, state.utterances, read + draft.data.shape[1])

    def cut(self, state: ToldState, rejected: Tensor) -> ToldState:
        inner = self.scorer.cut(state.inner, rejected)
        return ToldState(inner, state.utterances, state.read - rejected)

    def select(self, state: ToldState, rows: Tensor) -> ToldState:
        inner = self.scorer.select(state.inner, rows)
        return ToldState(inner, state.utterances[rows], state.read[rows])


class Given:
    """Drafts that are known before."""

    name = DRAFTING

    def __init__(self, drafts: Sequence[Sequence[int]]) -> None:
        self.drafts = [Draft(tuple(tokens), 0.0, 0.0) for tokens in drafts]

    def draft(self, encoded: EncoderOutput) -> list[Draft]:
        return self.drafts


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--weights", required=True, help="folder of a language model of `transformers`"
    )
    options.add_argument("--text", type=Path, help="file with one sentence per line")
    options.add_argument("--sentences", type=int, default=4, help="how many to take")
    options.add_argument("--batch", type=int, default=1, help="utterances of a batch")
    options.add_argument("--wrong", type=float, nargs="+", default=[0, 0.15, 0.4])
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    lines = SENTENCES if args.text is None else args.text.read_text("utf-8").lower().splitlines()
    texts = lines[: args.sentences]
    torch.manual_seed(0)
    model = build(args.weights)
    references = [model.tokens_of(text) for text in texts]
    tokens = sum(map(len, references)) / len(references)
    print(f"{len(texts)} sentences of {tokens:.1f} tokens in batches of {args.batch}")
    contenders: dict[str, tuple[LlmDraftConfig | LlmBeamConfig, list[list[int]] | None]] = {
        "greedy": (LlmBeamConfig(beam=1), None)
    }
    for share in args.wrong:
        generator = random.Random(0)
        drafts = [model.tokens_of(spoilt(text, share, generator)) for text in texts]
        for redraft in (False, True):
            name = f"{100 * share:.0f} % wrong words{', redraft' if redraft else ''}"
            contenders[name] = (LlmDraftConfig(input=DRAFTING, redraft=redraft), drafts)
    rounds = [
        {name: run(model, references, *entry, args.batch) for name, entry in contenders.items()}
        for _ in range(args.rounds)
    ]
    batches = -(-len(texts) // args.batch)
    seconds = {name: statistics.median(one[name][0] for one in rounds) for name in contenders}
    for name in contenders:
        _, found, passes = rounds[0][name]
        same = [list(hypothesis.tokens) for hypothesis in found] == references
        drafted = [h.drafted for h in found if h.drafted is not None]
        accepted = sum(d.accepted for d in drafted) / max(sum(d.tokens for d in drafted), 1)
        share = f", {accepted:.0%} of the draft accepted" if drafted else ""
        print(
            f"{name:28} {seconds[name]:7.2f} CPU s, {seconds['greedy'] / seconds[name]:5.2f} times "
            f"as fast, {passes / batches:5.1f} passes per batch{share}; "
            f"{'the same' if same else 'OTHER'} tokens"
        )


def run(
    model: SpeechLlm,
    references: list[list[int]],
    config: LlmDraftConfig | LlmBeamConfig,
    drafts: list[list[int]] | None,
    batch: int,
) -> tuple[float, list[Hypothesis], int]:
    """CPU seconds, hypotheses and passes of one search over all sentences."""
    seconds, found, passes = 0.0, [], 0
    for first in range(0, len(references), batch):
        part = references[first : first + batch]
        scorer = Told(LlmScorer(model), part, model.eos)
        searcher = SEARCHERS.build(config, model=model, scorers={"llm": scorer})
        if drafts is not None:
            searcher.drafter = Given(drafts[first : first + batch])
        encoded = speech(model, part)
        begin = time.process_time()
        found += [nbest[0] for nbest in searcher.search(encoded)]
        seconds += time.process_time() - begin
        passes += scorer.passes
    return seconds, found, passes


def speech(model: SpeechLlm, references: list[list[int]]) -> EncoderOutput:
    """Random rows of the adapter, as many as speech of these tokens takes."""
    words = [len(model.tokenizer.decode(reference).split()) for reference in references]
    rows = [torch.randn(round(n / WORDS_PER_SECOND * ROWS_PER_SECOND), model.dim) for n in words]
    frames = Padded.stack(rows)
    return EncoderOutput(
        frames=frames, positions=torch.arange(frames.data.shape[1]).expand(len(rows), -1)
    )


def spoilt(text: str, share: float, generator: random.Random) -> str:
    """The text with a share of wrong words."""
    words = text.split()
    wrong: list[str] = []
    for word in words:
        kind = generator.random() if generator.random() < share else None
        other = generator.choice(words)
        if kind is None:
            wrong.append(word)
        elif kind < 0.7:
            wrong.append(other if other != word else word + "s")
        elif kind < 0.85:
            wrong += [word, other]
    return " ".join(wrong)


def build(weights: str) -> SpeechLlm:
    encoder = ENCODERS.config_type("conformer")(
        num_layers=1, dim=64, num_heads=2, ffn_dim=64, kernel=3
    )
    config = SpeechLlmConfig(
        encoder=encoder,
        encoder_tuning=EncoderTuning(mode="full"),
        adapter=Conv1dMlpConfig(rate=4, hidden_dim=64),
        llm=LlmConfig(
            weights=weights,
            prompt="{speech}\nTranscript: ",
            tuning=Tuning(mode="frozen"),
        ),
    )
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(weights, local_files_only=True))
    heads = frozenset({"llm", DRAFTING})
    model = SpeechLlm(config, input_dim=80, vocab_size=size, frame_shift=0.01, heads=heads)
    return model.eval()


if __name__ == "__main__":
    main()
