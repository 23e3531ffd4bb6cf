"""Kernels are made for shapes: training must not meet new ones for ever."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asrtool import experiment, training
from asrtool.data import tokenizers
from asrtool.model_folder import build_model
from asrtool.trainer.step import Stepper
from tests.toy_corpus import CONFIG, write_corpus, write_set

PRODUCTS = {
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::convolution",
    "aten::convolution_backward",
}


class Shapes(TorchDispatchMode):
    """The shapes of all products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        if name in PRODUCTS:
            self.seen.add(
                (name, *(tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)))
            )
        return func(*args, **(kwargs or {}))


def test_a_second_epoch_has_no_shape_that_the_first_has_not(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_set(tmp_path / "more", 120, seed=3)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "cmvn.json").symlink_to(tmp_path / "more" / "cmvn.json")
    phase = next(iter(experiment.load_phases(tmp_path / "config.yaml", []).values()))
    sources = training.Sources(
        train=tmp_path / "more", valid=tmp_path / "valid", vocab=tmp_path / "vocab"
    )
    tokenizer = tokenizers.load(tmp_path / "vocab")
    sets = training.read_sets(sources, phase)
    batches, _ = training.loaders(tmp_path, phase, sources, sets, tokenizer)
    stepper = Stepper(
        phase.optim,
        build_model(phase, tokenizer.size),
        training.make_objective(phase, tokenizer, tmp_path / "vocab"),
        planned=100,
        precision="float32",
        device=torch.device("cpu"),
        seed=0,
    )
    epochs, step, groups = [], 0, iter(batches.steps())
    for epoch in range(2):
        with Shapes() as shapes:
            for _ in range(batches.num_steps(epoch)):
                step += 1
                stepper.update(next(groups), step)
        epochs.append(shapes.seen)
    assert len(epochs[0]) > 20
    assert epochs[1] == epochs[0]
