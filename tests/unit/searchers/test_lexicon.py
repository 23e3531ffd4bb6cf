"""Words within the prefix beam: word_score and lexicon."""

from __future__ import annotations

import random

import pytest
import torch

from asrtool.searchers import CtcPrefixBeam, CtcPrefixBeamConfig, ctc_prefix_beam_search
from asrtool.searchers.fusion import NgramConfig, NgramFusion, spell
from asrtool.searchers.lexicon import Lexicon
from asrtool.searchers.ngram import ArpaModel, sentence
from tests.toy_search import ToyModel, label_probabilities, safe_log, utterances
from tests.unit.searchers.test_fusion import CHARACTERS, EOS, PIECES, text_of
from tests.unit.searchers.test_ngram import KENLM, write

WORDS = ["a", "ab", "ba", "cab"]
SIZES = [CHARACTERS, PIECES]
NAMES = ["characters", "pieces"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("lm"), KENLM[1]["arpa"]))


def expected(tokens, log_probs, words, word_score, model, bonus=0.0) -> dict:
    """s(g) of every text whose words are in the list, by enumeration of all paths."""
    found = {}
    for ids, probability in label_probabilities(log_probs).items():
        said = text_of(tokens, ids).split()
        if EOS in ids or probability == 0 or (words and not set(said) <= set(words)):
            continue
        score = safe_log(probability) + word_score * len(said) + bonus * len(ids)
        found[ids] = score + (0.7 * sentence(model, said) if model else 0.0)
    return found


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
@pytest.mark.parametrize("fused", [False, True], ids=["alone", "ngram"])
@pytest.mark.parametrize("words", [None, WORDS], ids=["all", "listed"])
@pytest.mark.parametrize("tokens", SIZES, ids=NAMES)
def test_every_text_of_known_words_is_found_with_its_score(path, tokens, words, fused, plain):
    texts = spell(tokens, 0, EOS)
    scores = {"ngram": NgramFusion(ArpaModel(path), "word", tokens, texts)} if fused else {}
    model = scores["ngram"].model if fused else None
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        scale, word_score = (0.5, 3.0)[seed % 2], (1.3, -0.8)[seed % 2]
        log_probs = torch.randn(3, 7, generator=generator, dtype=torch.float64) * scale
        log_probs = log_probs.log_softmax(-1)
        (found,) = ctc_prefix_beam_search(
            log_probs[None],
            torch.tensor([3]),
            400,
            excluded=(EOS,),
            scores=scores,
            weights={"ngram": 0.7} if fused else None,
            length_bonus=0.2,
            word_score=word_score,
            words=Lexicon(words, texts),
            plain=plain,
        )
        wanted = expected(tokens, log_probs, words, word_score, model, 0.2)
        assert {h.tokens for h in found} == set(wanted)
        assert [h.score for h in found] == pytest.approx(
            sorted(wanted.values(), reverse=True), abs=1e-9
        )
        for hypothesis in found:
            assert hypothesis.score == pytest.approx(wanted[hypothesis.tokens], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens", SIZES, ids=NAMES)
def test_the_compiled_search_equals_the_plain_one_in_a_narrow_beam(path, tokens, seed):
    texts = spell(tokens, 0, EOS)
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(2, 25, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    settings = {
        "scores": {"ngram": NgramFusion(ArpaModel(path), "word", tokens, texts)},
        "weights": {"ngram": 0.6},
        "word_score": (0.9, -0.5)[seed % 2],
        "words": Lexicon((None, WORDS)[seed // 2], texts),
        "excluded": (EOS,),
        "candidates": (None, 4)[seed % 2],
    }
    lengths = torch.tensor([25, 9])
    fast = ctc_prefix_beam_search(log_probs, lengths, 5, **settings)
    slow = ctc_prefix_beam_search(log_probs, lengths, 5, plain=True, **settings)
    for one, other in zip(fast, slow, strict=True):
        assert [(h.tokens, h.positions) for h in one] == [(h.tokens, h.positions) for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-9)


def searcher(path, **settings) -> CtcPrefixBeam:
    model = ToyModel(vocabulary=7, seed=2)
    config = CtcPrefixBeamConfig(
        beam=8,
        weights={"ctc": 1.0, "ngram": 0.5},
        ngram=NgramConfig(path=path),
        **settings,
    )
    return CtcPrefixBeam(config, model=model, tokens=CHARACTERS)


def test_streams_give_what_the_whole_gives(path, tmp_path):
    listed = tmp_path / "words"
    listed.write_text("".join(f"{word} x y\n" for word in WORDS), encoding="utf-8")
    draw = random.Random(0)
    for lexicon in (None, "ngram", str(listed)):
        search = searcher(path, word_score=0.7, lexicon=lexicon)
        encoded = utterances((20, 13), seed=4)
        whole = search.search(encoded)
        log_probs, positions = search.model.log_probs(encoded), encoded.positions
        state, begin = search.start(2), 0
        while begin < 20:
            end = min(20, begin + draw.randint(1, 6))
            lengths = (log_probs.lengths - begin).clamp(0, end - begin)
            part = type(log_probs)(log_probs.data[:, begin:end], lengths)
            state, begin = search.advance(state, part, positions[:, begin:end]), end
            search.partial(state)
        for one, other in zip(whole, search.finish(state), strict=True):
            assert [h.tokens for h in one] == [h.tokens for h in other]
            assert [h.score for h in one] == pytest.approx([h.score for h in other])
        if lexicon == str(listed):
            for nbest in whole:
                assert set(text_of(CHARACTERS, nbest[0].tokens).split()) <= set(WORDS)


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
def test_an_unfinished_word_stays_where_the_beam_has_nothing_else(plain):
    log_probs = torch.full((1, 3, 7), -20.0)
    for frame, token in enumerate((3, 4, 5)):  # a b c
        log_probs[0, frame, token] = -0.01
    texts = spell(CHARACTERS, 0, EOS)
    (found,) = ctc_prefix_beam_search(
        log_probs, torch.tensor([3]), 1, words=Lexicon(["abcab"], texts), plain=plain
    )
    assert [h.tokens for h in found] == [(3, 4, 5)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lexicon": "nowhere.txt"}, "nowhere.txt: no such list of words"),
        ({"lexicon": "empty"}, "the list of words is empty"),
        ({"lexicon": "capitals"}, "none of the 1 words of .*, such as 'AB', is made of"),
    ],
)
def test_what_cannot_be_meant_is_said(path, tmp_path, settings, sentence):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "capitals").write_text("AB\n")
    name = settings["lexicon"]
    with pytest.raises(ValueError, match=sentence):
        searcher(path, lexicon=str(tmp_path / name))
    with pytest.raises(ValueError, match="needs the n-gram model"):
        CtcPrefixBeamConfig(lexicon="ngram")
    with pytest.raises(ValueError, match="mark where words begin"):
        Lexicon(None, ["", "a", "b"])
