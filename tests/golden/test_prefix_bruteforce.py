"""1,000 random cases each: best path, prefix beam and label-synchronous search against enumeration
of everything.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import lru_cache

import numpy as np
import pytest
import torch

from asrtool.searchers import CtcGreedy, CtcGreedyConfig, JointBeamConfig, ctc_prefix_beam_search
from asrtool.searchers.beam import Beam
from asrtool.types import EncoderOutput, Padded
from tests.toy_search import ToyModel, collapse, heads, safe_log

CASES, LONGEST, MOST = 1000, 6, 4
EXACT = {"abs": 1e-9, "rel": 1e-9}  # float64, only the order of sums differs


@lru_cache
def paths(frames: int, vocabulary: int) -> tuple[np.ndarray, list[tuple[int, ...]], np.ndarray]:
    """All paths (P, T), the texts they read, and which text each path reads (P,)."""
    everything = list(itertools.product(range(vocabulary), repeat=frames))
    texts: dict[tuple[int, ...], int] = {}
    reads = [texts.setdefault(collapse(path), len(texts)) for path in everything]
    return np.array(everything), list(texts), np.array(reads)


def draw(number: int) -> np.ndarray:
    """(T, V) log-probabilities, 1 to 6 frames, 2 to 4 tokens, from flat to sure; some tokens
    impossible.
    """
    random = np.random.default_rng(number)
    frames, vocabulary = random.integers(1, LONGEST + 1), random.integers(2, MOST + 1)
    logits = random.normal(size=(frames, vocabulary)) * random.choice([0.3, 1.0, 3.0, 10.0])
    if number % 10 == 0:
        logits[random.integers(frames), random.integers(vocabulary)] = -np.inf
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def path_scores(
    log_probs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]], np.ndarray]:
    every, texts, reads = paths(*log_probs.shape)
    scores = log_probs[np.arange(len(log_probs)), every].sum(1)
    return scores, every, texts, reads


class Rows:
    """A model whose CTC stream is given."""

    blank, eos, frame_shift, heads = 0, 99, 0.04, heads("ctc")

    def __init__(self, rows: list[np.ndarray]) -> None:
        self.rows = Padded.stack(
            [
                torch.from_numpy(
                    np.pad(row, ((0, 0), (0, MOST - row.shape[1])), constant_values=-np.inf)
                )
                for row in rows
            ]
        )

    def log_probs(self, encoded: EncoderOutput, stream: str) -> Padded:
        return self.rows

    def scorers(self) -> dict:
        return {}


def test_greedy_search_finds_the_best_path():
    cases = [draw(number) for number in range(CASES)]
    model = Rows(cases)
    positions = torch.arange(LONGEST).expand(CASES, -1)
    found = CtcGreedy(CtcGreedyConfig(), model=model).search(
        EncoderOutput(frames=model.rows, positions=positions)
    )
    for case, (hypothesis,) in zip(cases, found, strict=True):
        scores, every, _, _ = path_scores(case)
        assert hypothesis.score == pytest.approx(scores.max(), **EXACT)
        assert hypothesis.tokens == collapse(tuple(every[scores.argmax()]))


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
def test_the_prefix_beam_finds_every_text_with_the_sum_over_its_paths(plain):
    for number in range(CASES):
        case = draw(number)
        scores, _, texts, reads = path_scores(case)
        sums = np.bincount(reads, weights=np.exp(scores), minlength=len(texts))
        expected = {
            text: safe_log(value) for text, value in zip(texts, sums, strict=True) if value > 0
        }
        log_probs, length = torch.from_numpy(case)[None], torch.tensor([len(case)])
        (found,) = ctc_prefix_beam_search(log_probs, length, 400, plain=plain)
        assert {h.tokens for h in found} == set(expected)
        assert [h.score for h in found] == pytest.approx(
            sorted(expected.values(), reverse=True), **EXACT
        )
        for hypothesis in found:
            assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], **EXACT)


def sequence_log_probs(
    model: ToyModel, frames: Padded, longest: int
) -> list[dict[tuple[int, ...], float]]:
    """For each utterance, log p of every sequence with its end by the attention scorer, prefixes
    rated side by side.
    """
    bias, end = model.attention.bias(frames), model.eos
    level = {(): (torch.zeros_like(bias), end, torch.zeros(len(bias), dtype=torch.float64))}
    found: list[dict[tuple[int, ...], float]] = [{} for _ in bias]
    for _ in range(longest + 1):
        following = {}
        for tokens, (memory, newest, total) in level.items():
            memory = torch.tanh(0.7 * memory + model.attention.rows[newest])
            log_probs = (memory @ model.attention.mix + bias).log_softmax(-1)
            for row, value in enumerate((total + log_probs[:, end]).tolist()):
                found[row][tokens] = value
            for token in model.tokens():
                following[(*tokens, token)] = (memory, token, total + log_probs[:, token])
        level = following
    return found


@pytest.mark.parametrize(
    "weights",
    [{"attention": 1.0}, {"ctc": 1.0}, {"attention": 0.7, "ctc": 0.3}],
    ids=["attention", "ctc", "joint"],
)
def test_a_label_synchronous_search_finds_every_sequence_up_to_the_longest(weights):
    """40 models, 25 utterances each; all of up to 127 hypotheses of two tokens, in order."""
    for seed in range(CASES // 25):
        model = ToyModel(vocabulary=4, seed=seed, sharpness=(0.5, 1.5, 3.0)[seed % 3])
        random = np.random.default_rng(seed)
        frames = Padded.stack(
            [
                torch.from_numpy(random.normal(size=(random.integers(1, LONGEST + 1), 5))).float()
                for _ in range(25)
            ]
        )
        encoded = EncoderOutput(
            frames=frames, positions=torch.arange(frames.data.shape[1]).expand(25, -1)
        )
        config = JointBeamConfig(beam=128, nbest=128, weights=weights)
        by_attention = sequence_log_probs(model, frames, LONGEST)
        rows = model.log_probs(encoded).unpad()
        for row, found in enumerate(Beam(config, model=model).search(encoded)):
            scores, _, texts, reads = path_scores(rows[row].numpy())
            sums: dict[tuple[int, ...], float] = defaultdict(float)
            for text, value in zip(
                texts, np.bincount(reads, weights=np.exp(scores), minlength=len(texts)), strict=True
            ):
                sums[text] = value
            expected = {}
            for tokens, attention in by_attention[row].items():
                if len(tokens) > len(rows[row]):
                    continue
                parts = {"attention": attention, "ctc": safe_log(sums[tokens])}
                expected[tokens] = sum(weight * parts[name] for name, weight in weights.items())
            best = sorted((value for value in expected.values() if value > -np.inf), reverse=True)
            assert [h.score for h in found][: len(best)] == pytest.approx(best, **EXACT)
            for hypothesis in found:
                assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], **EXACT)
