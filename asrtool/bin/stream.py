"""Recognise audio while it arrives: partial results per chunk, a final one at every pause, and the
latency.

    asrtool stream exp/train_qifusion a.wav --chunk-ms 640 --left-chunks 4
    arecord -q -t raw -f S16_LE -r 16000 | asrtool stream exp/train_qifusion -
    asrtool stream exp/train_qifusion --check dump/fbank80/test

`-` reads raw samples from standard input: 16 bits, little-endian, one channel, at the model's rate.
Final results go to standard output; a terminal also shows the text so far. A file that cannot be
read to its end is reported, the others continue, and the command exits with status 1. --check
recognises a data directory twice, in pieces and as whole utterances with the same chunk mask, and
exits with status 1 if any result differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from asrtool import experiment, imports, log
from asrtool.bin.decode import hypothesis_line, rounded
from asrtool.data import audio
from asrtool.log import logger, plural
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.streaming import CHUNK_MS, EndConfig, Result, Stream, with_chunks
from asrtool.streaming.check import check

HEAD = 12  # bytes that identify the header of an audio file
HEADERS = re.compile(  # audio files that were given as raw samples by mistake
    rb"RIF[FX]|RF64|BW64|riff|fLaC|OggS|ID3|FORM|caff|\.snd|NIST|wvpk|#!AMR|\x1a\x45\xdf\xa3|....ftyp",
    re.DOTALL,
)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained = Experiment.open(args.model)
    overrides = experiment.split_overrides(args.set)
    # --config; else that of the packed model, if it can stream; else the default of the heads
    decode = trained.decode_config(args.config, overrides, streaming=True)
    recognizer = Recognizer.load(trained, decode, device)
    recognizer = with_chunks(recognizer, args.chunk_ms, args.left_chunks)
    if args.check is not None:
        sys.exit(0 if check(recognizer, args.check, args.batch, args.seed) else 1)
    ends = EndConfig(pause=args.pause, longest=args.longest)
    warm_up(recognizer)
    failed = [path for path in args.audio if not transcribe(recognizer, ends, path, args.format)]
    if failed:
        logger.error(
            "%d of %s could not be recognised: %s",
            len(failed),
            plural(len(args.audio), "file"),
            ", ".join(failed),
        )
        sys.exit(1)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = describe()
    args = options.parse_args(argv)
    if args.chunk is not None:
        options.error("--chunk counted frames: give --chunk-ms, milliseconds, as in --chunk-ms 640")
    if args.chunk_ms is not None and not args.chunk_ms > 0:
        options.error("--chunk-ms is above 0")
    if (args.check is None) == (not args.audio):
        options.error("give either audio or --check")
    if args.batch < 1:
        options.error("--batch is at least 1")
    return args


def describe() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="asrtool stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiment.add_model_argument(options)
    options.add_argument(
        "audio", nargs="*", help="audio files, or - for raw samples from standard input"
    )
    options.add_argument(
        "--chunk-ms",
        type=float,
        help="length of a chunk in milliseconds, a multiple of the model's frames (default: that "
        f"of --config, else {CHUNK_MS:g}, or the longest chunk of training if that is less)",
    )
    # it counted frames; without it, argparse would take --chunk for --chunk-ms
    options.add_argument("--chunk", help=argparse.SUPPRESS)
    options.add_argument(
        "--config",
        "--decode-config",
        dest="config",
        type=Path,
        help="decode_*.yaml; default: the packed one, or the search that the model's heads choose",
    )
    experiment.add_set_option(options, "override of the search")
    options.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="output format; json has partial results too",
    )
    add_stream_options(options)
    add_check_options(options)
    imports.add_options(options)
    return options


def add_stream_options(options: argparse.ArgumentParser) -> None:
    """Options of every command that recognises live audio, but for the length of a chunk."""
    options.add_argument(
        "--left-chunks", type=int, help="number of earlier chunks that a frame attends to; -1: all"
    )
    options.add_argument(
        "--pause",
        type=float,
        default=EndConfig.pause,
        help="seconds of silence after which a text ends",
    )
    options.add_argument(
        "--longest",
        type=float,
        default=EndConfig.longest,
        help="approximate maximum length of a text, in seconds",
    )
    options.add_argument(
        "--device",
        help="cpu, cuda or cuda:<number>; default: the GPU if there is one, else the CPU",
    )


def add_check_options(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--check",
        type=Path,
        metavar="DATA",
        help="check on a data directory that streaming changes no result",
    )
    options.add_argument(
        "--batch",
        type=int,
        default=8,
        help="with --check: number of utterances streamed in a batch",
    )
    options.add_argument(
        "--seed", type=int, default=0, help="with --check: seed of the sizes of the pieces"
    )


def warm_up(recognizer: Recognizer) -> None:
    """A second of silence: what is compiled or allocated once should not delay the first words."""
    stream = Stream(recognizer)
    stream.accept(np.zeros(recognizer.rate, np.float32))
    stream.accept(np.zeros(0, np.float32), final=True)


def transcribe(recognizer: Recognizer, ends: EndConfig, path: str, kind: str) -> bool:
    """Print all results of a file; log an error and return False if it is not read completely."""
    stream = Stream(recognizer, ends)
    try:
        for result in results_of(stream, path):
            show(recognizer, path, result, kind)
    # one file that fails does not stop the others
    except (audio.AudioError, RuntimeError, ValueError, MemoryError, OSError) as error:
        message = str(error).strip() or type(error).__name__
        logger.error("%s", message if isinstance(error, audio.AudioError) else f"{path}: {message}")
        return False
    log_latency(path, stream, kind)
    return True


def results_of(stream: Stream, path: str) -> Iterator[Result]:
    """All results of a file or of standard input."""
    settings = stream.recognizer.settings
    seconds = settings.chunk_ms / 1000
    pieces = (
        raw(sys.stdin.buffer, round(seconds * stream.recognizer.rate))
        if path == "-"
        else read(stream, path, seconds)
    )
    for piece in cut(pieces, stream):
        if (result := stream.accept(piece)) is not None:
            yield result
    yield stream.accept(np.zeros(0, np.float32), final=True)


def cut(pieces: Iterable[np.ndarray], stream: Stream) -> Iterator[np.ndarray]:
    """The same samples, cut behind the last one that a chunk needs: its result comes with that one,
    not with the piece after.
    """
    for piece in pieces:
        while len(piece):
            size = max(1, stream.missing)
            yield piece[:size]
            piece = piece[size:]


def raw(stream: BinaryIO, size: int) -> Iterator[np.ndarray]:
    """Samples of a stream as they arrive, at most `size` at once. Raises `AudioError` for the
    header of an audio file, for half a sample at the end, and for an empty stream.
    """
    rest, count, begun = b"", 0, False
    while data := stream.read1(2 * size):
        data = rest + data
        if not begun and len(data) < HEAD:
            rest = data
            continue
        if not begun and HEADERS.match(data):
            raise audio.AudioError(
                "standard input: has the header of an audio file, but raw 16-bit samples are "
                "expected; give `arecord` the option `-t raw`, or give the file by its name"
            )
        begun = True
        # A read may end in the middle of a 16-bit sample: keep its first byte for the next one.
        whole = len(data) // 2 * 2
        rest, count = data[whole:], count + whole
        yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768
    if rest and not begun and len(rest) % 2 == 0:  # shorter than a header
        yield np.frombuffer(rest, "<i2").astype(np.float32) / 32768
        return
    if rest:
        raise audio.AudioError(
            "standard input: ends in the middle of a sample; expected raw 16-bit samples"
        )
    if not count:
        raise audio.AudioError("standard input: holds no samples")


def read(stream: Stream, path: str, seconds: float) -> Iterator[np.ndarray]:
    """A file in pieces. One of another sampling rate is resampled as a whole first, because
    resampling each piece would distort its ends.
    """
    rate = stream.recognizer.rate
    pieces = audio.blocks(path, seconds)
    first, file_rate = next(pieces)
    if file_rate == rate:
        yield first
        yield from (piece for piece, _ in pieces)
        return
    samples = np.concatenate([first, *(piece for piece, _ in pieces)])
    logger.info("%s: resampled from %d Hz to %d Hz before the first chunk", path, file_rate, rate)
    samples, size = audio.resample(samples, file_rate, rate), round(seconds * rate)
    yield from (samples[at : at + size] for at in range(0, len(samples), size))


def show(recognizer: Recognizer, path: str, result: Result, kind: str) -> None:
    """Print one result; a partial text only on a terminal, where the next one overwrites it."""
    text, live = result.hypothesis.text, sys.stderr.isatty()
    if kind == "json":
        line = {"audio": log.shown(path), "event": "final" if result.final else "partial"}
        line |= {"start": round(result.start, 3), "end": round(result.end, 3), "text": text}
        if result.final:
            line |= {
                key: value
                for key, value in hypothesis_line(recognizer, result.hypothesis).items()
                if key != "text"
            }
            line |= {"classes": rounded(result.classes)} if result.classes else {}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    if live:
        tail = "" if result.final else log.shown(text[-70:])
        print(f"\r\033[K{tail}", end="", file=sys.stderr, flush=True)
    if result.final and text:
        best = [
            f"{label} {max(row, key=row.get)} {max(row.values()):.2f}"
            for label, row in result.classes.items()
        ]
        print("\t".join([f"{result.start:.2f}-{result.end:.2f}", text, *best]), flush=True)


def log_latency(path: str, stream: Stream, kind: str) -> None:
    """Log latency and real-time factor."""
    latency = stream.latency.json()
    if kind == "json":
        line = {"audio": log.shown(path), "event": "end", **latency}
        print(json.dumps(line), flush=True)
    logger.info(
        "%s: %.1f s of audio, real-time factor %.4f; seconds from the end of a chunk to its "
        "result: median %.3f, 95 %% "
        "within %.3f, at most %.3f; second pass at most %.3f",
        *(
            path,
            latency["seconds"],
            latency["rtf"],
            *latency["lag"].values(),
            latency["second_pass"].get("longest", 0.0),
        ),
    )


if __name__ == "__main__":
    main()
