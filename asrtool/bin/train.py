"""Stage 3: train the phases of a config one after another; resumes an interrupted training."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from asrtool import experiment, imports
from asrtool.log import set_up
from asrtool.training import run


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    stopped_by = run(
        args.config,
        train=args.train,
        valid=args.valid,
        vocab=args.vocab,
        exp=args.exp,
        overrides=experiment.split_overrides(args.set),
        text=args.text,
        init=args.init,
        import_from=args.import_from,
        command=shlex.join(sys.argv),
        force=args.force == "true",
    )
    if stopped_by == signal.SIGINT:
        sys.exit(130)


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
        help="further text for a language model, one sentence per line",
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
        help="warm start of the first phase: the folder of a trained model, hf:user/model, a "
        "checkpoint folder, or a .safetensors file; init.vocab of the config says what becomes of "
        "its vocabulary",
    )
    options.add_argument(
        "--force",
        choices=("true", "false"),
        default="false",
        help="start again if --exp holds a different training",
    )
    imports.add_options(options, modules=False)
    return options.parse_args(argv)


if __name__ == "__main__":
    main()
