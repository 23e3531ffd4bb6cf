#!/usr/bin/env python
"""The studies on real speech: each system is trained, decoded and kept as a row (docs/studies.md).

    python studies/real_speech.py recogniser --corpus <corpora> --weights <folder of models>
    python studies/real_speech.py keyframes --systems baseline axe --seeds 0 1 2 --corpus ...
    python studies/real_speech.py keyframes --budget small --corpus ...
    python studies/real_speech.py speech_llm --noise <noises> --corpus ...
    python studies/real_speech.py keyframes --table

A row is one system with one seed: <results>/<study>/<system>-s<seed>.json, with the errors of every
test utterance, frames and seconds of every set, the commands, commit, machine and CPU time. Rows
that are there are skipped, and a training that was stopped goes on, so a study can be run again and
again until it is complete. A system that begins with the weights or the encoder of another one
trains that first, and systems of two studies that are trained alike share the training.

--weights is a folder that holds whisper-base, whisper-tiny.en and gemma-3-270m as `transformers`
saves them; by default they come from the hub. --lm-text is a file of sentences for systems that
decode with an n-gram model, --noise the noises of a study that counts insertions. --budget small
trains the one system of the study that takes 40 minutes of two cores, --budget large those that
need a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import rows
from systems import ACCENT_CLASSES, NOISES, STUDIES, Decoding, Study, System, trained_as

from asrtool.score.align import count_pairs
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.transcripts import read_transcripts
from asrtool.system import atomic

RECIPE = Path(__file__).resolve().parents[1]
ROOT = RECIPE.parents[1]
DATA, EXP = Path("data"), Path("exp")  # in the folder of the study's recipe
OTHER = "other"  # accents that are none of ACCENT_CLASSES
# set of this recipe -> the set of stage 0 that it is cut out of, its ids in lists/ (none: all)
SETS = {
    **{
        f"study_{name}": ("train", f"studies/{name}.txt")
        for name in ("train", "train_1h", "train_10min", "train_1h_few_rare", "dev_speakers")
    },
    "study_dev": ("dev", "librispeech/dev.txt"),
    "study_accents": ("train", "studies/accents.txt"),
    "study_accents_dev": ("dev", None),
    "study_accents_commonvoice": ("test_commonvoice", None),
    "study_accents_speechocean762": ("test_speechocean762", None),
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    study = STUDIES[args.study]
    if args.table:
        print(rows.table(args.results / args.study, study))
        return
    os.chdir(RECIPE.parent / study.recipe)
    names = args.systems or [
        name
        for name, system in study.systems.items()
        if (system.large if args.budget == "large" else not system.large)
        and (system.small or args.budget != "small")
    ]
    prepare(args, study)
    for seed in args.seeds:
        for name in names:
            path = args.results / args.study / f"{name}-s{seed}.json"
            if path.exists():
                print(f"{path}: is there", flush=True)
                continue
            row = measure(args, name, study, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(row, sort_keys=True, separators=(",", ":"))  # a line, for its size
            atomic.write_text(path, text + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("study", choices=STUDIES)
    options.add_argument("--systems", nargs="+", help="some of the study (default: all)")
    options.add_argument("--seeds", nargs="+", type=int, default=[0], help="a training for each")
    options.add_argument("--budget", choices=("full", "small", "large"), default="full")
    options.add_argument("--corpus", type=Path, help="as of run.sh")
    options.add_argument("--weights", type=Path, help="folder of pre-trained models")
    options.add_argument("--lm-text", type=Path, help="sentences for the n-gram model")
    options.add_argument("--noise", type=Path, help="as of ../librispeech/run_llm.sh")
    options.add_argument("--ranks", type=int, help="as of run.sh")
    options.add_argument("--ngpu", type=int, help="as of run.sh")
    options.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    options.add_argument("--table", action="store_true", help="print the table of the rows")
    args = options.parse_args(argv)
    systems = STUDIES[args.study].systems
    unknown = set(args.systems or ()) - systems.keys()
    if unknown:
        options.error(
            f"--systems {' '.join(sorted(unknown))}: the study {args.study} has "
            f"{', '.join(systems)}"
        )
    if args.corpus is None and not args.table:
        options.error("--corpus: give the folder of the corpora, as to run.sh")
    if args.noise is None and STUDIES[args.study].noise and not args.table:
        options.error(
            f"--noise: the study {args.study} counts insertions on noise; give a folder of MUSAN, "
            "or of data directories train and eval"
        )
    for name in ("corpus", "weights", "lm_text", "noise", "results"):
        if (value := getattr(args, name)) is not None:
            setattr(args, name, value.resolve())
    return args


# -- running ---------------------------------------------------------------------------------


def recipe(args: argparse.Namespace, *options: str) -> list[str]:
    """Run the recipe; returns the command."""
    machine = [] if args.ranks is None else ["--ranks", str(args.ranks)]
    machine += [] if args.ngpu is None else ["--ngpu", str(args.ngpu)]
    corpus = args.corpus / STUDIES[args.study].corpus
    command = ["./run.sh", "--corpus", str(corpus), *machine, *options]
    subprocess.run(command, check=True)
    return command


def prepare(args: argparse.Namespace, study: Study) -> None:
    """The sets of the studies in `data`."""
    from asrtool.data.kaldi import ops  # imports torch, which --help and --table do without

    recipe(args, "--stop-stage", "0")
    own = SETS if study.recipe == RECIPE.name else {}
    for name, (source, listing) in own.items():
        target = DATA / name
        if target.is_dir():
            continue
        origin = DATA / source
        path = origin / "text" if listing is None else RECIPE / "lists" / listing
        ids = [line.split()[0] for line in path.read_text().splitlines()]
        ops.select(origin, target, ids)
    if args.noise is not None:
        script = [sys.executable, "../librispeech/local/prepare_noise.py"]
        command = [*script, "--corpus", str(args.noise), "--out", str(DATA)]
        subprocess.run(command, check=True)
    if study.degraded is not None:
        script = [sys.executable, "../aishell1/studies/noisy_sets.py"]
        subprocess.run([*script, "--data", str(DATA / study.degraded)], check=True)
    for name in own:
        if name.startswith("study_accents"):
            merge_accents(DATA / name / "utt2accent")


def merge_accents(path: Path) -> None:
    """Call every accent that has too few clips `other`."""
    pairs = [line.split() for line in path.read_text().splitlines()]
    merged = [(key, accent if accent in ACCENT_CLASSES else OTHER) for key, accent in pairs]
    atomic.write_text(path, "".join(f"{key} {accent}\n" for key, accent in merged))


def measure(args: argparse.Namespace, name: str, study: Study, seed: int) -> dict:
    """Train and decode a system; its row."""
    system = study.systems[name]
    exp = EXP / tag_of(args, name, seed)
    changes, commands = [], []
    if system.encoder is not None:
        changes, commands = with_encoder(args, system.encoder, study, seed)
    given = options(args, name, study, seed, changes)
    if system.start is not None:
        commands.append(train(args, options(args, system.start, study, seed)))
        given += ["--init-from", str(EXP / tag_of(args, system.start, seed))]
    resumed = exp.exists()
    begun, cpu = time.monotonic(), used()
    commands.append(train(args, given))
    trained, trained_cpu = time.monotonic(), used()
    decodings, measured = {}, {}
    for key, decoding in system.decodings.items():
        if decoding.lm is not None and args.lm_text is None:
            continue
        before = used()
        commands += decode(args, study, decoding, [*given, "--decode-tag", key])
        sets = decoding.sets or study.sets
        decodings[key] = {one: errors(exp / key / one, one) for one in sets}
        measured[key] = {
            "cpu_seconds": round(used() - before),
            "sets": {one: sums(exp / key / one / "hyps.jsonl") for one in sets},
        }
    return {
        "study": args.study,
        "system": name,
        "seed": seed,
        "commands": [shown(args, command) for command in commands],
        "commit": output(["git", "rev-parse", "HEAD"]),
        "machine": f"{processor()}, torch {metadata.version('torch')}",
        "resumed": resumed,  # then the times below are those of the last part alone
        "train_seconds": round(trained - begun),
        "train_cpu_seconds": round(trained_cpu - cpu),
        "decode_seconds": round(time.monotonic() - trained),
        "decode_cpu_seconds": round(used() - trained_cpu),
        "training": training(exp),
        "decodings": decodings,
        "measured": measured,
        "labels": accents(study.sets),
        "letters": {name: letters(name) for name in study.speech},
        "durations": durations(study.tests) if study.speeds else {},
    }


def train(args: argparse.Namespace, given: Sequence[str]) -> list[str]:
    """Train a system unless it is trained; the command."""
    return recipe(args, *given, "--stage", "1", "--stop-stage", "3")


def tag_of(args: argparse.Namespace, name: str, seed: int) -> str:
    return f"{trained_as(args.study, name)}_s{seed}"


def options(
    args: argparse.Namespace, name: str, study: Study, seed: int, more: Sequence[str] = ()
) -> list[str]:
    """Of run.sh, for every stage of a system's training and decoding."""
    system = study.systems[name]
    changes = [f"seed={seed}", *system.changes, *weights_of(args, system), *more]
    if system.tokenizer is not None:
        changes.append("model.llm.shape=null")  # that of the weights
    given = ["--tag", tag_of(args, name, seed)]
    given += ["--train-set", system.train_set, "--valid-set", study.dev[0]]
    given += ["--test-sets", " ".join(study.speech), "--unit", system.unit]
    given += ["--vocab-size", str(system.vocab_size), "--train-config", system.config]
    given += ["--train-args", " ".join(map(shlex.quote, changes))]
    if system.tokenizer is not None:
        folder = args.weights and args.weights / Path(system.tokenizer).name
        given += ["--tokenizer", str(folder or system.tokenizer)]
    if study.noise:
        given += ["--extra-sets", " ".join(NOISES)]
    return given


def with_encoder(
    args: argparse.Namespace, name: str, study: Study, seed: int
) -> tuple[list[str], list[list[str]]]:
    """Train the system `name` unless it is trained; the changes of a speech LLM that takes over its
    encoder, and the commands.
    """
    from asrtool.experiment import load_decode
    from asrtool.model_folder import Experiment

    given = options(args, name, study, seed)
    commands = [train(args, given)]
    trained = Experiment.open(EXP / tag_of(args, name, seed))
    system = study.systems[name]
    settings = load_decode(Path(system.decodings[system.primary].config))
    changes = [f"model.encoder_weights={trained.weights(settings)}"]
    return [*changes, f"model.encoder_vocab_size={trained.tokenizer.size}"], commands


def decode(
    args: argparse.Namespace, study: Study, decoding: Decoding, given: Sequence[str]
) -> list[list[str]]:
    """Decode and score the sets; noises are decoded alone, since they have no error rate."""
    given = [*given, "--decode-config", decoding.config]
    commands = []
    if decoding.args:
        given += ["--decode-args", decoding.args]
    if decoding.lm is not None:
        given += ["--lm", decoding.lm, "--lm-text", str(args.lm_text)]
        commands.append(recipe(args, *given, "--stage", "2", "--stop-stage", "2"))
    sets = decoding.sets or study.sets
    speech = [name for name in sets if name not in NOISES]
    noise = [name for name in sets if name in NOISES]
    commands.append(recipe(args, *given, "--test-sets", " ".join(speech), "--stage", "4"))
    if noise:
        alone = ["--test-sets", " ".join(noise), "--stage", "4", "--stop-stage", "4"]
        commands.append(recipe(args, *given, *alone))
    return commands


def accents(sets: Iterable[str]) -> dict[str, str]:
    """Utterance -> accent, of those that have one."""
    paths = [DATA / name / "utt2accent" for name in sets]
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return dict(line.split() for line in lines)


def weights_of(args: argparse.Namespace, system: System) -> list[str]:
    if args.weights is None or system.weights is None:
        return []
    return [f"{key}={args.weights / model}" for key, model in system.weights.items()]


def errors(folder: Path, name: str) -> dict[str, list[int]]:
    """Utterance -> correct words, substitutions, deletions, insertions."""
    norm, split = normalizer("en"), splitter("wer")
    references = read_transcripts(DATA / name / "text")
    hypotheses = read_transcripts(folder / "text")
    pairs = [(split(norm(text)), split(norm(hypotheses[key]))) for key, text in references.items()]
    return dict(zip(references, count_pairs(pairs).tolist(), strict=True))


def durations(sets: Iterable[str]) -> dict[str, float]:
    """Utterance -> seconds."""
    tables = [read_transcripts(DATA / name / "utt2dur") for name in sets]
    return {key: float(seconds) for table in tables for key, seconds in table.items()}


def letters(name: str) -> int:
    """Of the reference, spaces between words included: the tokens of unit char."""
    return sum(map(len, read_transcripts(DATA / name / "text").values()))


def sums(hypotheses: Path) -> dict[str, float]:
    """Seconds of audio, seconds that recognition took, and frames that were searched: of a speech
    LLM the rows of speech in its prompts. Utterances that were cut into windows have no frames.
    """
    lines = [json.loads(line) for line in hypotheses.read_text().splitlines()]
    names = ("seconds", "elapsed", "frames")
    return {name: round(sum(line.get(name, 0) for line in lines), 2) for name in names}


def training(exp: Path) -> dict:
    """The validations of the log."""
    events = [json.loads(line) for line in (exp / "log.jsonl").read_text().splitlines()]
    valid = [event for event in events if event.get("event") == "valid"]
    return {"validations": [{k: v for k, v in event.items() if k != "time"} for event in valid]}


# -- facts -----------------------------------------------------------------------------------


def used() -> float:
    """CPU seconds of all commands so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def shown(args: argparse.Namespace, command: Iterable[str]) -> str:
    """The command, without the folders of this machine."""
    text = shlex.join(command)
    given = {"<corpora>": args.corpus, "<models>": args.weights}
    given |= {"<lm_text>": args.lm_text, "<noises>": args.noise}
    for name, path in given.items():
        if path is not None:
            text = text.replace(str(path), name)
    return text


def output(command: Sequence[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
