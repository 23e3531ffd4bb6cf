"""Recognise audio files with a trained experiment or a packed model; writes text, JSON or
subtitles.

    asrtool recognize exp/train_conformer a.wav b.flac
    asrtool recognize model --format srt --out subtitles talk.mp3 recordings/
    ffmpeg -v error -i talk.mkv -f wav - | asrtool recognize model -

A folder stands for all audio files in it, `-` for one on standard input. Audio can have any length,
sampling rate and number of channels: long audio is cut into windows, other rates are resampled,
channels are averaged or one is chosen; messages report it. If a file cannot be recognised, the
command names it, continues with the others and exits with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asrtool import experiment, imports, log
from asrtool.data import tree
from asrtool.data.audio import AudioError
from asrtool.errors import UserError
from asrtool.log import logger, plural
from asrtool.model_folder import Experiment
from asrtool.models import SpeechLlm
from asrtool.recognizer import Prepared, Recognition, Recognizer
from asrtool.system import atomic
from asrtool.types import Padded

# seconds of audio that are read before recognition, so that short files fill batches
TOGETHER = 600.0
ENDINGS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
SUBTITLES = ("srt", "vtt")
STDIN = "-"


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    args.audio = files_of(args.audio)
    targets = outputs(args.audio, args.format, args.out)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained = Experiment.open(args.model)
    decode = trained.decode_config(args.config, experiment.split_overrides(args.set))
    recognizer = Recognizer.load(trained, decode, device, lm=args.lm)
    warm_up(recognizer)  # the real-time factor is that of the work on the audio
    failed = recognize(recognizer, args.audio, args.channel, args.format, targets)
    if failed:
        logger.error(
            "%d of %s could not be recognised: %s",
            len(failed),
            plural(len(args.audio), "file"),
            ", ".join(failed),
        )
        sys.exit(1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool recognize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiment.add_model_argument(options)
    options.add_argument(
        "audio",
        nargs="+",
        help="audio files (wav, flac, ogg, opus, mp3 ...), folders of them, or - for one file on "
        "standard input",
    )
    options.add_argument(
        "--format",
        choices=tuple(ENDINGS),
        default="text",
        help="output format; json has times, confidences and scores, and n-best lists with --set "
        "nbest=5",
    )
    options.add_argument(
        "--out",
        type=Path,
        help="folder that gets one file per audio file; default: standard output",
    )
    options.add_argument(
        "--config",
        "--decode-config",
        dest="config",
        type=Path,
        help="decode_*.yaml; default: the packed one, or the search that the model's heads choose",
    )
    experiment.add_set_option(options, "override of the search")
    options.add_argument("--lm", type=Path, help="experiment of a language model, for weights.lm")
    options.add_argument(
        "--channel",
        type=int,
        help="channel to recognise, counted from 0; default: the mean of all channels",
    )
    options.add_argument(
        "--device",
        help="cpu, cuda or cuda:<number>; default: the GPU if there is one, else the CPU",
    )
    imports.add_options(options)
    return options.parse_args(argv)


def files_of(names: Sequence[str]) -> list[str]:
    """The names; a folder is replaced by its audio files in alphabetical order."""
    paths: list[str] = []
    for name in names:
        if not os.path.isdir(name):
            paths.append(name)
            continue
        inside = [
            str(file)
            for file in sorted(Path(name).rglob("*"))
            if file.suffix.lower() in tree.EXTENSIONS and file.is_file()
        ]
        if not inside:
            endings = ", ".join(sorted(tree.EXTENSIONS))
            raise UserError(f"{name}: the folder holds no audio file ({endings})")
        paths += inside
    if paths.count(STDIN) > 1:
        raise UserError("standard input (-) can be read only once")
    return paths


def outputs(audio: Sequence[str], kind: str, out: Path | None) -> list[Path | None]:
    """Where the result of each file goes; None: standard output."""
    if out is None:
        if kind in SUBTITLES and len(audio) > 1:
            raise UserError("subtitles of several files need --out <folder>")
        return [None] * len(audio)
    stems = ["stdin" if path == STDIN else Path(path).stem for path in audio]
    targets = [out / (stem + ENDINGS[kind]) for stem in stems]
    twice = next(
        (target for index, target in enumerate(targets) if target in targets[:index]), None
    )
    if twice is not None:
        raise UserError(
            f"two files would be written to {twice}; recognise them with two --out folders"
        )
    out.mkdir(parents=True, exist_ok=True)
    return targets


@torch.inference_mode()
def warm_up(recognizer: Recognizer) -> None:
    """Process a second of silence, so that compilation and allocation do not count as time of the
    first audio.

    A speech LLM only encodes it: its search compiles nothing, and its text could be long.
    """
    # an error in the model appears again with the first audio, with a better message
    with contextlib.suppress(RuntimeError, ValueError):
        silence = recognizer.prepare(np.zeros(recognizer.rate, np.float32))
        if isinstance(recognizer.model, SpeechLlm):
            recognizer.encode(Padded.stack([silence.inputs]))
        else:
            # declared as speech; otherwise silence would not be searched
            recognizer.transcribe([silence._replace(speech=[(0.0, 1.0)])])


def recognize(
    recognizer: Recognizer,
    audio: Sequence[str],
    channel: int | None,
    kind: str,
    targets: Sequence[Path | None],
) -> list[str]:
    """Write every result as soon as it is available; returns the files that failed."""
    failed: list[str] = []
    began, seconds, count = time.perf_counter(), 0.0, 0
    with tqdm(
        total=len(audio), desc="recognize", unit="file", disable=None if len(audio) > 1 else True
    ) as bar:
        for indices, inputs in groups(recognizer, audio, channel, failed):
            results = attempt(recognizer, [audio[index] for index in indices], inputs, failed)
            for index, result in zip(indices, results, strict=True):
                if result is not None:
                    write(recognizer, audio[index], result, kind, targets[index], len(audio) > 1)
                    seconds, count = seconds + result.seconds, count + 1
                    log_windows(recognizer, audio[index], result)
            bar.update(len(indices))
    wall = time.perf_counter() - began
    if count:
        logger.info(
            "%d file%s, %.1f s of audio, real-time factor %.4f",
            count,
            "" if count == 1 else "s",
            seconds,
            wall / max(seconds, 1e-9),
        )
    return failed


def groups(
    recognizer: Recognizer, audio: Sequence[str], channel: int | None, failed: list[str]
) -> Iterator[tuple[list[int], list[Prepared]]]:
    """Indices and inputs of files that are recognised together; unreadable files are reported."""
    indices: list[int] = []
    inputs: list[Prepared] = []
    for index, path in enumerate(audio):
        try:
            sound = sys.stdin.buffer.read() if path == STDIN else path
            inputs.append(recognizer.prepare(sound, channel=channel))
            indices.append(index)
        except (AudioError, ValueError) as error:
            report(path, error, failed)
        if sum(len(item.inputs) for item in inputs) * recognizer.step >= TOGETHER:
            yield indices, inputs
            indices, inputs = [], []
    if indices:
        yield indices, inputs


def attempt(
    recognizer: Recognizer, paths: Sequence[str], inputs: Sequence[Prepared], failed: list[str]
) -> list[Recognition | None]:
    """Recognise files together, and after an error one by one; None for a file that fails alone."""
    try:
        return list(recognizer.transcribe(inputs))
    except (RuntimeError, ValueError, MemoryError) as error:
        if len(paths) == 1:
            report(paths[0], error, failed)
            return [None]
    return [
        attempt(recognizer, [path], [item], failed)[0]
        for path, item in zip(paths, inputs, strict=True)
    ]


def report(path: str, error: Exception, failed: list[str]) -> None:
    message = str(error).strip() or type(error).__name__
    logger.error("%s", message if message.startswith(path) else f"{path}: {message}")
    failed.append(path)


def log_windows(recognizer: Recognizer, path: str, result: Recognition) -> None:
    """Log how a long file was cut."""
    if not result.is_cut:
        return
    lengths = [end - start for start, end in result.spans] or [0.0]
    logger.info(
        "%s: %.1f s in %s of %.2f to %.2f s, at most %.2f (%s); %.1f s without speech "
        "left out; "
        "real-time factor %.4f",
        *(path, result.seconds, plural(result.windows, "window"), min(lengths), max(lengths)),
        *(
            recognizer.windows.max_seconds,
            recognizer.windows_reason,
            result.silent,
            result.elapsed / result.seconds,
        ),
    )


def as_json(recognizer: Recognizer, path: str, result: Recognition) -> dict:
    """The result with its score, and the n-best list if the config asks for it."""
    from asrtool.bin.decode import hypothesis_line  # which imports this module

    line = {"audio": log.shown(path), **result.json()}
    nbest = [hypothesis_line(recognizer, hypothesis) for hypothesis in result.nbest]
    line["score"] = nbest[0]["score"]
    if recognizer.settings.nbest > 1:
        names = ("text", "score", "parts")
        line["nbest"] = [
            {name: entry[name] for name in names if name in entry}
            for entry in nbest[: recognizer.settings.nbest]
        ]
    return line


def write(
    recognizer: Recognizer,
    path: str,
    result: Recognition,
    kind: str,
    target: Path | None,
    several: bool,
) -> None:
    """Write to a file, atomically, or to standard output, where the lines of several files begin
    with their names.
    """
    if kind == "json":
        text = json.dumps(as_json(recognizer, path, result), ensure_ascii=False) + "\n"
    elif kind in SUBTITLES:
        text = result.srt() if kind == "srt" else result.vtt()
    else:
        text = (f"{path}\t" if several and target is None else "") + result.text + "\n"
    if target is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    atomic.write_text(target, text)


if __name__ == "__main__":
    main()
