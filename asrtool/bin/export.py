"""Export encoder and CTC head as an ONNX graph, or a transducer as three, and verify that the
output equals PyTorch's.

    asrtool export exp/train_conformer --out onnx
    asrtool export exp/train_conformer --from-samples --out onnx
    asrtool export exp/train_conformer --for sherpa-onnx --int8 --data data/test --out sherpa
    asrtool export exp/train_conformer --for web --ort node_modules/onnxruntime-web/dist --out page
    asrtool export exp/train_u2 --for sherpa-onnx --streaming --left-chunks 4 --data data/test \\
      --out sherpa

The graph takes `inputs`, features (B, T, F) as stage 1 stores them or samples (B, T), and `lengths`
(B,). It normalises the inputs and returns `log_probs` (B, S, V) and `frames` (B,), the valid
lengths of S. B and T are free. With --streaming it takes one chunk and the caches of the encoder.
With --for web the folder is a page that recognises speech in the browser, from samples.
The folder also has tokens.txt and export.json: the inputs, seconds per frame, the largest
difference from PyTorch, and the result of --data.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from asrtool import experiment, imports, log
from asrtool.errors import UserError
from asrtool.export import prove, web
from asrtool.export.build import ExportConfig, build
from asrtool.export.graph import require_packages
from asrtool.log import logger
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.score import METRICS
from asrtool.streaming import with_chunks
from asrtool.system import stamp


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    config = wanted(args)
    require_packages()
    if config.sherpa and config.data is not None:
        prove.require_sherpa()
    trained = Experiment.open(args.model)
    overrides = experiment.split_overrides(args.set)
    decode = trained.decode_config(overrides=overrides, streaming=config.streaming)
    recognizer = Recognizer.load(trained, decode)
    if config.streaming:
        recognizer = with_chunks(recognizer, args.chunk_ms, args.left_chunks)
    options = {
        "weights": recognizer.fingerprint(),
        **asdict(config),
        "chunk": [recognizer.settings.chunk_ms, recognizer.settings.left_chunks],
    }
    inputs = [] if config.data is None else [config.data]
    if config.web is not None:
        inputs += web.check_ort(config.web)
    with stamp.building(args.out, "export", inputs, options, args.force) as target:
        if target is not None:
            largest = build(recognizer, config, trained.folder / "vocab", target)
            for file in sorted(target.glob("*.onnx*")):
                megabytes = file.stat().st_size / 1e6
                logger.info("%s: %.1f MB", args.out / file.name, megabytes)
            logger.info("largest difference from PyTorch: %.1e in log-probabilities", largest)


def wanted(args: argparse.Namespace) -> ExportConfig:
    """The export that the options ask for. Raises `UserError` if they contradict each other."""
    sherpa = args.form == "sherpa-onnx"
    if sherpa and args.data is None and not args.no_check:
        raise UserError(
            "--for sherpa-onnx compares the texts of sherpa-onnx with asrtool's: give a test "
            "set with --data, or export without the comparison with --no-check"
        )
    if args.form == "web" and args.ort is None:
        raise UserError(f"--for web needs onnxruntime-web: {web.HOW}")
    if args.form != "web" and args.ort is not None:
        raise UserError("--ort belongs to --for web")
    if args.ort is not None:
        web.check_ort(args.ort)
    if args.no_check and args.data is not None:
        raise UserError("--no-check and --data contradict each other: give one of them")
    if not args.streaming and (args.chunk_ms is not None or args.left_chunks is not None):
        raise UserError("--chunk-ms and --left-chunks belong to --streaming")
    if args.caches is not None and not (sherpa and args.streaming):
        raise UserError("--caches belongs to --for sherpa-onnx --streaming")
    return ExportConfig(
        head=args.head,
        sherpa=sherpa,
        streaming=args.streaming,
        caches=args.caches or ExportConfig.caches,
        from_samples=args.from_samples or args.form == "web",
        web=args.ort,
        name=args.model.absolute().name if args.form == "web" else None,
        int8=args.int8,
        data=args.data,
        metric=args.metric,
        most_points=args.most_points,
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiment.add_model_argument(options)
    options.add_argument("--out", type=Path, required=True, help="folder to write")
    add_form_options(options)
    add_proof_options(options)
    experiment.add_set_option(options, "which weights, as in average=1 or unfinished=true")
    options.add_argument(
        "--force", action="store_true", help="export again even if nothing changed"
    )
    imports.add_options(options)
    return options.parse_args(argv)


def add_form_options(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--for",
        dest="form",
        choices=("sherpa-onnx", "web"),
        help="in the form that this program reads; web: as a page that browsers run by themselves",
    )
    options.add_argument(
        "--head",
        help="the head that is exported (default: the highest-ranking one that has the form; a "
        "transducer has those of sherpa-onnx, but for --caches wenet)",
    )
    options.add_argument(
        "--ort",
        type=Path,
        help="with --for web: the folder dist of the npm package onnxruntime-web, of which the "
        "page gets copies",
    )
    options.add_argument(
        "--int8", action="store_true", help="also write model.int8.onnx, with weights of 8 bits"
    )
    options.add_argument(
        "--from-samples",
        action="store_true",
        help="compute the features in the graph, which then takes samples in [-1, 1]",
    )
    options.add_argument(
        "--streaming", action="store_true", help="one chunk at a time, with caches in and out"
    )
    options.add_argument(
        "--caches",
        choices=("wenet", "zipformer"),
        help="with --for sherpa-onnx --streaming: the kind of model that it is taken for; "
        "zipformer works on phones and under node too, and in batches (default: wenet)",
    )
    options.add_argument(
        "--chunk-ms",
        type=float,
        help="with --streaming: length of a chunk in milliseconds (default as `asrtool stream`)",
    )
    options.add_argument(
        "--left-chunks",
        type=int,
        help="with --streaming: number of earlier chunks that a frame attends to",
    )


def add_proof_options(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--data",
        type=Path,
        help="data directory on which the texts of the exported model are compared with asrtool's",
    )
    options.add_argument(
        "--no-check",
        action="store_true",
        help="with --for sherpa-onnx: export without this comparison",
    )
    options.add_argument(
        "--metric", choices=list(METRICS), default="wer", help="error rate of the comparison"
    )
    options.add_argument(
        "--most-points",
        type=float,
        default=ExportConfig.most_points,
        help="percentage points by which the two error rates may differ at most (default: "
        f"{ExportConfig.most_points:g})",
    )


if __name__ == "__main__":
    main()
