"""Stage 4: average checkpoints, encode, search, write `text` (Kaldi) and `hyps.jsonl` (scores,
times, n-best).

An interrupted decoding is resumed. An utterance that cannot be read or recognised is listed in
`failed.jsonl` and the others continue; it is in neither `text` nor `hyps.jsonl`, so that scoring
reports it as missing. Running the same command again retries such utterances.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from asrtool import config, distributed, experiment, imports, log, stored_frames, work
from asrtool.bin.recognize import warm_up
from asrtool.data.config import DataConfig
from asrtool.data.loader import Dataset
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.log import logger, plural
from asrtool.longform import WindowsConfig
from asrtool.model_folder import Experiment, sha256
from asrtool.recognition import Classes
from asrtool.recognizer import SAMPLES, Recognition, Recognizer
from asrtool.stored_frames import FrontEnd
from asrtool.types import Batch, Hypothesis, Utterance


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    overrides = experiment.split_overrides(args.set)
    settings = experiment.load_decode(args.config, overrides, args.ngram, args.ngram_unit)
    experiment.check_ngram(args.config, settings.searcher)
    with distributed.process_group(), torch.inference_mode():
        decode(args.exp, settings, args.data, args.out, args.force, args.lm)


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool decode", description=__doc__)
    options.add_argument(
        "--exp",
        type=Path,
        required=True,
        help="experiment that stage 3 wrote, a packed model, or hf:user/model",
    )
    options.add_argument(
        "--config", "--decode-config", dest="config", type=Path, required=True, help="decode_*.yaml"
    )
    options.add_argument(
        "--data",
        type=Path,
        required=True,
        help="set to decode: a folder that stage 1 wrote, or any data directory",
    )
    options.add_argument("--out", type=Path, required=True, help="folder for text and hyps.jsonl")
    options.add_argument("--lm", type=Path, help="experiment of a language model, for weights.lm")
    experiment.add_ngram_options(options)
    experiment.add_set_option(options, "override of the decode config")
    options.add_argument(
        "--force", action="store_true", help="decode again, even if nothing changed"
    )
    imports.add_options(options)
    return options.parse_args(argv)


def decode(
    exp: Path,
    settings: DecodeConfig,
    data: Path,
    out: Path,
    force: bool = False,
    lm: Path | None = None,
) -> None:
    """Decode the set `data` into `out`."""
    trained = Experiment.open(exp)
    weights = trained.weights(settings) if distributed.is_main() else None
    weights = distributed.broadcast_object(weights)
    recognizer = Recognizer.load(trained, settings, distributed.device(), weights, lm)
    options = {"decode": config.encode(DecodeConfig, settings), "weights": recognizer.fingerprint()}
    for kind, path in experiment.search_files(settings.searcher).items():
        options[kind] = sha256(Path(path))[:16]  # the path is the same after it is rewritten
    if settings.windows is not None:
        options["windows"] = config.encode(WindowsConfig, windows(recognizer))
    inputs = data_config(trained.phase(settings.phase)[1], settings, data)
    work.through(Decoding(recognizer, str(out), inputs), data, out, options, force)


def data_config(phase: TrainConfig, settings: DecodeConfig, data: Path) -> DataConfig:
    """How a set is read: as stored frames if they are of the model's front end and no utterance is
    cut into windows, else as audio.
    """
    front_end = FrontEnd.of(phase)
    if front_end is None:
        return phase.data
    stored = stored_frames.origin(data)
    if settings.windows is not None:
        reason = "windows are cut from audio"
    elif stored is None or stored.digest != front_end.digest:
        holds = "no stored frames" if stored is None else f"frames of {stored.name}"
        reason = f"it holds {holds}, and the model reads those of {front_end.name}"
    elif stored.long:
        reason = f"{plural(stored.long, 'utterance')} longer than the front end accepts"
    else:
        logger.info("%s: reading the stored frames of %s", data, front_end.name)
        return phase.data
    logger.info("%s: reading the audio: %s", data, reason)
    return stored_frames.from_audio(phase.data)


def windows(recognizer: Recognizer) -> WindowsConfig:
    """How long audio is cut, which is logged. Raises `UserError` if the detector needs samples."""
    limits = recognizer.windows
    if limits.detector == "silero" and recognizer.config.data.input == "fbank":
        raise UserError(SAMPLES)
    logger.info(
        "audio longer than %.2f s (%s) is cut into windows",
        limits.max_seconds,
        recognizer.windows_reason,
    )
    return limits


@dataclass
class Decoding:
    """The `work.Task` of stage 4."""

    recognizer: Recognizer
    title: str
    inputs: DataConfig  # how the set is read
    name = "decode"
    file = "hyps.jsonl"

    @property
    def batch_seconds(self) -> float:
        return self.recognizer.settings.batch_seconds

    def dataset(self, utterances: Sequence[Utterance]) -> Dataset:
        recognizer = self.recognizer
        return Dataset(utterances, recognizer.tokenizer, self.inputs, recognizer.cmvn)

    @functools.cached_property
    def ready(self) -> Recognizer:
        """The recogniser after its warm-up, which a set that is decoded already does not need."""
        warm_up(self.recognizer)
        return self.recognizer

    def lines(self, batch: Batch, seconds: Mapping[str, float]) -> list[dict]:
        """Lines of hyps.jsonl.

        `frames`: encoder frames, if the utterance was not cut into windows; `classes`: label ->
        value -> probability, of labels that the model classifies; `latency`: seconds from the start
        of the batch to the result; `elapsed`: the utterance's share of it, by duration; `rtf`:
        elapsed / seconds of audio.
        """
        recognizer = self.ready
        began = time.perf_counter()
        results, frames, classes = recognize(recognizer, batch)
        latency = time.perf_counter() - began
        total = sum(seconds[key] for key in batch.ids)
        lines = []
        for key, result, kept, labels in zip(batch.ids, results, frames, classes, strict=True):
            elapsed = latency * seconds[key] / total
            timing = {
                "seconds": seconds[key],
                "elapsed": elapsed,
                "latency": latency,
                "rtf": elapsed / seconds[key],
            }
            described = {
                **describe(recognizer, result),
                **({} if kept is None else {"frames": kept}),
            }
            described |= {"classes": rounded(labels)} if labels else {}
            lines.append(
                {
                    "id": key,
                    **described,
                    **{name: round(value, 6) for name, value in timing.items()},
                }
            )
        return lines

    def write(self, target: Path, lines: Iterable[Mapping]) -> None:
        audio = elapsed = 0.0
        latencies = array("d")
        drafts: Counter[str] = Counter()
        with (
            open(target / self.file, "w", encoding="utf-8") as hyps,
            open(target / "text", "w", encoding="utf-8") as text,
        ):
            for line in lines:
                hyps.write(json.dumps(line, ensure_ascii=False) + "\n")
                text.write(f"{line['id']} {line['text']}".rstrip() + "\n")
                audio, elapsed = audio + line["seconds"], elapsed + line["elapsed"]
                latencies.append(line["latency"])
                drafts.update(line.get("draft", {}))
        ranks = distributed.world_size()
        median, most, longest = np.quantile(latencies, (0.5, 0.95, 1.0))
        logger.info(
            "%s: %s, %.1f s of audio, real-time factor %.4f on %d rank%s; seconds "
            "until a result: median "
            "%.3f, 95 %% within %.3f, at most %.3f",
            *(
                self.title,
                plural(len(latencies), "utterance"),
                audio,
                elapsed / max(audio, 1e-9),
                ranks,
                "" if ranks == 1 else "s",
            ),
            *(median, most, longest),
        )
        if drafts:
            logger.info(
                "%s: %d of %d drafted tokens accepted, %.1f passes of the language model per "
                "utterance",
                *(self.title, drafts["accepted"], drafts["tokens"]),
                drafts["passes"] / len(latencies),
            )


def recognize(
    recognizer: Recognizer, batch: Batch
) -> tuple[list[Sequence[Hypothesis] | Recognition], list[int | None], list[Classes]]:
    """For each utterance its n-best list, the number of encoder frames and its labels.

    If one of them must be cut into windows, by the config or because of the encoder's limit, a
    `Recognition` and None instead of the first two."""
    if recognizer.config.data.input == "waveform" and batch.inputs.data.ndim == 3:
        return recognizer.search_counted(batch.inputs)  # stored frames are never cut
    seconds = [length * recognizer.step for length in batch.inputs.lengths.tolist()]
    if max(seconds) <= recognizer.whole:
        return recognizer.search_counted(batch.inputs)
    results = recognizer.transcribe(
        [recognizer.prepare_inputs(inputs) for inputs in batch.inputs.unpad()]
    )
    return results, [None] * len(batch), [result.classes for result in results]


def rounded(classes: Classes) -> Classes:
    return {
        label: {value: round(share, 4) for value, share in row.items()}
        for label, row in classes.items()
    }


def describe(recognizer: Recognizer, result: Sequence[Hypothesis] | Recognition) -> dict:
    """The best hypothesis as JSON, with the n-best list if the config asks for it."""
    nbest = result.nbest if isinstance(result, Recognition) else result
    line = hypothesis_line(recognizer, nbest[0])
    if isinstance(result, Recognition) and result.is_cut:
        line["windows"] = result.windows
        if result.words is not None:
            line["times"] = [round(part.start, 3) for word in result.words for part in word.parts]
    size = recognizer.settings.nbest
    if size > 1:
        line["nbest"] = [hypothesis_line(recognizer, hypothesis) for hypothesis in nbest[:size]]
    return line


def hypothesis_line(recognizer: Recognizer, hypothesis: Hypothesis) -> dict:
    """A hypothesis as JSON; `times`: seconds at which each token was emitted."""
    shift = recognizer.model.frame_shift
    # -inf, which JSON does not have: no hypothesis satisfies the constraints
    finite = math.isfinite(hypothesis.score)
    line: dict = {"text": hypothesis.text, "score": round(hypothesis.score, 4) if finite else None}
    line["tokens"] = [recognizer.tokenizer.tokens[token] for token in hypothesis.tokens]
    if hypothesis.parts:
        line["parts"] = {name: round(value, 4) for name, value in hypothesis.parts.items()}
    if hypothesis.positions is not None:
        line["times"] = [round(position * shift, 3) for position in hypothesis.positions]
    if hypothesis.confidences is not None:
        line["confidences"] = [round(value, 4) for value in hypothesis.confidences]
    if hypothesis.drafted is not None:
        line["draft"] = asdict(hypothesis.drafted)
    return line


if __name__ == "__main__":
    main()
