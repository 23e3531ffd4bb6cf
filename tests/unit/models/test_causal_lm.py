"""A causal language model from scratch: what it reads in front of a sentence, and which rows of its
answer count.
"""

from __future__ import annotations

from itertools import groupby

import pytest
import torch

from asrtool.models.causal_lm import CausalLm, CausalLmConfig, CopyConfig
from asrtool.types import Batch, Padded

EOS = 19
SENTENCES = ([3, 4, 5, 4], [7], [])


def build(copy: CopyConfig | None) -> CausalLm:
    torch.manual_seed(0)
    config = CausalLmConfig(shape="llama-tiny", copy=copy)
    return CausalLm(
        config, input_dim=1, vocab_size=EOS + 1, frame_shift=1.0, heads=frozenset({"lm"})
    ).eval()


def batch(*sentences: list[int]) -> Batch:
    tokens = Padded.stack([torch.tensor(one, dtype=torch.int64) for one in sentences])
    return Batch(ids=tuple(map(str, range(len(sentences)))), inputs=tokens, targets=tokens)


@pytest.mark.parametrize(
    "copy", [None, CopyConfig(), CopyConfig(repeats=1, gaps=0), CopyConfig(gaps=0)]
)
def test_row_u_rates_token_u_after_what_stands_in_front(copy: CopyConfig | None) -> None:
    model = build(copy)
    logits = model(batch(*SENTENCES)).head("lm")
    assert logits.lengths.tolist() == [len(one) + 1 for one in SENTENCES]
    for row, sentence in zip(logits.unpad(), SENTENCES, strict=True):
        front = model.spelt(torch.tensor(sentence, dtype=torch.int64)).tolist()
        whole = model.llm(torch.tensor([[*front, EOS, *sentence]])).logits[0, len(front) :]
        torch.testing.assert_close(row, whole, atol=1e-5, rtol=1e-5)


def test_validation_spells_every_token_twice_with_a_gap_behind_it() -> None:
    assert build(CopyConfig()).spelt(torch.tensor([3, 4])).tolist() == [3, 3, 0, 4, 4, 0]
    assert build(CopyConfig(repeats=1, gaps=0)).spelt(torch.tensor([3, 4])).tolist() == [3, 4]
    assert build(None).spelt(torch.tensor([3, 4])).tolist() == []


def test_training_spells_a_share_of_the_sentences_within_the_bounds() -> None:
    model = build(CopyConfig(share=0.5, repeats=3, gaps=2)).train()
    sentence = torch.tensor([3, 4, 5, 6])
    found = [model.spelt(sentence).tolist() for _ in range(400)]
    assert 0.4 < sum(map(bool, found)) / len(found) < 0.6
    runs = [[(token, len(list(run))) for token, run in groupby(one)] for one in found if one]
    assert all([token for token, _ in one if token] == sentence.tolist() for one in runs)
    assert {count for one in runs for token, count in one if token} == {1, 2, 3}
    assert {count for one in runs for token, count in one if not token} == {1, 2}


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"repeats": 0}, {"gaps": -1}])
def test_what_cannot_be_meant_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CopyConfig(**wrong)
