"""`llm_draft`: its strict setting against greedy `llm_beam`, its relaxed settings by hand, and the
cache after a cut.
"""

from __future__ import annotations

import re
from math import exp
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from asrtool import config
from asrtool.experiment import DecodeConfig
from asrtool.models.llm_scorer import LlmScorer
from asrtool.searchers import SEARCHERS, LlmBeamConfig, LlmDraftConfig, llm_draft
from asrtool.searchers.drafts import Draft, EncoderCtcConfig, highest_entropy
from asrtool.searchers.llm_beam import LlmConstraintsConfig
from asrtool.searchers.llm_draft import Row, extended
from asrtool.types import Drafted, EncoderOutput, Padded
from tests import toy_llm
from tests.toy_search import choose

UTTERANCES = 12


class Given:
    """Drafts that a test gives, in place of those of a head."""

    name = "ctc"

    def __init__(self, drafts, entropies=None) -> None:
        entropies = entropies or [9.0] * len(drafts)
        self.drafts = [
            Draft(tuple(d), -1.5, entropy) for d, entropy in zip(drafts, entropies, strict=True)
        ]

    def draft(self, encoded: EncoderOutput) -> list[Draft]:
        return self.drafts


def build(model, drafts=None, entropies=None, *, scorer=None, **settings):
    names = ("entropy", "likelihood", "redraft")
    own = {name: settings.pop(name) for name in names if name in settings}
    limits = LlmConstraintsConfig(**{"max_tokens": 12, **settings})
    scorers = None if scorer is None else {"llm": scorer}
    searcher = SEARCHERS.build(
        LlmDraftConfig(constraints=limits, **own), model=model, scorers=scorers
    )
    if drafts is not None:
        searcher.drafter = Given(drafts, entropies)
    return searcher


def greedy(model, encoded, **settings):
    limits = LlmConstraintsConfig(**{"max_tokens": 12, **settings})
    return SEARCHERS.build(LlmBeamConfig(beam=1, constraints=limits), model=model).search(encoded)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = toy_llm.save_llm(tmp_path_factory.mktemp("llm"), seed=3)
    return toy_llm.build(toy_llm.config(folder), ("llm", "ctc"))


@pytest.fixture(scope="module")
def encoded(model):
    """A test set of noise, 0.2 to 1.2 s."""
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(20, 120, (UTTERANCES,), generator=generator).tolist()
    rows = [torch.randn(size, 20, generator=generator) for size in sizes]
    with torch.inference_mode():
        return model.encode(Padded.stack(rows))


def spoilt(texts, how: str):
    """Drafts of some quality from the texts that they should be."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for text in texts:
        draft = list(text)
        if how == "wrong":
            draft = [3 + (token - 2) % 20 for token in draft]
        elif how == "empty":
            draft = []
        elif how == "long":
            draft = [*draft, *draft, *[5] * 20]
        elif how == "mixed":
            edited = []
            for token in draft:
                kind = int(torch.randint(8, (), generator=generator))
                edited += {0: [], 1: [3 + token % 30], 2: [token, 7], 3: [9, token]}.get(
                    kind, [token]
                )
            draft = edited
        made.append(tuple(draft))
    return made


LIMITS = [
    {},
    {"max_tokens": 30, "no_repeat_ngram": 2},
    {"min_tokens": 6},
    {"max_tokens": None, "max_tokens_per_second": 8.0},
    {"max_tokens": None, "max_tokens_per_frame": 1.5},
]


@pytest.mark.hf
@pytest.mark.parametrize("redraft", [False, True])
@pytest.mark.parametrize("limits", LIMITS)
def test_strict_drafting_has_the_tokens_of_greedy_search(model, encoded, limits, redraft):
    expected = [nbest[0] for nbest in greedy(model, encoded, **limits)]
    texts = [hypothesis.tokens for hypothesis in expected]
    assert len({*texts}) > UTTERANCES // 2
    passes = {}
    for how in ("perfect", "mixed", "wrong", "empty", "long"):
        searcher = build(model, spoilt(texts, how), redraft=redraft, **limits)
        found = [nbest[0] for nbest in searcher.search(encoded)]
        assert [h.tokens for h in found] == texts, how
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-3)
        passes[how] = sum(h.drafted.passes for h in found)
    assert passes["perfect"] == UTTERANCES < passes["mixed"] <= passes["empty"]
    # one pass for each token or end, but for the last token at the limit
    assert passes["empty"] == sum(
        len(text) + (len(text) < limit)
        for text, limit in zip(
            texts, searcher.config.constraints.limits(encoded, 0.01), strict=True
        )
    )


@pytest.mark.hf
def test_the_head_drafts_in_tokens_of_the_language_model(model, encoded):
    found = build(model, max_tokens=30).search(encoded)
    assert [h[0].tokens for h in found] == [
        h[0].tokens for h in greedy(model, encoded, max_tokens=30)
    ]
    paths = SEARCHERS.build(SEARCHERS.config_type("ctc_greedy")(), model=model).search(encoded)
    assert [h[0].drafted.tokens for h in found] == [
        len(model.respelled(path[0].tokens)) for path in paths
    ]
    assert any(h[0].drafted.tokens for h in found)


@pytest.mark.hf
@pytest.mark.parametrize("likelihood", [None, 0.05])
def test_an_utterance_alone_is_what_it_is_in_a_batch(model, encoded, likelihood):
    texts = [nbest[0].tokens for nbest in greedy(model, encoded)]
    drafts = spoilt(texts, "mixed")
    settings = {"likelihood": likelihood, "redraft": True}
    together = build(model, drafts, **settings).search(encoded)
    for row in range(UTTERANCES):
        alone = build(model, [drafts[row]], **settings).search(choose(encoded, [row]))[0][0]
        assert alone.tokens == together[row][0].tokens
        assert alone.drafted == together[row][0].drafted
        assert alone.score == pytest.approx(together[row][0].score, abs=1e-3)


@pytest.mark.hf
def test_sliding_windows_see_the_same_tokens_after_a_cut(tmp_path):
    """Rows of a batch are cut by different numbers of tokens, far beyond the window."""
    from transformers import MistralConfig, MistralForCausalLM

    folder = toy_llm.save_llm(tmp_path)
    torch.manual_seed(4)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 6}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    size = len(toy_llm.tokenizer())
    language = MistralConfig(vocab_size=size, initializer_range=0.5, **settings, **ends)
    MistralForCausalLM(language).save_pretrained(str(folder))
    model = toy_llm.build(toy_llm.config(folder), ("llm", "ctc"))
    with torch.inference_mode():
        encoded = model.encode(toy_llm.batch(False).inputs)
    texts = [nbest[0].tokens for nbest in greedy(model, encoded, max_tokens=20)]
    for redraft in (False, True):
        searcher = build(model, spoilt(texts, "mixed"), redraft=redraft, max_tokens=20)
        assert [nbest[0].tokens for nbest in searcher.search(encoded)] == texts


@pytest.mark.hf
def test_a_cut_state_is_that_of_the_shorter_prefixes(model, encoded):
    scorer, few = LlmScorer(model), choose(encoded, [0, 1, 2])
    draft = Padded.stack([torch.tensor(row) for row in ([5, 6, 7, 8], [9], [4, 3, 12])])
    with torch.inference_mode():
        _, state = scorer.verify(scorer.prepare(few), None, draft)
        state = scorer.cut(state, 4 - torch.tensor([1, 1, 3]))
        nothing = Padded.stack([torch.zeros(0, dtype=torch.int64)] * 3)
        after, _ = scorer.verify(state, torch.tensor([10, 11, 12]), nothing)
        for row, text in enumerate(([5, 10], [9, 11], [4, 3, 12, 12])):
            whole = Padded.stack([torch.tensor(text)])
            alone, _ = scorer.verify(scorer.prepare(choose(few, [row])), None, whole)
            torch.testing.assert_close(next(after)[0], next(alone)[-1], atol=1e-4, rtol=1e-4)


# -- relaxed settings, by hand -------------------------------------------------


class Table:
    """A language model of four tokens: 0, a, b and the end, whose probabilities depend on the
    number of tokens before.
    """

    blank, eos, frame_shift = 0, 3, 0.04
    partial = False
    heads = {"ctc": SimpleNamespace(alignment="ctc")}

    def __init__(self, rows) -> None:
        self.rows = torch.tensor(rows).log()

    def scorers(self):
        return {"llm": self}

    def log_probs(self, encoded, head="ctc"):
        raise AssertionError("drafts are given")

    def prepare(self, encoded):
        return [0] * len(encoded.frames.lengths)

    def verify(self, state, newest, draft):
        read = [count + (newest is not None) for count in state]
        pairs = list(zip(read, draft.lengths.tolist(), strict=True))
        rows = (self.rows[count : count + length + 1].clone() for count, length in pairs)
        return rows, [count + draft.data.shape[1] for count in read]

    def cut(self, state, rejected):
        return [count - less for count, less in zip(state, rejected.tolist(), strict=True)]

    def select(self, state, rows):
        return [state[row] for row in rows.tolist()]


A, B = 1, 2
#              0     a    b    end
SAYS = [
    [0.0, 0.7, 0.2, 0.1],
    [0.0, 0.35, 0.6, 0.05],
    [0.0, 0.1, 0.6, 0.3],
    [0.0, 0.1, 0.05, 0.85],
]


def heard(count=1):
    frames = Padded(torch.zeros(count, 5, 1), torch.full((count,), 5))
    return EncoderOutput(frames=frames, positions=torch.arange(5).expand(count, 5))


def result(draft, **settings):
    return build(Table(SAYS), [draft], **settings).search(heard())[0][0]


@pytest.mark.parametrize(
    ("likelihood", "draft", "tokens", "probabilities", "accepted", "passes"),
    [
        (None, (A, A), (A, B, B), (0.7, 0.6, 0.6, 0.85), 1, 3),
        # 0.35 suffices for the second a; behind the draft the end has 0.3
        (0.29, (A, A), (A, A), (0.7, 0.35, 0.3), 2, 1),
        # ... and not here: the third token is the best one, then the end
        (0.34, (A, A), (A, A, B), (0.7, 0.35, 0.6, 0.85), 2, 2),
        # 0.2 is too little for the first b: what follows is no longer drafted
        (0.3, (B, A), (A, B, B), (0.7, 0.6, 0.6, 0.85), 0, 4),
        # the best token is accepted, however improbable
        (0.9, (A, B, B), (A, B, B), (0.7, 0.6, 0.6, 0.85), 3, 1),
        (0.0, (B, B, A), (B, B, A), (0.2, 0.6, 0.1, 0.85), 3, 1),
    ],
)
def test_tokens_are_accepted_by_their_likelihood(
    likelihood, draft, tokens, probabilities, accepted, passes
):
    found = result(draft, likelihood=likelihood)
    assert found.tokens == tokens
    assert exp(found.score) == pytest.approx(torch.tensor(probabilities).prod().item(), rel=1e-5)
    assert found.drafted == Drafted(tokens=len(draft), accepted=accepted, passes=passes)


def test_a_draft_of_certain_frames_is_not_verified():
    drafts, entropies = [(B, B), (B, B), ()], [0.7, 0.8, 0.1]
    searcher = build(Table(SAYS), drafts, entropies, entropy=0.7)
    certain, doubtful, silent = (nbest[0] for nbest in searcher.search(heard(3)))
    assert (certain.tokens, certain.parts) == ((B, B), {"ctc": -1.5})
    assert certain.drafted == Drafted(tokens=2, accepted=2, passes=0)
    assert doubtful.tokens == (A, B, B) and doubtful.drafted.passes == 4
    assert silent.tokens == () and silent.drafted.passes == 0


@pytest.mark.parametrize(
    "limits", [{"max_tokens": 1}, {"min_tokens": 3}, {"no_repeat_ngram": 1}], ids=str
)
def test_a_certain_draft_that_the_constraints_forbid_is_verified(limits):
    found = build(Table(SAYS), [(B, B)], [0.0], entropy=0.5, **limits).search(heard())[0][0]
    assert found.drafted.passes > 0 and found.tokens != (B, B)


def test_the_entropy_of_a_draft_is_the_highest_of_its_frames():
    even = torch.tensor([0.25, 0.25, 0.25, 0.25]).log()
    sure = torch.tensor([1.0, 0.0, 0.0, 0.0]).log()
    half = torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    log_probs = Padded(
        torch.stack([torch.stack([sure, half, even]), torch.stack([sure, sure, even])]),
        torch.tensor([3, 1]),
    )
    found = highest_entropy(log_probs)
    torch.testing.assert_close(found, torch.tensor([4.0, 1.0]).log())


def test_a_draft_goes_on_where_it_fits_the_text():
    def place_after(text, draft="abcdefgh"):
        row = Row(0, 99, tuple(draft), redraft=True)
        for token in text[:-1]:
            row.append(token, accepted=draft[row.place] == token)
        row.append(text[-1], accepted=False)
        return row.place

    assert place_after("abX") == 3  # c is replaced by X
    assert place_after("abd") == 4  # the draft has a c too much
    assert place_after("abXc") == 3  # the draft lacks an X
    assert place_after("X") == 1
    assert extended([0, 1, 2], "ab", "b") == [1, 1, 1]


# -- configs, messages and the page ------------------------------------------------------


def test_length_terms_are_refused():
    for name in ("length_bonus", "length_penalty"):
        with pytest.raises(ValueError, match=f"constraints.{name}.*llm_beam"):
            LlmDraftConfig(constraints=LlmConstraintsConfig(**{name: 0.5}))


def test_two_sources_of_a_draft_are_refused():
    with pytest.raises(ValueError, match="set one of them"):
        LlmDraftConfig(input="ctc", encoder_ctc=EncoderCtcConfig(path="head.safetensors"))


@pytest.mark.hf
def test_a_state_that_cannot_be_cut_is_refused(model, encoded, monkeypatch):
    monkeypatch.setattr(
        model.llm.config, "layer_types", ["linear_attention", "full_attention"], raising=False
    )
    with pytest.raises(ValueError, match=r"\(linear_attention\) cannot be cut.*llm_beam"):
        build(model).search(encoded)


def test_the_page_has_the_steps_of_the_code_and_configs_that_are_read():
    page = (Path(__file__).parents[3] / "docs/papers/llm_draft.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    configs = [text for name, text in blocks if name == "yaml"]
    assert configs
    for text in configs:
        found = config.decode(DecodeConfig, yaml.compose(text)).searcher
        assert isinstance(found, LlmDraftConfig)
    steps = next(text for name, text in blocks if not name)
    code = {" ".join(line.split()) for line in llm_draft.__doc__.replace("`", "").splitlines()}
    printed = {" ".join(line.split()) for line in steps.splitlines()}
    assert len(printed) == 9 and printed <= code
