"""A trained experiment, ready to recognise: config, vocabulary, normalisation, averaged weights, searcher."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from asrtool import experiment
from asrtool.data.features import Cmvn
from asrtool.data.tokenizers import Tokenizer, load
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.models import MODELS, AsrModel
from asrtool.searchers import SEARCHERS, Searcher
from asrtool.train import checkpoint, folder
from asrtool.types import Hypothesis, Padded


class ExperimentError(ValueError):
    """The experiment folder does not hold what is asked of it."""


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """Built by `load`; `recognize` maps inputs, as the loader gives them, to n-best lists with text."""

    config: TrainConfig
    model: AsrModel
    searcher: Searcher
    tokenizer: Tokenizer
    cmvn: Cmvn | None
    weights: Path  # what was loaded: an average or one checkpoint

    @classmethod
    def load(
        cls, exp: Path, decode: DecodeConfig, device: torch.device | str = "cpu", weights: Path | None = None
    ) -> Recognizer:
        """From the folder that training wrote; `weights`: a file instead of the average that `decode` asks for."""
        config = phase_config(exp, decode)[1]
        weights = weights or averaged(exp, decode)
        tokenizer = load(exp / "vocab")
        model = build_model(config, tokenizer.size)
        checkpoint.load_model(model, weights)
        model = model.to(device).eval()
        searcher = SEARCHERS.build(decode.searcher, model=model)
        cmvn = Cmvn.load(exp / "cmvn.json") if (exp / "cmvn.json").exists() else None
        return cls(config=config, model=model, searcher=searcher, tokenizer=tokenizer, cmvn=cmvn, weights=weights)

    @torch.inference_mode()
    def recognize(self, inputs: Padded) -> list[list[Hypothesis]]:
        """inputs (B, T, F) normalised features or (B, T) samples -> an n-best list per utterance, best first, with
        text."""
        nbests = self.searcher.search(self.model.encode(inputs))
        return [[replace(h, text=self.tokenizer.decode(h.tokens)) for h in nbest] for nbest in nbests]

    def fingerprint(self) -> str:
        """Of the weights: decoding again with others is another decoding."""
        with open(self.weights, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def phase_config(exp: Path, decode: DecodeConfig) -> tuple[str, TrainConfig]:
    """Name and config of the phase that `decode` names, by default the last."""
    if not (exp / "config.yaml").exists():
        raise ExperimentError(f"{exp} holds no config.yaml: train first (stage 3), or give another --exp")
    phases = experiment.load_phases(exp / "config.yaml")
    name = decode.phase or list(phases)[-1]
    if name not in phases:
        raise ExperimentError(f"{exp} has no phase '{name}'; it has: {', '.join(phases)}")
    return name, phases[name]


def averaged(exp: Path, decode: DecodeConfig) -> Path:
    """The file of the averaged weights, made if it is not there yet."""
    phase = exp / phase_config(exp, decode)[0]
    if not decode.unfinished and folder.finished(phase) is None:
        raise ExperimentError(
            f"the training in {phase} is not finished; go on with it (stage 3 again), or decode with the checkpoints "
            "it has by --set unfinished=true (--decode-args of run.sh)"
        )
    return checkpoint.average(phase, decode.average)


def build_model(config: TrainConfig, vocab_size: int) -> AsrModel:
    """The model of a phase, with fresh weights."""
    data = config.data
    fbank = data.input == "fbank"
    return MODELS.build(
        config.model,
        input_dim=data.fbank.num_mel_bins if fbank else 1,
        vocab_size=vocab_size,
        frame_shift=data.fbank.frame_shift_ms / 1000 if fbank else 1 / data.fbank.rate,
        streams=config.streams,
    )
