"""n-gram models and hotwords within the searches: yaml to score."""

from __future__ import annotations

import random

import pytest
import torch

from asrtool.searchers import (
    CtcPrefixBeam,
    CtcPrefixBeamConfig,
    JointBeamConfig,
    TransducerBeam,
    TransducerBeamConfig,
    ctc_prefix_beam_search,
)
from asrtool.searchers.beam import Beam
from asrtool.searchers.fusion import (
    HotwordFusion,
    NgramConfig,
    NgramFusion,
    NgramScorer,
    load,
    spell,
)
from asrtool.searchers.hotwords import Hotwords, HotwordsConfig
from asrtool.searchers.ngram import ArpaModel, sentence
from tests.toy_search import ToyModel, label_probabilities, safe_log, utterances
from tests.unit.searchers.test_ngram import KENLM, write

CHARACTERS = ["<blank>", "<unk>", "<space>", "a", "b", "c", "<sos/eos>"]
PIECES = ["<blank>", "<unk>", "\u2581a", "\u2581", "b", "a\u2581c", "<sos/eos>"]
EOS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Trigrams of the words a, b, ab, ba, ca, e acute."""
    return str(write(tmp_path_factory.mktemp("lm"), KENLM[1]["arpa"]))


def fusion(path, tokens, unit) -> NgramFusion:
    return NgramFusion(ArpaModel(path), unit, tokens, spell(tokens, 0, EOS))


def text_of(tokens, ids) -> str:
    return "".join(spell(tokens, 0, EOS)[token] for token in ids)


@pytest.mark.parametrize("tokens", [CHARACTERS, PIECES], ids=["characters", "pieces"])
def test_words_are_rated_when_they_are_complete_however_they_are_cut(path, tokens):
    draw, scores = random.Random(0), fusion(path, tokens, "word")
    for _ in range(100):
        ids = draw.choices(range(1, EOS), k=draw.randint(0, 9))
        state, total = scores.start(), 0.0
        for token in ids:
            value, state = scores.extend(state, token)
            total += value
        expected = sentence(scores.model, text_of(tokens, ids).split())
        assert total + scores.end(state) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("tokens", "unit"), [(CHARACTERS, "word"), (PIECES, "word"), (CHARACTERS, "token")]
)
def test_a_row_holds_what_every_token_would_add(path, tokens, unit):
    draw, scores = random.Random(1), fusion(path, tokens, "word")
    if unit == "token":
        scores = NgramFusion(
            ArpaModel(path), unit, ["a", "b", "ab", "ba", "ca", "é", "</s>"], [*"abcdef", ""]
        )
    for _ in range(30):
        state = scores.start()
        for token in draw.choices(range(1, EOS), k=draw.randint(0, 6)):
            state = scores.extend(state, token)[1]
        row = scores.row(state, EOS)
        assert row[1:EOS] == pytest.approx(
            [scores.extend(state, token)[0] for token in range(1, EOS)], abs=1e-9
        )
        assert row[EOS] == pytest.approx(scores.end(state), abs=1e-9)


def both(path, tokens) -> dict:
    spaced = Hotwords({"ab": 3.0, "ba ca": 6.0}, spaced=True)
    return {
        "ngram": fusion(path, tokens, "word"),
        "hotwords": HotwordFusion(spaced, spell(tokens, 0, EOS)),
    }


@pytest.mark.parametrize("tokens", [CHARACTERS, PIECES], ids=["characters", "pieces"])
@pytest.mark.parametrize("seed", range(6))
def test_the_compiled_search_with_models_equals_the_plain_one(path, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = (
        torch.randn(2, 25, 7, generator=generator, dtype=torch.float64) * (0.5, 2.0)[seed % 2]
    ).log_softmax(-1)
    settings = {
        "scores": both(path, tokens),
        "weights": {"ngram": 0.6, "hotwords": 1.5},
        "length_bonus": (0.0, 0.4)[seed % 2],
        "excluded": (EOS,),
        "candidates": (None, 3)[seed % 2],
    }
    lengths = torch.tensor([25, 9])
    found = ctc_prefix_beam_search(log_probs, lengths, 6, **settings)
    for one, other in zip(
        found, ctc_prefix_beam_search(log_probs, lengths, 6, plain=True, **settings), strict=True
    ):
        assert [(h.tokens, h.positions) for h in one] == [(h.tokens, h.positions) for h in other]
        for h, g in zip(one, other, strict=True):
            assert h.parts == pytest.approx(g.parts, abs=1e-9) and h.score == pytest.approx(
                g.score, abs=1e-9
            )


def test_the_parts_are_those_of_the_whole_text(path):
    """What is gathered token by token is what the text as a whole is worth."""
    scores = both(path, CHARACTERS)
    log_probs = (torch.randn(1, 25, 7, generator=torch.Generator().manual_seed(3)) * 2).log_softmax(
        -1
    )
    for h in ctc_prefix_beam_search(
        log_probs, torch.tensor([25]), 8, scores=scores, excluded=(EOS,)
    )[0]:
        text = text_of(CHARACTERS, h.tokens)
        value, state = scores["hotwords"].model.extend(scores["hotwords"].start(), text)
        assert h.parts["ngram"] == pytest.approx(
            sentence(scores["ngram"].model, text.split()), abs=1e-9
        )
        assert h.parts["hotwords"] == pytest.approx(
            value + scores["hotwords"].model.end(state), abs=1e-9
        )
        assert h.score == pytest.approx(sum(h.parts.values()), abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_beam_as_wide_as_the_space_finds_the_best_sum_of_all(path, seed):
    scores = both(path, CHARACTERS)
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(4, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    expected = {}
    for ids, probability in label_probabilities(log_probs).items():
        if EOS in ids or not probability:
            continue
        total = safe_log(probability)
        for name, weight in (("ngram", 0.7), ("hotwords", 1.2)):
            state = scores[name].start()
            for token in ids:
                value, state = scores[name].extend(state, token)
                total += weight * value
            total += weight * scores[name].end(state)
        expected[ids] = total
    (found,) = ctc_prefix_beam_search(
        log_probs[None],
        torch.tensor([4]),
        1000,
        scores=scores,
        weights={"ngram": 0.7, "hotwords": 1.2},
        excluded=(EOS,),
    )
    assert {h.tokens: pytest.approx(h.score, abs=1e-9) for h in found} == expected
    assert found[0].tokens == max(expected, key=expected.get)


def test_from_yaml_settings_to_a_text_with_the_hotword(path, tmp_path):
    """The sounds say `ca` or `cb`; the phrase `cb` decides."""
    phrases = write(tmp_path, "cb\t9\n", "hotwords.txt")
    probabilities = torch.tensor(
        [[0.05, 0, 0, 0, 0.05, 0.9, 0], [0.05, 0, 0.05, 0.6, 0.3, 0, 0]], dtype=torch.float64
    )

    class Model(ToyModel):
        def log_probs(self, encoded, head="ctc"):
            return encoded.frames._replace(data=probabilities.log()[None])

    model, encoded = Model(vocabulary=7), utterances((2,))
    plain = CtcPrefixBeam(CtcPrefixBeamConfig(), model=model).search(encoded)[0][0]
    config = CtcPrefixBeamConfig(
        weights={"ctc": 1.0, "hotwords": 1.0}, hotwords=HotwordsConfig(path=str(phrases))
    )
    biased = CtcPrefixBeam(config, model=model, tokens=CHARACTERS).search(encoded)[0][0]
    assert text_of(CHARACTERS, plain.tokens) == "ca" and text_of(CHARACTERS, biased.tokens) == "cb"
    assert biased.parts["hotwords"] == 9.0 and biased.score == pytest.approx(
        sum(biased.parts.values())
    )
    config = CtcPrefixBeamConfig(weights={"ctc": 1.0, "ngram": 0.5}, ngram=NgramConfig(path=path))
    assert (
        "ngram" in CtcPrefixBeam(config, model=model, tokens=CHARACTERS).search(encoded)[0][0].parts
    )


@pytest.mark.parametrize(
    "weights", [{"attention": 0.7, "ctc": 0.3, "ngram": 0.4}, {"ctc": 1.0, "ngram": 0.8}], ids=str
)
def test_a_label_synchronous_search_finds_the_best_sum_with_an_ngram(path, weights):
    model, encoded = ToyModel(vocabulary=7, seed=2), utterances((1, 3, 4), seed=1)
    config = JointBeamConfig(beam=200, nbest=5, weights=weights, ngram=NgramConfig(path=path))
    scores = fusion(path, CHARACTERS, "word")
    for row, found in enumerate(Beam(config, model=model, tokens=CHARACTERS).search(encoded)):
        frames = encoded.frames.data[row : row + 1, : encoded.frames.lengths[row]]
        single = encoded.frames._replace(data=frames, lengths=encoded.frames.lengths[row : row + 1])
        labels = label_probabilities((frames[0].double() @ model.head).log_softmax(-1))
        expected = {}
        for ids in model.sequences(frames.shape[1]):
            if not labels.get(ids):
                continue
            parts = {
                "attention": model.attention.sequence(single, ids, model.eos),
                "ctc": safe_log(labels[ids]),
                "ngram": sentence(scores.model, text_of(CHARACTERS, ids).split()),
            }
            expected[ids] = sum(weight * parts[name] for name, weight in weights.items())
        best = sorted(expected, key=expected.get, reverse=True)[:5]
        assert [h.tokens for h in found[:5]] == best
        assert [h.score for h in found[:5]] == pytest.approx(
            [expected[ids] for ids in best], abs=1e-9
        )


def test_an_ngram_scorer_rates_candidates_as_it_rates_everything(path):
    scorer = NgramScorer(fusion(path, CHARACTERS, "word"), EOS)
    encoded = utterances((3, 2))
    prefixes = torch.tensor([[EOS, 3], [EOS, 2], [EOS, 4], [EOS, 5]])
    state = scorer.score(prefixes[:, :1], scorer.start(encoded, 2), None)[1]
    everything, _ = scorer.score(prefixes, state, None)
    candidates = torch.tensor([[2, 3], [6, 1], [2, 6], [5, 5]])
    some, _ = scorer.score(prefixes, scorer.select(state, torch.arange(4)), candidates)
    torch.testing.assert_close(some, everything.gather(1, candidates))


def test_a_weight_and_its_settings_come_together(path):
    with pytest.raises(ValueError, match="ngram is set, but weights.ngram is not"):
        CtcPrefixBeamConfig(ngram=NgramConfig(path=path))
    with pytest.raises(ValueError, match="weights.ngram is set, but ngram is not"):
        JointBeamConfig(weights={"ctc": 1.0, "ngram": 0.3})
    with pytest.raises(ValueError, match="weights.hotwords is set, but hotwords is not"):
        CtcPrefixBeamConfig(weights={"ctc": 1.0, "hotwords": 1.0})
    with pytest.raises(ValueError, match="need the names of the tokens"):
        load(NgramConfig(path=path), None, None, 0, EOS)


def test_a_model_of_words_is_refused_where_tokens_are_meant_and_the_other_way_round(path):
    with pytest.raises(ValueError, match="knows 0 of the 3 tokens.*unit: word"):
        NgramFusion(ArpaModel(path), "token", ["x", "y", "z"], ["x", "y", "z"])
    with pytest.raises(ValueError, match="unit: token"):
        NgramFusion(ArpaModel(path), "word", ["a", "b"], ["a", "b"])


def toy_transducer_beam(path, tokens, **more) -> TransducerBeam:
    """With an n-gram model and hotwords."""
    model = ToyModel(len(tokens), 2)
    searcher = TransducerBeam(TransducerBeamConfig(length_bonus=0.4, **more), model=model)
    searcher.names, searcher.scores = zip(*both(path, tokens).items(), strict=True)
    searcher.weights = (0.6, 1.5)
    return searcher


@pytest.mark.parametrize("tokens", [CHARACTERS, PIECES], ids=["characters", "pieces"])
def test_a_transducer_beam_adds_the_scores_of_the_whole_text(path, tokens):
    searcher = toy_transducer_beam(path, tokens, beam=6)
    scores, said = both(path, tokens), 0
    for nbest in searcher.search(utterances((14, 3, 0, 9))):
        for h in nbest:
            text = text_of(tokens, h.tokens)
            value, state = scores["hotwords"].model.extend(scores["hotwords"].start(), text)
            expected = {
                "transducer": h.parts["transducer"],
                "ngram": sentence(scores["ngram"].model, text.split()),
                "hotwords": value + scores["hotwords"].model.end(state),
            }
            assert h.parts == pytest.approx(expected, abs=1e-9)
            weights = {"transducer": 1.0, "ngram": 0.6, "hotwords": 1.5}
            score = sum(weights[name] * part for name, part in h.parts.items())
            assert h.score == pytest.approx(score + 0.4 * len(h.tokens), abs=1e-9)
            said += len(h.tokens)
    assert said > 20


def test_a_wide_transducer_beam_ranks_all_texts_by_all_scores(path):
    """No token is left out: its sums are those of the search without models."""
    encoded = utterances((4,), 5)
    searcher = toy_transducer_beam(path, CHARACTERS, beam=1500)
    model = searcher.model
    plain = TransducerBeam(TransducerBeamConfig(beam=1500), model=model)
    expected = {h.tokens: h.score for h in plain.search(encoded)[0]}
    found = searcher.search(encoded)[0]
    assert {h.tokens for h in found} == set(expected)
    assert len(found) == sum(5**length for length in range(5))
    for h in found:
        assert h.parts["transducer"] == pytest.approx(expected[h.tokens], abs=1e-9)


def test_the_config_of_a_transducer_beam_names_the_models_that_it_reads(path):
    config = TransducerBeamConfig(
        ngram=NgramConfig(path=path), weights={"transducer": 1, "ngram": 1}
    )
    searcher = TransducerBeam(config, model=ToyModel(7, 2), tokens=CHARACTERS)
    assert searcher.names == ("ngram",) and searcher.weights == (1,)
    with pytest.raises(ValueError, match="weights may name transducer"):
        TransducerBeamConfig(weights={"transducer": 1.0, "ctc": 1.0})
    with pytest.raises(ValueError, match="ngram is set, but weights.ngram is not"):
        TransducerBeamConfig(ngram=NgramConfig(path=path))
