"""All configs of all recipes: read, built at full size on the meta device, one step at toy size."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from pathlib import Path

import pytest
import torch

from asrtool.experiment import TrainConfig, dump_phases, load_decode, load_phases
from asrtool.losses import LOSSES
from asrtool.model_folder import build_model
from asrtool.models import LM_OUTPUT, TEXT_MODELS, AsrModel, LanguageModel
from asrtool.searchers import SEARCHERS
from asrtool.trainer.objective import Objective
from asrtool.types import Batch, EncoderOutput, Padded
from tests.recipes.models import on_meta

EGS = Path(__file__).parents[2] / "egs"
TRAIN = sorted(EGS.glob("*/conf/**/train_*.yaml"))
DECODE = sorted(EGS.glob("*/conf/**/decode_*.yaml"))
TOY = {"num_layers": 2, "dim": 16, "ffn_dim": 32, "num_heads": 2, "kernel": 3, "channels": 4}
TOY |= {"size": "tiny", "weights": None, "cgmlp_dim": 16, "merge_kernel": 3}
VOCABULARY = 12
TOKENS = ["<blank>", "<unk>", "<space>", *"ABCDEFGH", "<sos/eos>"]
WORDS = """\\data\\
ngram 1=6

\\1-grams:
-99 <s> 0
-1 </s> 0
-2 <unk> 0
-1 A 0
-1 AB 0
-1 HEAD 0

\\end\\
"""
# pre-trained networks: small ones of the same kind, from scratch; fields that a config has
SCRATCH = {
    "weights": None,
    "encoder_weights": None,
    "size": "tiny",
    "shape": "llama-tiny",
    "prompt": "{speech}",
    "chat": False,
    "layers": None,
}


def shrink(config):
    """The same config with every size of TOY; layers that a downsampler stands in front of, or that
    are named, stay.
    """
    if not dataclasses.is_dataclass(config):
        return (
            {key: shrink(value) for key, value in config.items()}
            if isinstance(config, dict)
            else config
        )
    changed = {}
    names = {field.name for field in dataclasses.fields(config)}
    if names & {"weights", "encoder_weights", "rank"}:
        config = dataclasses.replace(
            config, **{key: value for key, value in SCRATCH.items() if key in names}
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        changed[field.name] = (
            TOY[field.name] if field.name in TOY and value is not None else shrink(value)
        )
    if "rate" in names and changed.get("kernel"):  # an adapter's kernel must not be below its rate
        changed["kernel"] = max(changed["kernel"], changed["rate"])
    if isinstance(changed.get("downsamplers"), dict):
        changed["num_layers"] = max(changed["num_layers"], max(changed["downsamplers"]) + 1)
    if getattr(changed.get("accent"), "layers", None):
        changed["num_layers"] = max(changed["num_layers"], max(changed["accent"].layers) + 1)
    return dataclasses.replace(config, **changed)


def toy(phase: TrainConfig) -> TrainConfig:
    """With a shrunken model, which reads samples where frames of the whole one are stored."""
    data = phase.data
    if data.features == "stored_frames":
        data = dataclasses.replace(data, features="stored")
    return dataclasses.replace(phase, data=data, model=shrink(phase.model))


def toy_batch(config: TrainConfig) -> Batch:
    generator = torch.Generator().manual_seed(0)
    size = (config.data.fbank.num_mel_bins,) if config.data.input == "fbank" else ()
    frames = 60 if size else 16000
    inputs = Padded.stack(
        [torch.randn(length, *size, generator=generator) for length in (frames, frames // 2)]
    )
    targets = Padded.stack([torch.tensor([3, 4, 4]), torch.tensor([5])])
    return Batch(ids=("a", "b"), inputs=inputs, targets=targets)


def name(path: Path) -> str:
    return str(path.relative_to(EGS))


def configs(path: Path) -> Path:
    """The folder of all configs of the recipe that `path` is of."""
    return EGS / path.relative_to(EGS).parts[0] / "conf"


def test_every_config_is_tested_here_and_names_an_experiment_of_its_own():
    """Folders below conf/ are for readers: the experiment is called as the file alone."""
    every = sorted(path for path in EGS.glob("*/conf/**/*") if path.is_file())
    assert every == sorted(TRAIN + DECODE)
    names = [(configs(path), path.name) for path in every]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_a_training_config_survives_being_written_and_read(path, tmp_path):
    phases = load_phases(path)
    (tmp_path / "config.yaml").write_text(dump_phases(phases), encoding="utf-8")
    assert load_phases(tmp_path / "config.yaml") == phases


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_a_training_config_builds_at_full_size(path):
    for phase in load_phases(path).values():
        assert sum(parameter.numel() for parameter in on_meta(phase, 5000).parameters()) > 1e5


stepped: list[tuple] = []  # what was trained


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_a_training_config_trains_a_step_in_which_every_parameter_learns(path):
    for phase in load_phases(path).values():
        small = toy(phase)
        frozen = [name for name, group in phase.optim.groups.items() if group.freeze]
        step = (small.model, small.heads, small.losses, frozen, phase.data.input, phase.data.fbank)
        if step in stepped:  # of another phase or recipe, whose schedule or data differ
            continue
        torch.manual_seed(0)
        model, batch = build_model(small, VOCABULARY), toy_batch(phase)
        losses = {
            key: LOSSES.build(value, eos=VOCABULARY - 1) for key, value in small.losses.items()
        }
        for key, loss in losses.items():
            loss.count([0, *range(1, VOCABULARY)])
            loss.count_labels({getattr(small.losses[key], "label", ""): range(1, 30)})
        objective = Objective(losses, {key: value.weight for key, value in small.losses.items()})
        report = objective(model(batch), batch)
        report.total.backward()
        assert torch.isfinite(report.total) and not report.skipped.any()
        assert not [
            key
            for key, p in model.named_parameters()
            if p.requires_grad
            and p.grad is None
            and not any(fnmatch.fnmatchcase(key, pattern) for pattern in frozen)
        ]
        stepped.append(step)


@functools.cache
def language_models(folder: Path) -> dict[str, LanguageModel]:
    """The scorer `lm` of a recipe that has one."""
    phases = [
        phase
        for path in sorted(folder.rglob("train_lm*.yaml"))
        for phase in load_phases(path).values()
    ]
    models = [build_model(toy(phase), VOCABULARY) for phase in phases]
    return {LM_OUTPUT: models[0].eval()} if models else {}


# drafts need a head that no recipe's config trains: tests/unit/bin/test_export_ctc_head.py
SEARCHED = [path for path in DECODE if not path.name.startswith("decode_llm_draft")]


@pytest.mark.parametrize("path", SEARCHED, ids=name)
def test_a_decoding_config_searches_with_a_model_of_its_recipe(path, tmp_path):
    settings = load_decode(path)
    if "ngram: {}" in path.read_text():  # the command line names the model
        (tmp_path / "words.arpa").write_text(WORDS)
        settings = load_decode(path, (), tmp_path / "words.arpa")
    assert settings.average is None  # the weights are those that training chose
    searched = 0
    for model, encoded in encoded_by(configs(path)):
        try:
            searcher = SEARCHERS.build(
                settings.searcher,
                model=model,
                tokens=TOKENS,
                scorers=language_models(configs(path)),
            )
        except (ValueError, LookupError):
            continue  # this model lacks what the searcher needs; another one must have it
        with torch.inference_mode():
            nbest = searcher.search(encoded)
        assert [len(hypotheses) > 0 for hypotheses in nbest] == [True, True]
        searched += 1
    assert searched


@functools.cache
def encoded_by(folder: Path) -> list[tuple[AsrModel, EncoderOutput]]:
    """Every different model of a recipe, shrunk, and what its encoder gives."""
    seen, made = [], []
    for path in sorted(folder.rglob("train_*.yaml")):
        for phase in load_phases(path).values():
            phase = toy(phase)
            what = (phase.model, phase.heads, phase.data.input, phase.data.fbank)
            if what in seen or isinstance(phase.model, TEXT_MODELS):
                continue
            seen.append(what)
            model = build_model(phase, VOCABULARY).eval()
            with torch.inference_mode():
                made.append((model, model.encode(toy_batch(phase).inputs)))
    return made
