"""The parts of tools/gpu.sh: a figure is a line of JSON in OUT/figures.jsonl as soon as it is
measured.

tests    the tests that need a GPU
step     a training step of LibriSpeech's Conformer in bf16: seconds, memory, share of the measured
         matrix peak
profile  the same step by part; kernels launched, and how often the host waits for the device
peers    12 layers of asrtool, and of ESPnet and SpeechBrain where they are installed
compile  the layers as they are and compiled, as by `trainer.compile`
kernels  aligned cross entropy, windowed attention and key frames
loading  seconds of audio that the loader gives in a second, beside what the step eats
search   encoding on the device, prefix beam search on the CPU, one after the other and side by side
studies  the systems of the studies on real speech that need a GPU (egs/accents, --budget large);
         the environment gives CORPORA and WEIGHTS, and the part goes on where it was stopped
needs    what each part needs, in MB
table    all figures so far
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FIGURES = "figures.jsonl"
CONFIG = ROOT / "egs/librispeech/conf/train_conformer.yaml"
SECONDS = 15.0  # of an utterance
TOKENS_PER_SECOND = 4


class Part:
    """Where figures go, and at which sizes they are measured."""

    def __init__(self, name: str, out: Path, device: str) -> None:
        self.name, self.out, self.device = name, out, device
        self.tiny = device == "cpu"
        self.precision = "bf16" if device == "cuda" else "float32"

    def size(self, usual: int, tiny: int) -> int:
        return tiny if self.tiny else usual

    def figure(self, what: str, value: object, unit: str = "") -> None:
        value = float(f"{value:.4g}") if isinstance(value, float) else value
        line = {"part": self.name, "what": what, "value": value, "unit": unit}
        with open(self.out / FIGURES, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        print(f"{what}: {value} {unit}".rstrip(), flush=True)

    def synchronize(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int = 10, warm: int = 3) -> float:
        """Median seconds on the clock, the device's work included."""
        taken = []
        for _ in range(self.size(warm, 1) + self.size(rounds, 2)):
            self.synchronize()
            start = time.perf_counter()
            work()
            self.synchronize()
            taken.append(time.perf_counter() - start)
        return median(taken[self.size(warm, 1) :])


# -- tests -----------------------------------------------------------------


def run_tests(part: Part) -> None:
    importlib.import_module("pytest")
    report = part.out / "tests.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "tests/pytest.ini",
        "--rootdir",
        ".",
        "-q",
        "-m",
        "gpu",
    ]
    folders = (
        ["tests/unit/trainer/test_gpu.py", "tests/unit/data/test_fbank.py"]
        if part.tiny
        else ["tests"]
    )
    status = subprocess.run(
        [*command, f"--junitxml={report}", *folders], cwd=ROOT, check=False
    ).returncode
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    part.figure("tests that ran", counts["tests"] - counts["skipped"])
    part.figure("tests skipped", counts["skipped"])
    part.figure("tests failed", counts["failures"] + counts["errors"])
    if status:
        raise SystemExit(f"pytest ended with status {status}")


# -- a training step -------------------------------------------------------


def matrix_peak(part: Part) -> float:
    """TFLOP a second of a large product, in the precision of the steps."""
    import torch

    side = part.size(8192, 256)
    one, other = (
        torch.randn(side, side, device=part.device, dtype=dtype_of(part)) for _ in range(2)
    )
    return 2 * side**3 / part.seconds(lambda: one @ other, rounds=20) / 1e12


def training(part: Part, vocab_size: int):
    """The stepper of the recipe's config: all of a step but the loader."""
    import torch

    from asrtool import experiment
    from asrtool.data.tokenizers import BLANK, EOS, UNK, CharConfig, CharTokenizer
    from asrtool.model_folder import build_model
    from asrtool.trainer.step import Stepper
    from asrtool.training import make_objective

    small = [
        "model.encoder={dim: 32, num_heads: 2, ffn_dim: 32, num_layers: 1}",
        "model.decoder.num_layers=1",
    ]
    small += ["model.decoder.num_heads=2", "model.decoder.ffn_dim=32"]
    phase = next(iter(experiment.load_phases(CONFIG, small if part.tiny else []).values()))
    torch.manual_seed(0)
    tokens = [BLANK, UNK, *(chr(0x4E00 + number) for number in range(vocab_size - 3)), EOS]
    tokenizer = CharTokenizer(CharConfig(), tokens=tokens, folder=Path())
    return Stepper(
        phase.optim,
        build_model(phase, tokenizer.size),
        make_objective(phase, tokenizer, None),
        planned=1000,
        precision=part.precision,
        device=torch.device(part.device),
        seed=0,
    )


def batches(part: Part, vocab_size: int, seconds: float):
    """Random features and tokens of utterances of equal length, as one step."""
    import torch

    from asrtool.data.loader import StepBatches
    from asrtool.types import Batch, Padded

    count, frames, tokens = (
        max(1, round(seconds / SECONDS)),
        int(100 * SECONDS),
        int(TOKENS_PER_SECOND * SECONDS),
    )
    batch = Batch(
        ids=tuple(f"u{number}" for number in range(count)),
        inputs=Padded(torch.randn(count, frames, 80), torch.full((count,), frames)),
        targets=Padded(
            torch.randint(3, vocab_size - 1, (count, tokens)), torch.full((count,), tokens)
        ),
    )
    return StepBatches(count=count, batches=[batch], epoch=0, index=0, last=False)


def run_step(part: Part) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    vocab_size = part.size(5000, 32)
    peak = matrix_peak(part)
    part.figure(f"matrix peak in {part.precision}", peak, "TFLOP/s")
    stepper, step = training(part, vocab_size), 0
    for seconds in (100, 400, 1600) if not part.tiny else (15,):
        group = batches(part, vocab_size, seconds)
        label = f"step of {round(len(group.batches[0]) * SECONDS)} s of audio"
        if part.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

        def update(group=group) -> None:
            nonlocal step
            step += 1
            stepper.update(group, step)

        try:
            taken = part.seconds(update)
        except torch.OutOfMemoryError:
            part.figure(label, "out of memory")
            break
        with FlopCounterMode(display=False) as flops:
            update()
        done = flops.get_total_flops() / 1e12
        part.figure(label, taken, "s")
        part.figure(f"{label}: audio", round(len(group.batches[0]) * SECONDS / taken), "s/s")
        part.figure(f"{label}: of the matrix peak", 100 * done / taken / peak, "%")
        if part.device == "cuda":
            part.figure(f"{label}: memory", torch.cuda.max_memory_allocated() / 1e9, "GB")


# -- where its time goes ---------------------------------------------------


def run_profile(part: Part) -> None:
    """Parts are measured one inside the other: each figure adds one to the one before."""
    vocab_size = part.size(5000, 32)
    stepper = training(part, vocab_size)
    group = batches(part, vocab_size, part.size(400, 15))
    batch, model = group.batches[0].to(part.device), stepper.model
    stepper.update(group, 1)  # wraps the model

    def encode() -> None:
        with stepper.autocast():
            model.encode(batch.inputs)

    def losses() -> object:
        stepper.objective.begin(1, 1000)
        return stepper.evaluate(model, batch)[1].total

    def backward() -> None:
        losses().backward()
        model.zero_grad(set_to_none=True)

    def forward() -> None:
        with stepper.autocast():
            model(batch)

    before = 0.0
    for name, work in (
        ("encoder, forward", encode),
        ("heads and decoder, forward", forward),
        ("losses, forward", losses),
        ("backward", backward),
        ("the rest: update, reports", lambda: stepper.update(group, 2)),
    ):
        taken = part.seconds(work)
        part.figure(f"{name}, {round(len(batch) * SECONDS)} s of audio", taken - before, "s")
        before = taken
    for what, count in waits(part, lambda: stepper.update(group, 3)).items():
        part.figure(f"a step: {what}", count)


def waits(part: Part, work: Callable[[], object]) -> dict[str, object]:
    """How often the host launches work on the device and waits for it, and the dearest kernels."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if part.device == "cuda" else []
    with profile(activities=kinds) as profiled:
        work()
        part.synchronize()
    events = profiled.key_averages()
    calls = {event.key: event.count for event in events}
    # of the last one `synchronize` above is the cause
    waiting = sum(calls.get(f"cuda{name}Synchronize", 0) for name in ("Stream", "Event", "Device"))
    found: dict[str, object] = {
        "kernels launched": sum(n for name, n in calls.items() if "LaunchKernel" in name),
        "waits for the device": max(0, waiting - 1),
    }
    cost = "self_device_time_total" if part.device == "cuda" else "self_cpu_time_total"
    dearest = sorted(events, key=lambda event: -getattr(event, cost))[:5]
    whole = sum(getattr(event, cost) for event in events)
    for event in dearest:
        found[f"share of {event.key[:60]}"] = f"{100 * getattr(event, cost) / whole:.1f} %"
    return found


# -- beside others ---------------------------------------------------------


def run_peers(part: Part) -> None:
    import train_step  # the benchmark beside this one

    missing = []
    for name, build in train_step.ENCODERS.items():
        try:
            time_layers(part, name, build)
        except ImportError as error:
            missing.append(error.name)
    for package in dict.fromkeys(missing):
        part.figure("left out, for this machine lacks the package", package)


def run_compile(part: Part) -> None:
    import train_step

    plain = train_step.ENCODERS["asrtool"]
    backend = "aot_eager" if part.tiny else "inductor"  # the rehearsal needs no compiler
    time_layers(part, "asrtool", plain)
    time_layers(part, "asrtool, compiled", lambda *size: train_step.compiled(plain(*size), backend))


def time_layers(part: Part, name: str, build: Callable) -> None:
    """A training step of the layers alone, an entry of train_step's `ENCODERS`."""
    import torch
    import train_step

    from asrtool.types import Padded

    frames, rows, layers = part.size(250, 40), part.size(32, 2), part.size(12, 1)
    lengths = torch.linspace(0.8, 1, rows).mul(frames).long()
    inputs = Padded(torch.randn(rows, frames, train_step.DIM), lengths).to(part.device)
    contender = train_step.Contender(
        build(layers, False), train_step.fused, dtype_of(part), part.device
    )
    taken = part.seconds(lambda: contender.step(inputs))
    part.figure(f"step of {name}, {layers} layers, {rows} x {frames} frames", taken, "s")


def dtype_of(part: Part) -> object:
    from asrtool.trainer.precision import DTYPES

    return DTYPES[part.precision]


# -- single methods --------------------------------------------------------


def run_kernels(part: Part) -> None:
    import axe  # the benchmarks beside this one
    import keyframe
    import torch
    import windowed_attention

    from asrtool.types import Padded

    device = torch.device(part.device)
    for frames, tokens in ((128, 100), (512, 200)) if not part.tiny else ((8, 6),):
        ours, theirs = axe.compare(frames, tokens, part.size(9, 1), device)
        part.figure(f"AXE, {frames} frames, {tokens} tokens", median(ours), "s")
        part.figure(f"CTC, {frames} frames, {tokens} tokens", median(theirs), "s")
    window = part.size(64, 4)
    for frames in (2000, 16000) if not part.tiny else (20,):
        heads = [one.to(device) for one in windowed_attention.heads(frames)]
        lengths = torch.tensor([frames], device=device)

        def attend(heads=heads, lengths=lengths) -> None:
            windowed_attention.windowed_attention(*heads, lengths, window)

        part.figure(f"windows of {window}, {frames} frames", part.seconds(attend), "s")
    rate, count = 100, part.size(16, 1)
    seconds = part.size(20, 1)
    inputs = Padded(
        torch.randn(count, rate * seconds, keyframe.BINS), torch.full((count,), rate * seconds)
    ).to(part.device)
    for name, encoder in keyframe.encoders(rate=3.5).items():
        encoder.to(device)

        @torch.inference_mode()
        def encode(encoder=encoder) -> None:
            encoder(inputs)

        part.figure(
            f"encoding with {name}, {count * seconds} s of audio", part.seconds(encode), "s"
        )


# -- feeding it ------------------------------------------------------------


def run_loading(part: Part) -> None:
    import loading  # the benchmark beside this one

    from asrtool.data import tokenizers
    from asrtool.data.config import BatchConfig, DataConfig
    from asrtool.data.loader import Dataset, StepLoader

    for needed in ("kaldiio", "soundfile", "sentencepiece"):
        importlib.import_module(needed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, cmvn = loading.make(folder, 4.0 if not part.tiny else 0.05)
        (folder / "vocab").mkdir()
        tokenizers.train([row.text for row in rows], "char", 0, folder / "vocab")
        tokenizer = tokenizers.load(folder / "vocab")
        for workers in sorted({1, 2, 4, min(8, os.cpu_count() or 1)}) if not part.tiny else (1,):
            limits = BatchConfig(seconds=400 if not part.tiny else 40)
            config = DataConfig(batch=limits, augment=loading.AUGMENTED, workers=workers)
            loader = StepLoader(Dataset(rows, tokenizer, config, cmvn, training=True))
            groups = loader.steps()
            for _ in range(2):  # the processes start
                next(groups)
            start, seconds = time.perf_counter(), 0.0
            for _ in range(part.size(100, 3)):
                seconds += sum(
                    float(batch.inputs.lengths.sum()) / 100 for batch in next(groups).batches
                )
            given = seconds / (time.perf_counter() - start)
            part.figure(f"loader with {workers} processes gives", round(given), "s/s")
            groups.close()
    eaten = [
        line
        for line in figures(part.out)
        if line["part"] == "step" and line["what"].endswith(": audio")
    ]
    for line in eaten:
        part.figure(f"{line['what'].removesuffix(': audio')} eats", line["value"], "s/s")


# -- searching beside it ---------------------------------------------------


def run_search(part: Part) -> None:
    import ctc_prefix_beam  # the benchmark beside this one
    import torch

    from asrtool.searchers.ctc.prefix_beam import ctc_prefix_beam_search

    vocab_size = part.size(5000, 32)
    stepper = training(part, vocab_size)
    model = stepper.model.eval()
    batch = batches(part, vocab_size, 400 if not part.tiny else 15).batches[0]
    inputs = batch.inputs.to(part.device)
    log_probs = ctc_prefix_beam.posteriors(vocab_size, len(batch), 9.0)
    lengths = torch.full((len(batch),), log_probs.shape[1])

    def encode() -> object:
        with torch.inference_mode(), stepper.autocast():
            return model.encode(inputs)

    def search() -> object:
        return ctc_prefix_beam_search(log_probs, lengths, ctc_prefix_beam.BEAM, nbest=1)

    search()  # compiles
    audio = len(batch) * SECONDS
    times = {"encoding": part.seconds(encode), "prefix beam of 10": part.seconds(search)}
    times["one after the other"] = part.seconds(lambda: (encode(), part.synchronize(), search()))
    # the device works while the CPU searches
    times["side by side"] = part.seconds(lambda: (encode(), search()))
    for what, seconds in times.items():
        part.figure(f"{what}, {round(audio)} s of audio", seconds, "s")


# -- studies ---------------------------------------------------------------


def run_studies(part: Part) -> None:
    results = part.out.resolve() / "results"
    command = [sys.executable, "studies/real_speech.py", "echotune", "--results", str(results)]
    recipe = ROOT / "egs/accents"
    if not part.tiny:  # a rehearsal trains nothing
        subprocess.run(
            [*command, "--budget", "large", "--ngpu", "1", *places()], cwd=recipe, check=True
        )
    subprocess.run([*command, "--table"], cwd=recipe, check=True)
    part.figure("rows of the studies", len(list(results.rglob("*.json"))))


def places() -> list[str]:
    """The options of the studies that say where corpora and models are."""
    given = {"--corpus": "CORPORA", "--weights": "WEIGHTS"}
    if unset := [name for name in given.values() if not os.environ.get(name)]:
        raise SystemExit(
            f"{' and '.join(unset)} of the environment: give the folders that "
            "egs/accents/studies/real_speech.py calls --corpus and --weights"
        )
    return [word for option, name in given.items() for word in (option, os.environ[name])]


# -- all of it -------------------------------------------------------------


def figures(out: Path) -> Iterator[dict]:
    if (out / FIGURES).exists():
        with open(out / FIGURES, encoding="utf-8") as stream:
            yield from map(json.loads, stream)


def machine(device: str) -> dict[str, object]:
    import torch

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        found |= {
            "cuda": torch.version.cuda,
            "gpu": torch.cuda.get_device_name(),
            "driver": driver(),
        }
        found["memory"] = f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.1f} GB"
    return found


def driver() -> str:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no nvidia-smi"


def run_table(part: Part) -> None:
    lines = list(figures(part.out))
    # of what was measured again, the last
    latest = {(line["part"], line["what"]): line for line in lines}
    width = max((len(what) for _, what in latest), default=0)
    print()
    for (name, what), line in latest.items():
        print(f"{name:8} {what:{width}}  {line['value']} {line['unit']}".rstrip())


class Kind(NamedTuple):
    run: Callable[[Part], None]
    memory: int = 0  # MB on the GPU, at most
    disk: int = 0  # MB of temporary files


PARTS = {
    "tests": Kind(run_tests, 4000, 500),
    "step": Kind(run_step, 60000),  # stops where the memory ends
    "profile": Kind(run_profile, 20000),
    "peers": Kind(run_peers, 8000),
    "compile": Kind(run_compile, 8000),
    "kernels": Kind(run_kernels, 8000),
    "loading": Kind(run_loading, 0, 500),
    "search": Kind(run_search, 6000),
    "studies": Kind(run_studies, 20000, 2000),
}


def run_needs() -> None:
    print(f"{'part':8} {'GPU, MB':>9} {'disk, MB':>9}")
    for name, part in PARTS.items():
        print(f"{name:8} {part.memory:9} {part.disk:9}")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("part", choices=(*PARTS, "needs", "table"))
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = options.parse_args()
    part = Part(args.part, args.out, args.device)
    if args.part in ("needs", "table"):
        run_needs() if args.part == "needs" else run_table(part)
        return
    try:
        import torch

        if args.device == "cuda" and not torch.cuda.is_available():
            sys.exit(
                "this machine has no GPU that torch can use; a rehearsal without one: "
                "tools/gpu.sh OUT PART cpu"
            )
        part.figure("machine", machine(args.device))
        PARTS[args.part].run(part)
    except ModuleNotFoundError as error:
        part.figure("left out, for this machine lacks the package", error.name)
        sys.exit(1)


if __name__ == "__main__":
    main()
