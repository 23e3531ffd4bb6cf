"""`llm_beam` against `generate` of transformers, with and without the cache, alone and in a
batch.
"""

from __future__ import annotations

import pytest
import torch

from asrtool.models.llm_scorer import LlmScorer
from asrtool.searchers import SEARCHERS, ConstraintsConfig, LlmBeamConfig
from asrtool.searchers.llm_beam import LlmConstraintsConfig
from asrtool.types import Padded
from tests import toy_llm
from tests.toy_search import choose

pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_llm.build(toy_llm.config(toy_llm.save_llm(tmp_path_factory.mktemp("llm"), seed=3)))


@pytest.fixture(scope="module")
def encoded(model):
    with torch.inference_mode():
        return model.encode(toy_llm.batch(False).inputs)


def search(model, encoded, caching=True, **settings):
    constraints = {name: settings.pop(name) for name in list(settings) if name != "beam"}
    config = LlmBeamConfig(
        constraints=LlmConstraintsConfig(**{"max_tokens": 12, **constraints}), **settings
    )
    return SEARCHERS.build(config, model=model, scorers={"llm": LlmScorer(model, caching)}).search(
        encoded
    )


def generate(model, encoded, beam, **settings):
    """The tokens of transformers, an utterance at a time, without the end."""
    found = []
    for row, length in enumerate(encoded.frames.lengths.tolist()):
        speech = Padded(encoded.frames.data[row : row + 1, :length], torch.tensor([length]))
        with torch.inference_mode():
            embeddings, mask = model.read(speech)
            ids = model.llm.generate(
                inputs_embeds=embeddings,
                attention_mask=mask.long(),
                do_sample=False,
                num_beams=beam,
                pad_token_id=2,
                eos_token_id=2,
                bos_token_id=1,
                **({"early_stopping": "never"} if beam > 1 else {}),
                **{"max_new_tokens": 12, **settings},
            )[0].tolist()
        found.append(tuple(ids[: ids.index(2)] if 2 in ids else ids))
    return found


@pytest.mark.parametrize("beam", [1, 3, 5])
@pytest.mark.parametrize("ngram", [0, 2])
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_tokens_are_those_of_transformers(model, encoded, beam, ngram, penalty):
    ours = search(model, encoded, beam=beam, no_repeat_ngram=ngram, length_penalty=penalty)
    theirs = generate(model, encoded, beam, no_repeat_ngram_size=ngram, length_penalty=penalty)
    assert [nbest[0].tokens for nbest in ours] == theirs
    assert any(theirs)


@pytest.mark.parametrize("beam", [1, 4])
def test_the_cache_changes_nothing_but_the_time(model, encoded, beam):
    kept, anew = (
        search(model, encoded, caching, beam=beam, max_tokens=20) for caching in (True, False)
    )
    for one, other in zip(kept, anew, strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-3)


def test_an_utterance_alone_is_what_it_is_in_a_batch(model, encoded):
    together = search(model, encoded, beam=4)
    for row in range(4):
        alone = search(model, choose(encoded, [row]), beam=4)[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        assert alone[0].score == pytest.approx(together[row][0].score, abs=1e-3)


def test_the_score_is_the_log_probability_of_the_sequence(model, encoded):
    for row, nbest in enumerate(search(model, encoded, beam=5, max_tokens=30)):
        ended = [h for h in nbest if len(h.tokens) < 30]
        assert ended
        targets = Padded.stack([torch.tensor(h.tokens, dtype=torch.int64) for h in ended])
        rated = LlmScorer(model).sequence_scores(choose(encoded, [row]), targets)
        assert [h.score for h in ended] == pytest.approx(rated.tolist(), abs=1e-3)


def test_tokens_are_limited_in_all_and_per_second(model, encoded):
    few = search(model, encoded, beam=3, max_tokens=None, max_tokens_per_second=10.0)
    ends = zip(encoded.positions, encoded.frames.lengths, strict=True)
    seconds = [(positions[length - 1].item() + 1) * model.frame_shift for positions, length in ends]
    assert all(
        len(h.tokens) <= -(-10 * s // 1)
        for nbest, s in zip(few, seconds, strict=True)
        for h in nbest
    )
    assert max(len(nbest[0].tokens) for nbest in search(model, encoded, beam=3, max_tokens=4)) <= 4


def test_a_lower_length_penalty_makes_no_text_longer(model, encoded):
    lengths = [
        [
            len(nbest[0].tokens)
            for nbest in search(model, encoded, beam=5, max_tokens=20, length_penalty=penalty)
        ]
        for penalty in (-1.0, 0.0, 1.0)
    ]
    assert sum(lengths[0]) <= sum(lengths[1]) <= sum(lengths[2])


def test_a_decoding_config_says_it(tmp_path):
    from asrtool.experiment import load_decode

    path = tmp_path / "decode.yaml"
    path.write_text(
        "searcher: {type: llm_beam, constraints: {no_repeat_ngram: 10, length_penalty: -0.5}}\n"
    )
    searcher = load_decode(path).searcher
    assert searcher.beam == 5 and searcher.constraints.max_tokens == 256
    assert searcher.constraints.max_tokens_per_frame is None and isinstance(
        searcher.constraints, ConstraintsConfig
    )
