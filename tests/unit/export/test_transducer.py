"""A transducer as three graphs: what is written, for which models, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asrtool.data.fbank import FbankConfig
from asrtool.errors import UserError
from asrtool.export import cached, prove, sherpa, transducer, whole, zipformer
from asrtool.export.build import ExportConfig, build
from asrtool.export.graph import session
from asrtool.heads import LstmConfig, StatelessConfig, TransducerHeadConfig
from asrtool.losses import TransducerConfig
from asrtool.model_folder import build_model, in_chunks
from asrtool.recognizer import Recognizer
from asrtool.types import Padded
from tests.unit.export.test_chunks import eager_zipformer, streaming

ONE_CHUNK = {"sherpa": True, "streaming": True}
FBANK = FbankConfig(preset="sherpa", rate=8000, num_mel_bins=20)


def recognizer(toy: Path, predictor: object = None, chunks: bool = True) -> Recognizer:
    """The toy with a transducer beside CTC, of random weights that say something."""
    found = streaming(toy)
    head = TransducerHeadConfig(predictor=predictor or StatelessConfig(dim=16), dim=12)
    config = replace(
        found.config,
        model=replace(found.config.model, heads={"transducer": head}),
        losses={**found.config.losses, "transducer": TransducerConfig(weight=1.0)},
        data=replace(found.config.data, fbank=FBANK),
    )
    torch.manual_seed(0)
    model = build_model(config, found.tokenizer.size).eval()
    with torch.no_grad():
        model.heads["transducer"].joiner.weight.mul_(30)
        model.heads["transducer"].joiner.bias[1] = -100  # sherpa-onnx never says <unk>
    if not chunks:
        return replace(
            found,
            config=config,
            model=model,
            settings=replace(found.settings, chunk_ms=None, left_chunks=None),
        )
    return replace(found, config=config, model=in_chunks(model, found.settings))


def test_the_highest_head_that_has_the_form_is_exported_unless_another_one_is_named(toy):
    both = recognizer(toy)
    forms = {
        "plain": ExportConfig(),
        "whole": ExportConfig(sherpa=True),
        "wenet": ExportConfig(**ONE_CHUNK),
        "zipformer": ExportConfig(**ONE_CHUNK, caches="zipformer"),
    }
    chosen = {name: whole.head_of(both, form.alignments) for name, form in forms.items()}
    assert chosen == {
        "plain": "ctc",
        "whole": "transducer",
        "wenet": "ctc",
        "zipformer": "transducer",
    }
    assert whole.head_of(both, ("ctc", "transducer"), "ctc") == "ctc"
    with pytest.raises(UserError, match="--head transducer cannot be .* heads that can: ctc"):
        whole.head_of(both, forms["wenet"].alignments, "transducer")


def test_a_predictor_with_a_state_is_refused_with_what_can_be_exported(toy):
    with pytest.raises(UserError, match="has a state; its CTC head can be exported: --head ctc"):
        transducer.head_of(recognizer(toy, LstmConfig(dim=8)), "transducer")


def test_the_encoder_of_a_transducer_goes_chunk_by_chunk(toy):
    both = recognizer(toy)
    graph = cached.CachedGraph(both, "transducer").eval()
    packed = zipformer.ZipformerGraph(graph).eval()
    assert cached.compare(both, graph, eager_zipformer(packed)) < 1e-4
    assert next(iter(zipformer.ports(packed).outputs)) == "encoder_out"


def greedy(folder: Path, features: np.ndarray, blank: int, context: int) -> list[int]:
    """One token a frame, by the three graphs, as sherpa-onnx goes through them."""
    encoder, decoder, joiner = (session(folder / f"{part}.onnx") for part in sherpa.PARTS)
    frames, lengths = encoder.run(
        None, {"inputs": features[None], "lengths": np.array([len(features)])}
    )
    tokens = [-1] * (context - 1) + [blank]
    (said,) = decoder.run(None, {"y": np.array([tokens[-context:]])})
    for frame in frames[0, : lengths[0]]:
        values = {"encoder_out": frame[None], "decoder_out": said}
        symbol = int(joiner.run(None, values)[0].argmax())
        if symbol != blank:
            tokens.append(symbol)
            (said,) = decoder.run(None, {"y": np.array([tokens[-context:]])})
    return tokens[context:]


@pytest.mark.parametrize("context", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_three_graphs_say_what_the_model_says(toy, tmp_path, context):
    onnx = pytest.importorskip("onnx", reason="pip install -e '.[onnx]'")
    both = recognizer(toy, StatelessConfig(dim=16, context=context), chunks=False)
    build(both, ExportConfig(sherpa=True), toy / "exp" / "vocab", tmp_path)
    names = {f"{part}.onnx" for part in sherpa.PARTS}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "tokens.txt", "export.json"}
    facts = [
        {one.key: one.value for one in onnx.load(tmp_path / f"{part}.onnx").metadata_props}
        for part in sherpa.PARTS
    ]
    size = str(both.tokenizer.size)
    assert facts[0]["model_type"] == "zipformer2" and facts[0]["vocab_size"] == size
    assert facts[1:] == [{"vocab_size": size, "context_size": str(context)}, {"joiner_dim": "12"}]
    search, said = prove.greedy(both, "transducer"), 0
    for seed in range(3):
        features, _ = whole.inputs(both, 1, 60, seed, samples=False)
        normalised = (features - torch.from_numpy(both.cmvn.mean)) / torch.from_numpy(both.cmvn.std)
        nbest = search.search(Padded(normalised, torch.tensor([60])))[0]
        tokens = greedy(tmp_path, features[0].numpy(), 0, context)
        assert tokens == list(nbest[0].tokens)
        said += len(tokens)
    assert said > 10
