"""Export encoder and CTC head as an ONNX graph, and verify by onnxruntime that its output equals
PyTorch's.

    asrtool export exp/train_conformer --out onnx

The graph takes `inputs`, features (B, T, F) as stage 1 stores them or samples (B, T), and `lengths`
(B,). It normalises the inputs and returns `log_probs` (B, S, V) and `frames` (B,), the valid
lengths of S. B and T are free. The folder also has tokens.txt and export.json: the inputs, seconds
per frame, and the largest difference from PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from asrtool import experiment, imports, log
from asrtool.data import tokenizers
from asrtool.data.fbank import FLOOR, PREEMPHASIS, SCALE, FbankConfig
from asrtool.errors import UserError
from asrtool.heads import names_of, ranked
from asrtool.log import logger
from asrtool.model_folder import Experiment, sha256
from asrtool.recognizer import Recognizer
from asrtool.system import stamp
from asrtool.types import Padded

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# utterances and frames (of samples: steps of 10 ms) that are compared
SHAPES = ((1, 37), (3, 250), (2, 811))
AXES = {  # of inputs and outputs
    "inputs": ("utterances", "inputs"),
    "lengths": ("utterances",),
    "log_probs": ("utterances", "frames"),
    "frames": ("utterances",),
}
TOLERANCE = 1e-4  # of a log-probability


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    missing = ", ".join(name for name in PACKAGES if not loads(name))
    if missing:
        raise UserError(f"export needs {missing}, which is not installed: pip install -e '.[onnx]'")
    trained = Experiment.open(args.model)
    overrides = experiment.split_overrides(args.set)
    recognizer = Recognizer.load(trained, trained.decode_config(overrides=overrides))
    with stamp.building(
        args.out, "export", [], {"weights": recognizer.fingerprint()}, args.force
    ) as target:
        if target is not None:
            largest = export(recognizer, trained.folder, target)
            megabytes = sum(file.stat().st_size for file in target.glob("model.onnx*")) / 1e6
            text = (
                "%s: %.1f MB; largest difference from PyTorch %.1e in log-probabilities, over "
                "%d shapes"
            )
            logger.info(text, args.out / "model.onnx", megabytes, largest, len(SHAPES))


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "model", type=Path, help="experiment that stage 3 wrote, or a folder of `asrtool pack`"
    )
    options.add_argument("--out", type=Path, required=True, help="folder to write")
    experiment.add_set_option(options, "which weights, as in average=1 or unfinished=true")
    options.add_argument(
        "--force", action="store_true", help="export again even if nothing changed"
    )
    imports.add_options(options)
    return options.parse_args(argv)


def loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        return False
    return True


class Graph(nn.Module):
    """The exported module: normalisation, encoder, CTC head."""

    def __init__(self, recognizer: Recognizer, head: str) -> None:
        super().__init__()
        self.model = recognizer.model
        self.head = head
        cmvn = recognizer.cmvn
        self.normalises = cmvn is not None and recognizer.config.data.input == "fbank"
        if self.normalises:
            self.register_buffer("mean", torch.from_numpy(cmvn.mean))
            self.register_buffer("std", torch.from_numpy(cmvn.std))

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalises:
            inputs = (inputs - self.mean) / self.std
        return tuple(self.model.log_probs(self.model.encode(Padded(inputs, lengths)), self.head))


def export(recognizer: Recognizer, model: Path, target: Path) -> float:
    """Write the graph and its description; returns the largest difference from PyTorch."""
    heads = [head.name for head in ranked(recognizer.model.heads) if head.exported]
    if not heads:
        has = names_of(recognizer.model.heads)
        raise UserError(
            f"only an encoder with a frame-synchronous head can be exported; this model has: {has}"
        )
    graph = Graph(recognizer, heads[0]).eval()
    example = inputs(recognizer, 2, 57, seed=0)
    free = torch.export.Dim.DYNAMIC
    try:
        with quiet():
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                optimize=False,
                dynamic_shapes={"inputs": {0: free, 1: free}, "lengths": {0: free}},
                input_names=["inputs", "lengths"],
                output_names=["log_probs", "frames"],
                verbose=False,
            )
            fold(program)
            program.save(target / "model.onnx")
            tidy(target / "model.onnx")
    except Exception as error:  # torch's exporter raises errors of many types
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"torch cannot export this encoder ({type(recognizer.model).__name__}): {reason}"
        ) from error
    largest = compare(graph, recognizer, target / "model.onnx")
    shutil.copyfile(model / "vocab" / tokenizers.TOKENS, target / tokenizers.TOKENS)
    describe(recognizer, graph, target, largest)
    return largest


def fold(program: torch.onnx.ONNXProgram) -> None:
    """Compute what is constant, and remove what nothing reads.

    The exporter's own optimiser also tries some fifty patterns on every node, a third of all its
    time; onnxruntime does that work again when it loads a graph, and runs both equally fast.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    fold_constants(program.model)
    RemoveUnusedNodesPass()(program.model)


def tidy(file: Path) -> None:
    """Name the free axes and remove the shapes of inner values. The exporter infers those before
    its optimisations, so they may be wrong, and onnxruntime's quantiser relies on them.
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, AXES[value.name], strict=False):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    onnx.save(model, file)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's messages about optional packages, and its progress output."""
    levels = {
        name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def inputs(
    recognizer: Recognizer, utterances: int, frames: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Random features with the statistics of the training set, or quiet noise; each utterance is
    shorter than the previous one, so that padding is tested too.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([max(1, frames - 7 * index) for index in range(utterances)])
    if recognizer.config.data.input == "waveform":
        scale = round(0.01 / recognizer.step)
        return 0.1 * torch.randn(utterances, scale * frames, generator=generator), scale * lengths
    bins = recognizer.config.data.fbank.num_mel_bins
    features = torch.randn(utterances, frames, bins, generator=generator)
    if recognizer.cmvn is not None:
        features = features * torch.from_numpy(recognizer.cmvn.std) + torch.from_numpy(
            recognizer.cmvn.mean
        )
    return features, lengths


def compare(graph: Graph, recognizer: Recognizer, file: Path) -> float:
    """The largest difference in valid frames. Raises `UserError` if it is above TOLERANCE or if a
    length differs.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = 0.0
    for seed, (utterances, frames) in enumerate(SHAPES, 1):
        features, lengths = inputs(recognizer, utterances, frames, seed)
        with torch.inference_mode():
            expected = Padded(*graph(features, lengths))
        computed, computed_lengths = session.run(
            None, {"inputs": features.numpy(), "lengths": lengths.numpy()}
        )
        if not np.array_equal(computed_lengths, expected.lengths.numpy()):
            mismatch = f"{computed_lengths.tolist()}, in PyTorch {expected.lengths.tolist()}"
            raise UserError(
                f"the graph gives other lengths for {utterances} x {frames} inputs: {mismatch}"
            )
        difference = (torch.from_numpy(computed) - expected.data)[expected.mask].abs().max().item()
        if not difference <= TOLERANCE:
            shape = f"{utterances} x {frames} inputs"
            raise UserError(
                f"the graph differs by {difference:.1e} for {shape}, more than {TOLERANCE:g}"
            )
        largest = max(largest, difference)
    return largest


def features_of(config: FbankConfig) -> dict:
    """The parameters that another program needs to compute the same features, by Kaldi's names."""
    return {
        "sample_scale": SCALE,  # samples in [-1, 1] are multiplied by it
        "frame_length": config.length,  # samples
        "frame_shift": config.shift,  # samples
        "snip_edges": True,  # frames of n samples: 1 + (n - frame_length) // frame_shift
        "remove_dc_offset": True,
        "preemphasis": round(PREEMPHASIS, 4),
        "window": "povey",  # Hann ** 0.85
        "fft_size": config.fft_size,
        "mel": "1127 ln(1 + f / 700)",
        "mel_bins": config.num_mel_bins,
        "low_hz": config.low_hz,
        "high_hz": config.top_hz,
        "power": 2,
        "log": "natural",
        "floor": FLOOR,  # of a filter's energy, before the logarithm
        "dither": 0.0,
    }


def describe(recognizer: Recognizer, graph: Graph, target: Path, largest: float) -> None:
    data = recognizer.config.data
    facts = {
        "input": data.input,
        "rate": data.fbank.rate,
        "fbank": asdict(data.fbank) if data.input == "fbank" else None,
        "features": features_of(data.fbank) if data.input == "fbank" else None,
        "normalised inside": recognizer.cmvn is not None and data.input == "fbank",
        "head": graph.head,
        "frame_shift": recognizer.model.frame_shift,
        "blank": recognizer.model.blank,
        "largest difference": largest,
        "shapes compared": SHAPES,
        "weights": recognizer.fingerprint(),
        "torch": torch.__version__,
        "sha256": sha256(target / "model.onnx"),
    }
    (target / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
