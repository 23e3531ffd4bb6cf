#!/usr/bin/env python
"""Writes the configs of studies/keyframe.sh that overrides of the config cannot express.

    python studies/keyframe_variants.py --config conf/keyframe/train_keyframe.yaml --out exp/configs

They have other losses or no phases. The files are <out>/<name of the config>_<variant>.yaml:

    baseline    the same layers and decoder, with every frame kept; one CTC loss with the weight of
                both
    early       key frames from the first epoch, selected by an inter-CTC head that is untrained
    til         the time independence loss, which ignores the order of the tokens, in the place of
                aligned cross entropy
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from asrtool.downsamplers import KeyframeConfig
from asrtool.experiment import InitConfig, TrainConfig, dump_phases, load_phases
from asrtool.losses import TilConfig
from asrtool.system import atomic

Phases = dict[str, TrainConfig]


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--config",
        type=Path,
        required=True,
        help="training config with the phases base, fusion and keyframe",
    )
    options.add_argument("--out", type=Path, required=True, help="folder to write the configs into")
    options.add_argument(
        "--epochs",
        type=int,
        help="epochs of baseline and early (default: the sum over all phases)",
    )
    args = options.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, phases in variants(load_phases(args.config), args.epochs).items():
        path = args.out / f"{args.config.stem}_{name}.yaml"
        atomic.write_text(path, dump_phases(phases))
        print(path)


def variants(phases: Phases, epochs: int | None = None) -> dict[str, Phases]:
    """Variant -> its phases; a variant without phases has the single phase `train`."""
    if epochs is None:
        epochs = sum(phase.trainer.epochs for phase in phases.values())
    return {
        "baseline": {"train": baseline(phases, epochs)},
        "early": {"train": early(phases, epochs)},
        "til": til(phases),
    }


def baseline(phases: Phases, epochs: int) -> TrainConfig:
    base = phases["base"]
    encoder = base.model.encoder
    kept = {
        layer: downsampler
        for layer, downsampler in encoder.downsamplers.items()
        if not isinstance(downsampler, KeyframeConfig)
    }
    # the only CTC loss gets the weight of both
    ctc = base.losses["ctc"].weight + base.losses["inter_ctc"].weight
    losses = {
        "ctc": dataclasses.replace(base.losses["ctc"], weight=round(ctc, 6)),
        "attention": base.losses["attention"],
    }
    model = dataclasses.replace(base.model, encoder=dataclasses.replace(encoder, downsamplers=kept))
    return dataclasses.replace(whole(base, epochs), model=model, losses=losses)


def early(phases: Phases, epochs: int) -> TrainConfig:
    last = phases["keyframe"]
    return dataclasses.replace(whole(phases["base"], epochs), model=last.model, losses=last.losses)


def whole(base: TrainConfig, epochs: int) -> TrainConfig:
    """A training without phases, with the data and the optimizer of the first phase."""
    trainer = dataclasses.replace(base.trainer, epochs=epochs)
    return dataclasses.replace(base, trainer=trainer, init=InitConfig())


def til(phases: Phases) -> Phases:
    changed = {}
    for name, phase in phases.items():
        aligned = TilConfig(weight=phase.losses["aligned"].weight)
        changed[name] = dataclasses.replace(phase, losses={**phase.losses, "aligned": aligned})
    # with this loss, the best path of the aligned head does not spell the text in order
    best = dataclasses.replace(changed["keyframe"].trainer, best="valid/attention")
    changed["keyframe"] = dataclasses.replace(changed["keyframe"], trainer=best)
    return changed


if __name__ == "__main__":
    main()
