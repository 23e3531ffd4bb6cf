#!/usr/bin/env python
"""The configs of studies/keyframe.sh that are no overrides of the key frames' config, since they
have other losses or no phases.

    python studies/keyframe_variants.py --config conf/keyframe/train_keyframe.yaml --out exp/configs

writes <out>/<name of the config>_<variant>.yaml:

    baseline    the same layers, decoder and losses, every frame kept
    early       key frames from the first epoch: the inter-CTC head is untrained, and what it keeps
                is noise
    til         the time independence loss, which asks for the right tokens in any order
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
        "--config", type=Path, required=True, help="with the phases base, fusion and keyframe"
    )
    options.add_argument("--out", type=Path, required=True, help="folder of the configs")
    options.add_argument(
        "--epochs",
        type=int,
        help="of baseline and early; default: as many as the phases have together",
    )
    args = options.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, phases in variants(load_phases(args.config), args.epochs).items():
        path = args.out / f"{args.config.stem}_{name}.yaml"
        atomic.write_text(path, dump_phases(phases))
        print(path)


def variants(phases: Phases, epochs: int | None = None) -> dict[str, Phases]:
    """Variant -> its phases; 'train' is the only one of a variant that has none."""
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
    # one CTC loss weighs what both did
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
    """A training without phases, by the data and the optimizer of the first one."""
    trainer = dataclasses.replace(base.trainer, epochs=epochs)
    return dataclasses.replace(base, trainer=trainer, init=InitConfig())


def til(phases: Phases) -> Phases:
    changed = {}
    for name, phase in phases.items():
        aligned = TilConfig(weight=phase.losses["aligned"].weight)
        changed[name] = dataclasses.replace(phase, losses={**phase.losses, "aligned": aligned})
    # reading this loss's head frame by frame tells little
    best = dataclasses.replace(changed["keyframe"].trainer, best="valid/attention")
    changed["keyframe"] = dataclasses.replace(changed["keyframe"], trainer=best)
    return changed


if __name__ == "__main__":
    main()
