"""Draw the gates and adaptive windows of an utterance over its spectrogram, layer by layer.

For encoders with attention echo. `--survey` also measures over a whole set whether the windows
correlate with speaking rate and duration, as they should if they adapt to the input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asrtool import imports
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig
from asrtool.log import logger, set_up
from asrtool.nn.echo import DualFocusGate, Spans
from asrtool.plots import pyplot, save
from asrtool.plots.keyframes import chosen
from asrtool.recognizer import Recognizer
from asrtool.searchers import CtcGreedyConfig
from asrtool.system import atomic, file_names
from asrtool.types import Padded


@dataclass(frozen=True)
class Seen:
    """Gates and spans in frames of the layers with echo, in order; both (L, B, S).

    Gates are means over channels, spans over heads; None if windows are fixed. A span is half of
    the window, or all of a window of past frames only.
    """

    gates: Tensor
    spans: Tensor | None


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="asrtool plot echo", description=__doc__)
    options.add_argument("exp", type=Path, help="experiment folder")
    options.add_argument("--data", type=Path, required=True, help="a data directory")
    options.add_argument(
        "--utterance", metavar="ID", help="utterance of --data; default: the first"
    )
    options.add_argument("--phase", help="phase of the training; default: the last")
    options.add_argument(
        "--survey", action="store_true", help="write means over all of --data to <picture>.json too"
    )
    options.add_argument(
        "--out", type=Path, help="picture: .png, .pdf or .svg; default: <exp>/echo-<id>.png"
    )
    imports.add_options(options)
    args = options.parse_args(argv)
    set_up()
    imports.take(args)
    recognizer = load(args.exp, args.phase)
    name, text, inputs = chosen(recognizer, args.data, args.utterance, None)
    with watching(recognizer.model) as seen:
        recognizer.model.encode(Padded.stack([inputs]).to(recognizer.device))
    out = args.out or args.exp / file_names.of(name, ".png", "echo-")
    draw(recognizer, f"{name}   {text}", inputs, seen(), out)
    logger.info("wrote %s", out)
    if args.survey:
        results = survey(recognizer, args.data)
        atomic.write_text(out.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
        print(table(results))


def load(exp: Path, phase: str | None) -> Recognizer:
    """The averaged model of a phase, finished or not."""
    settings = DecodeConfig(searcher=CtcGreedyConfig(), phase=phase, unfinished=True)
    recognizer = Recognizer.load(exp, settings)
    if not any(isinstance(module, DualFocusGate) for module in recognizer.model.modules()):
        raise UserError(f"{exp}: the encoder has no attention of type echo")
    return recognizer


@contextlib.contextmanager
def watching(model: torch.nn.Module) -> Iterator:
    """Context that yields a function: it returns gates and spans of the last forward pass."""
    gates: dict[str, Tensor] = {}
    spans: dict[str, Tensor] = {}

    def hook(outputs: dict[str, Tensor], name: str, dim: int):
        return lambda module, inputs, output: outputs.__setitem__(
            name, output.detach().float().mean(dim).cpu()
        )

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, DualFocusGate):
            handles.append(module.register_forward_hook(hook(gates, name, 2)))
        elif isinstance(module, Spans):
            handles.append(module.register_forward_hook(hook(spans, name, 1)))

    def seen() -> Seen:
        return Seen(
            torch.stack([*gates.values()]), torch.stack([*spans.values()]) if spans else None
        )

    try:
        with torch.inference_mode():
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def survey(recognizer: Recognizer, data: Path) -> dict:
    """Means of gates and spans of each utterance, and correlations with rate and length."""
    utterances = datadir.read(data)
    dataset = Dataset(utterances, recognizer.tokenizer, recognizer.config.data, recognizer.cmvn)
    seconds = {utterance.id: utterance.duration for utterance in utterances}
    rows = []
    for batch in EvalLoader(dataset):
        with watching(recognizer.model) as seen:
            frames = recognizer.model.encode(batch.inputs.to(recognizer.device)).frames
        layers, mask = seen(), frames.mask.cpu()
        for index, name in enumerate(batch.ids):
            row = {
                "id": name,
                "seconds": seconds[name],
                "tokens_per_second": int(batch.targets.lengths[index]) / max(seconds[name], 1e-9),
                "gate": float(layers.gates[:, index, mask[index]].mean()),
            }
            if layers.spans is not None:
                row["span"] = float(layers.spans[:, index, mask[index]].mean())
            rows.append(row)
    if not rows:
        raise UserError(f"{data} is empty")
    values = [name for name in ("gate", "span") if name in rows[0]]
    correlations = {
        f"{value} and {by}": correlation([row[value] for row in rows], [row[by] for row in rows])
        for value in values
        for by in ("tokens_per_second", "seconds")
    }
    return {"utterances": rows, "correlations": correlations, "thirds": thirds(rows, values)}


def thirds(rows: list[dict], values: list[str]) -> dict[str, list[dict]]:
    """Means over thirds of the utterances, by speaking rate and by length."""
    results = {}
    for by in ("tokens_per_second", "seconds"):
        ranked = sorted(rows, key=lambda row: row[by])
        parts = [
            ranked[len(ranked) * part // 3 : len(ranked) * (part + 1) // 3] for part in range(3)
        ]
        results[by] = [
            {name: sum(row[name] for row in part) / len(part) for name in (by, *values)}
            for part in parts
            if part
        ]
    return results


def correlation(x: list[float], y: list[float]) -> float | None:
    """Pearson's correlation coefficient; None if x or y is constant."""
    pair = torch.tensor([x, y], dtype=torch.float64)
    if len(x) < 2 or bool((pair.std(1) < 1e-12).any()):
        return None
    return float(torch.corrcoef(pair)[0, 1])


def table(results: dict) -> str:
    """The results of `survey` as text."""
    lines = []
    for by, parts in results["thirds"].items():
        for part in parts:
            others = "  ".join(f"{name} {value:.3f}" for name, value in part.items() if name != by)
            lines.append(f"{by} {part[by]:6.2f}:  {others}")
    for name, value in results["correlations"].items():
        lines.append(
            f"correlation of {name}: "
            f"{'none, one of them is constant' if value is None else f'{value:.2f}'}"
        )
    return "\n".join(lines)


def draw(recognizer: Recognizer, title: str, inputs: Tensor, seen: Seen, out: Path) -> None:
    """Draw spectrogram, gates and spans, one above the other."""
    plt = pyplot()
    seconds = len(inputs) * recognizer.step
    panels = [("gate: 1 is the layer's own attention", seen.gates[:, 0], (0.0, 1.0))]
    if seen.spans is not None:
        panels.append(("span, frames", seen.spans[:, 0], (None, None)))
    figure, axes = plt.subplots(
        1 + len(panels),
        1,
        figsize=(min(24, 5 + 2 * seconds), 2 + 2.2 * (1 + len(panels))),
        layout="constrained",
        sharex=True,
    )
    figure.suptitle(title)
    picture = spectrogram(inputs, recognizer)
    axes[0].imshow(
        picture.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, picture.shape[1]),
        cmap="magma",
    )
    axes[0].set_ylabel("frequency bin")
    for axis, (name, values, limits) in zip(axes[1:], panels, strict=True):
        image = axis.imshow(
            values.numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, seconds, -0.5, len(values) - 0.5),
            vmin=limits[0],
            vmax=limits[1],
            cmap="viridis",
            interpolation="nearest",
        )
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_ylabel("layer with echo")
        figure.colorbar(image, ax=axis)
    axes[-1].set_xlabel("seconds")
    save(figure, out)


def spectrogram(inputs: Tensor, recognizer: Recognizer) -> Tensor:
    """(T, F): the features, or log-magnitudes over 25 ms of samples."""
    if inputs.dim() == 2:
        return inputs
    size = round(0.025 / recognizer.step)
    spectrum = torch.stft(
        inputs, size, size * 2 // 5, window=torch.hann_window(size), return_complex=True
    )
    return spectrum.abs().clamp(min=1e-5).log().T
