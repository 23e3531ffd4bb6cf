"""Count the trained and frozen parameters of a config's model, which is built without weights.

asrtool parameters conf/speech_llm/train_speech_llm.yaml
asrtool parameters conf/speech_llm/train_speech_llm.yaml --set "model.encoder_tuning.layers=[4,23]"
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from asrtool import experiment, imports
from asrtool.errors import UserError
from asrtool.model_folder import build_model
from asrtool.models import SpeechLlm
from asrtool.nn.meta_device import without_weights
from asrtool.trainer import optim
from asrtool.tuning import is_adapter

# (part, its number of layers) -> LoRA parameters in arXiv 2406.17272
PAPER = {("encoder", 24): "0.65 M", ("llm", 32): "16 M"}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    phases = experiment.load_phases(
        args.config, experiment.split_overrides(args.set), args.import_from
    )
    if args.phase is not None and args.phase not in phases:
        raise UserError(f"{args.config} has no phase '{args.phase}'; it has: {', '.join(phases)}")
    for name in [args.phase] if args.phase is not None else phases:
        with without_weights():
            model = build_model(phases[name], args.vocab_size)
        print(f"{args.config}, phase {name}")
        print("\n".join(render(model, optim.assign(phases[name].optim, model))))
        print()


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool parameters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("config", type=Path, help="train_*.yaml")
    options.add_argument("--phase", help="one of the config's phases (default: each)")
    options.add_argument(
        "--vocab-size", type=int, default=32000, help="tokens of the vocabulary (default: 32000)"
    )
    options.add_argument(
        "--set", action="append", default=[], metavar="'KEY=VALUE ...'", help="overrides"
    )
    imports.add_options(options, modules=False)
    return options.parse_args(argv)


def render(model: nn.Module, groups: Mapping[str, optim.GroupConfig]) -> list[str]:
    """The lines of the table; for a speech LLM also the sizes of encoder, language model and
    adapter.
    """
    rows = []
    for name, part in [*model.named_children(), ("total", model)]:
        prefix = "" if part is model else f"{name}."
        sizes = {key: value.numel() for key, value in part.named_parameters()}
        trained = sum(size for key, size in sizes.items() if not groups[prefix + key].freeze)
        adapters = sum(size for key, size in sizes.items() if is_adapter(key))
        rows.append((name, sum(sizes.values()), trained, adapters))
    layers = layers_of(model) if isinstance(model, SpeechLlm) else {}
    lines = [f"{'part':10} {'parameters':>15} {'trained':>15} {'LoRA':>13}"]
    for name, *numbers in rows:
        paper = PAPER.get((name, layers.get(name))) if numbers[2] else None
        note = f"   (paper: {paper})" if paper else ""
        lines.append(f"{name:10} {numbers[0]:15,} {numbers[1]:15,} {numbers[2]:13,}{note}")
    if isinstance(model, SpeechLlm):
        lines.append(f"language model: {layers['llm']} layers, width {model.dim}")
        rate = model.adapter.factor
        encoder = f"encoder: {layers['encoder']} layers, width {model.encoder.dim}"
        lines.append(f"{encoder}; adapter: 1 row for {rate} frames")
    return lines


def layers_of(model: SpeechLlm) -> dict[str, int]:
    settings = getattr(getattr(model.encoder, "model", None), "config", None)  # of `transformers`
    count = (
        settings.num_hidden_layers
        if settings is not None
        else len(getattr(model.encoder, "layers", ()))
    )
    return {"encoder": count, "llm": model.llm.config.get_text_config().num_hidden_layers}


if __name__ == "__main__":
    main()
