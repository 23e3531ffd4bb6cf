"""Draw the frames of an utterance that an encoder with key frames keeps, and their tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asrtool import imports
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig
from asrtool.log import logger, set_up
from asrtool.model_folder import Experiment
from asrtool.plots import pyplot, readable, save
from asrtool.recognizer import Recognizer
from asrtool.searchers import CtcGreedyConfig
from asrtool.system import file_names
from asrtool.types import Padded

INTER, ALIGNED = "inter_ctc", "aligned"


@dataclass(frozen=True)
class KeyFrames:
    """The results for one utterance; times in seconds."""

    name: str
    text: str  # the reference, or else the recognised text
    features: torch.Tensor  # (T, F)
    seconds: float
    step: float  # from one frame to the next
    speech: torch.Tensor  # (S,) probability that a frame is not blank
    key: list[tuple[float, int]]  # key frames and their tokens
    kept: list[float]  # frames that were kept
    # the aligned head's token for each of them, 0 for blank; empty without such a head
    aligned: list[int]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    imports.take(args)
    recognizer = load(args.exp, args.phase)
    view = look(recognizer, *chosen(recognizer, args.data, args.utterance, args.audio))
    out = args.out or args.exp / file_names.of(view.name, ".png", "keyframes-")
    draw(view, recognizer.tokenizer.tokens, out)
    logger.info("wrote %s: %d of %d frames kept", out, len(view.kept), len(view.speech))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool plot keyframes", description=__doc__)
    options.add_argument("exp", type=Path, help="experiment folder")
    options.add_argument("--data", type=Path, help="a data directory")
    options.add_argument(
        "--utterance", metavar="ID", help="utterance of --data; default: the first"
    )
    options.add_argument("--audio", type=Path, help="an audio file instead of --data")
    options.add_argument("--phase", help="phase of the training; default: the last")
    options.add_argument(
        "--out", type=Path, help="picture: .png, .pdf or .svg; default: <exp>/keyframes-<id>.png"
    )
    imports.add_options(options)
    args = options.parse_args(argv)
    if (args.data is None) == (args.audio is None):
        options.error("give either --data or --audio")
    return args


def load(exp: Path, phase: str | None) -> Recognizer:
    """The averaged model of a phase, finished or not."""
    settings = DecodeConfig(searcher=CtcGreedyConfig(input=INTER), phase=phase, unfinished=True)
    name, config = Experiment.open(exp).phase(phase)
    if INTER not in config.heads:
        raise UserError(
            f"{exp}: phase '{name}' has no loss on the head '{INTER}', so no key frames"
        )
    return Recognizer.load(exp, settings)


def chosen(
    recognizer: Recognizer, data: Path | None, name: str | None, audio: Path | None
) -> tuple[str, str, torch.Tensor]:
    """Id, reference text and inputs (T, F) of the utterance to draw."""
    if audio is not None:
        return audio.stem, "", recognizer.inputs(audio)
    utterances = {utterance.id: utterance for utterance in datadir.read(data, measure=False)}
    name = name or next(iter(utterances), None)
    if name not in utterances:
        raise UserError(f"{data} has no utterance {name}" if name else f"{data} is empty")
    row = datadir.measured([utterances[name]], data)
    dataset = Dataset(row, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)
    (batch,) = EvalLoader(dataset)
    return name, utterances[name].text, batch.inputs.unpad()[0]


@torch.inference_mode()
def look(recognizer: Recognizer, name: str, text: str, inputs: torch.Tensor) -> KeyFrames:
    """Run the encoder over one utterance."""
    model, shift = recognizer.model, recognizer.model.frame_shift
    encoded = model.encode(Padded.stack([inputs]).to(recognizer.device))
    if "key_frames" not in encoded.taps:
        raise UserError("the encoder has no downsampler of the type keyframe")
    log_probs = model.log_probs(encoded, INTER).data[0]
    tokens = log_probs.argmax(-1).tolist()
    key = encoded.taps["key_frames"].data[0].nonzero()[:, 0].tolist()
    kept = int(encoded.frames.lengths[0])
    aligned = (
        model.log_probs(encoded, ALIGNED).data[0].argmax(-1).tolist()
        if ALIGNED in model.heads
        else []
    )
    recognized = recognizer.search(Padded.stack([inputs]))[0][0].text
    return KeyFrames(
        name=name,
        text=text or recognized,
        features=inputs,
        seconds=len(inputs) * recognizer.step,
        step=shift,
        speech=1 - log_probs[:, model.blank].exp(),
        key=[(frame * shift, tokens[frame]) for frame in key],
        kept=[position * shift for position in encoded.positions[0, :kept].tolist()],
        aligned=aligned[:kept],
    )


def draw(view: KeyFrames, tokens: Sequence[str], out: Path) -> None:
    """Draw spectrogram, inter-CTC peaks and kept frames, one above the other."""
    plt = pyplot()
    named = readable([view.text, *(tokens[token] for _, token in view.key)])

    def label(token: int) -> str:
        return tokens[token] if named else str(token)

    figure, panels = plt.subplots(
        3,
        1,
        figsize=(min(24, 4 + 2 * view.seconds), 7),
        layout="constrained",
        sharex=True,
        height_ratios=(3, 2, 1),
    )
    spectrogram, peaks, kept = panels
    figure.suptitle(f"{view.name}   {view.text if named else ''}")
    waveform = view.features.dim() == 1
    if waveform:
        times = torch.arange(len(view.features)) * view.seconds / max(len(view.features), 1)
        spectrogram.plot(times.numpy(), view.features.numpy(), linewidth=0.5)
    else:
        extent = (0, view.seconds, 0, view.features.shape[1])
        spectrogram.imshow(
            view.features.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma"
        )
    spectrogram.set_ylabel("samples" if waveform else "mel bin")
    for time in view.kept:
        spectrogram.axvline(
            time, color="white" if not waveform else "gray", linewidth=0.6, alpha=0.7
        )
    peaks.plot(
        (torch.arange(len(view.speech)) * view.step).numpy(), view.speech.numpy(), linewidth=1
    )
    peaks.set_ylabel("inter-CTC: not blank")
    peaks.set_ylim(0, 1.25)
    for time, token in view.key:
        peaks.axvline(time, color="gray", linewidth=0.6, linestyle=":")
        peaks.text(time, 1.05, label(token), fontsize=9)
    stems(kept, view, label)
    kept.set_xlabel("seconds")
    kept.set_xlim(0, view.seconds)
    save(figure, out)


def stems(panel: Any, view: KeyFrames, label: Any) -> None:
    """Draw the kept frames and the aligned head's tokens."""
    panel.vlines(view.kept, 0, 1, linewidth=1.2)
    panel.set_ylim(0, 2)
    panel.set_yticks([])
    panel.set_ylabel("kept frames")
    share = 1 - len(view.kept) / max(len(view.speech), 1)
    panel.set_title(
        f"{len(view.kept)} of {len(view.speech)} frames, {share:.0%} fewer", fontsize=9, loc="left"
    )
    for time, token in zip(view.kept, view.aligned, strict=False):
        panel.text(time, 1.1, label(token) if token else "-", fontsize=9)
