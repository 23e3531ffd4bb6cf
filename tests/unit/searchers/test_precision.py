"""Every search in half precision, as `precision` of decoding computes it, against float32."""

from __future__ import annotations

import pytest
import torch

from asrtool.decoders import TransformerDecoderConfig
from asrtool.encoders import ConformerConfig
from asrtool.heads import LstmConfig, TransducerHeadConfig
from asrtool.models import MODELS, HybridConfig
from asrtool.searchers import (
    SEARCHERS,
    AttentionBeamConfig,
    ConstraintsConfig,
    CtcGreedyConfig,
    CtcPrefixBeamConfig,
    JointBeamConfig,
    LlmBeamConfig,
    LlmDraftConfig,
    RescoringConfig,
    TransducerBeamConfig,
    TransducerGreedyConfig,
)
from asrtool.searchers.llm_beam import LlmConstraintsConfig
from asrtool.types import Padded
from tests import toy_llm

FORMATS = {"bf16": (torch.bfloat16, 0.05), "fp16": (torch.float16, 0.01)}
LIMITS = ConstraintsConfig(max_tokens=8)
LLM_LIMITS = LlmConstraintsConfig(max_tokens=8)
HYBRID = {
    "attention_beam": AttentionBeamConfig(beam=3, constraints=LIMITS),
    "joint_beam": JointBeamConfig(beam=3, constraints=LIMITS),
    "ctc_greedy": CtcGreedyConfig(),
    "ctc_prefix_beam": CtcPrefixBeamConfig(beam=3),
    "attention_rescoring": RescoringConfig(first_pass=CtcPrefixBeamConfig(beam=3)),
    "transducer_greedy": TransducerGreedyConfig(),
    "transducer_beam": TransducerBeamConfig(),
}
LLM = {
    "llm_beam": LlmBeamConfig(beam=3, constraints=LLM_LIMITS),
    "llm_draft": LlmDraftConfig(constraints=LLM_LIMITS),
}


@pytest.fixture(scope="module")
def hybrid():
    torch.manual_seed(0)
    encoder = ConformerConfig(num_layers=1, dim=16, num_heads=2, ffn_dim=32, kernel=5)
    decoder = TransformerDecoderConfig(num_layers=1, num_heads=2, ffn_dim=32)
    heads = {"transducer": TransducerHeadConfig(predictor=LstmConfig(dim=16), dim=16)}
    return MODELS.build(
        HybridConfig(encoder=encoder, decoder=decoder, heads=heads),
        input_dim=20,
        vocab_size=7,
        frame_shift=0.01,
        heads=frozenset({"ctc", "attention", "transducer"}),
    ).eval()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = toy_llm.save_llm(tmp_path_factory.mktemp("llm"), seed=3)
    return toy_llm.build(toy_llm.config(folder), ("llm", "ctc"))


def test_every_search_is_tested():
    assert {*HYBRID, *LLM} == {*SEARCHERS.names()}


def search(config, model, dtype=None):
    generator = torch.Generator().manual_seed(0)
    inputs = Padded.stack([torch.randn(length, 20, generator=generator) for length in (90, 50)])
    searcher = SEARCHERS.build(config, model=model)
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        return searcher.search(model.encode(inputs))


def compare(config, model, dtype, tolerance: float) -> None:
    """Rounding may change a close choice, but not what the best text is worth."""
    exact, found = search(config, model), search(config, model, dtype)
    for one, other in zip(found, exact, strict=True):
        assert one[0].score == pytest.approx(other[0].score, rel=tolerance, abs=tolerance)
        assert one[0].score != other[0].score  # it was computed in that precision


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", HYBRID)
def test_hybrid_models(hybrid, name, number_format):
    compare(HYBRID[name], hybrid, *FORMATS[number_format])


@pytest.mark.hf
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", LLM)
def test_speech_llms(llm, name, number_format):
    compare(LLM[name], llm, *FORMATS[number_format])
