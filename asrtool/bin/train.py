"""Stage 3: train the phases of a config one after another; an interrupted training goes on, a
finished one is left alone."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from asrtool import distributed, experiment, imports
from asrtool.log import set_up
from asrtool.model_folder import CONFIG, Experiment
from asrtool.training import Sources, train


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    phases = experiment.load_phases(
        args.config, experiment.split_overrides(args.set), args.import_from
    )
    with distributed.process_group():
        sources = Sources(
            train=args.train,
            valid=args.valid,
            vocab=args.vocab,
            text=tuple(args.text),
            init=distributed.broadcast_object(
                weights(args.init) if distributed.is_main() else None
            ),
        )
        ended = train(args.exp, phases, sources, shlex.join(sys.argv), args.force == "true")
    if ended == signal.SIGINT:
        sys.exit(130)


def weights(init: Path | None) -> Path | None:
    """What a warm start reads: of a trained model the averaged weights of its last phase."""
    if init is None or not (init / CONFIG).is_file():
        return init
    model = Experiment.open(init)
    return model.weights(model.decode_config())


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool train", description=__doc__)
    options.add_argument(
        "--config", "--train-config", dest="config", type=Path, required=True, help="train_*.yaml"
    )
    options.add_argument(
        "--train", type=Path, required=True, help="training set: a folder that stage 1 wrote"
    )
    options.add_argument("--valid", type=Path, required=True, help="validation set, likewise")
    options.add_argument(
        "--vocab", type=Path, required=True, help="vocabulary folder that stage 2 wrote"
    )
    options.add_argument("--exp", type=Path, required=True, help="experiment folder to write")
    options.add_argument(
        "--text",
        type=Path,
        action="append",
        default=[],
        help="further text for a language model, a sentence a line",
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="'KEY=VALUE ...'",
        help="overrides of the config; may be repeated",
    )
    options.add_argument(
        "--init",
        type=Path,
        help="warm start of the first phase: a checkpoint folder, a .safetensors file, or the "
        "folder of a trained model",
    )
    options.add_argument(
        "--force",
        choices=("true", "false"),
        default="false",
        help="train anew where --exp holds another training",
    )
    imports.add_options(options, modules=False)
    return options.parse_args(argv)


if __name__ == "__main__":
    main()
