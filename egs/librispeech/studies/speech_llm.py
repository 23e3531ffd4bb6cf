#!/usr/bin/env python3
"""Studies of speech LLMs: runs of the recipe, and a table for each study.

    python egs/librispeech/studies/speech_llm.py --list
    python egs/librispeech/studies/speech_llm.py matching --mini true
    python egs/librispeech/studies/speech_llm.py grid --seeds 0 1 2 -- \\
        --corpus <corpus> --noise <musan> --ngpu 8
    python egs/librispeech/studies/speech_llm.py adapters --train-config my_train.yaml -- \\
        --corpus <corpus> --llm <folder>

Each variant is a call of egs/librispeech/run_llm.sh with its own tag, so an interrupted study
continues. Options after `--` are passed to that script. The config is train_speech_llm.yaml, or
that of --train-config; with --mini true it is the miniature's. Variants adapt to its phases and
sizes. The unchanged system is trained once for all studies; variants take the phases that they do
not change from it. The table has the word error rate with its interval, substitutions, deletions
and insertions, insertions per minute and hallucinations for each set, noise_eval included. It is
printed and written to STUDY_<study>.md in exp, or in exp/mini with --mini true. See
docs/papers/speech_llm.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asrtool.experiment import load_phases, split_overrides
from asrtool.system import atomic
from asrtool.trainer.folder import finished, take_phases

RECIPE = Path(__file__).parents[1]
CONFIGS = {
    "true": RECIPE / "conf" / "speech_llm" / "train_speech_llm_mini.yaml",
    "false": RECIPE / "conf" / "speech_llm" / "train_speech_llm.yaml",
}
LIMITS = "searcher.constraints"
NO_LIMITS = f"{LIMITS}.no_repeat_ngram=0 {LIMITS}.max_tokens_per_second=null"
DEFAULT_WIDTH = 2048  # for an adapter without hidden_dim
# augmentation of waveforms in every phase, as in train_speech_llm.yaml
AUGMENTED = (
    "'data.augment.speeds=[0.9, 1.0, 1.1]' "
    "'data.augment.noise={set: noise_train, share: 0.3, snr_db: [0, 15]}' "
    "'data.augment.babble={set: train, share: 0.1}'"
)
MODES = ("frozen", "lora", "full")
ENCODERS = {
    "hubert": "facebook/hubert-large-ll60k",
    "wav2vec2": "facebook/wav2vec2-large-lv60",
    "data2vec": "facebook/data2vec-audio-large",
    "wavlm": "microsoft/wavlm-large",
}
LANGUAGE_MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen2.5-7B",
    "lmsys/vicuna-7b-v1.5",
)


# study -> variant -> (changes of the training config, changes of the decoding config)
Variants = dict[str, tuple[str, str]]


def studies(config: Path) -> dict[str, Variants]:
    """All studies, for the phases and the adapter width of a training config."""
    settings = load_phases(config)
    phases = list(settings)
    hidden = getattr(settings[phases[0]].model.adapter, "hidden_dim", DEFAULT_WIDTH)
    return {
        "grid": {
            f"{encoder}_{llm}": (tuned(encoder, llm), "") for encoder in MODES for llm in MODES
        },
        "matching": matching_losses(phases),
        "weights": matching_weights(phases),
        "alignment": alignments(phases),
        "adapters": adapters(hidden),
        "insertions": insertions(phases),
        "ngram": {f"ngram{n}": ("", f"{LIMITS}.no_repeat_ngram={n}") for n in (0, 2, 3, 5, 10)},
        "encoder_tuning": {mode: (tuned(mode, "lora"), "") for mode in MODES},
        "encoders": {
            kind: (f"'model.encoder={{type: {kind}, weights: {weights}, size: large}}'", "")
            for kind, weights in ENCODERS.items()
        },
        "llm_sizes": {
            name.rpartition("/")[2]: (f"model.llm.weights={name} model.llm.shape=null", "")
            for name in LANGUAGE_MODELS
        },
    }


def tuned(encoder: str, language: str) -> str:
    """A fine-tuning scheme of arXiv 2406.17272; that of the config is LoRA on both sides."""
    if (encoder, language) == ("lora", "lora"):
        return ""
    changes = [f"model.encoder_tuning.mode={encoder}", f"model.llm.tuning.mode={language}"]
    if language == "full":
        changes.append("model.llm.precision=float32")  # bf16 is too coarse for trained weights
    sides = (("encoder", encoder), ("llm", language))
    # fully tuned pre-trained weights get a lower learning rate
    slow = ", ".join(f'"{part}.*": {{lr_scale: 0.1}}' for part, mode in sides if mode == "full")
    if slow:
        changes.append(f"'optim.groups={{{slow}}}'")
    return " ".join(changes)


def matching(phases: Sequence[str], **changes: object) -> str:
    """Changes of the matching loss, from the third phase on: its weight is 0 before."""
    return " ".join(
        f"phases.{phase}.losses.matching.{key}={value}"
        for phase in phases[2:]
        for key, value in changes.items()
    )


def projected(phases: Sequence[str]) -> str:
    """The matching loss with learned projections, which its first phase initialises."""
    new = "'[heads.text_query.*, heads.speech_key.*]'"
    return f"{matching(phases, weight=0.1, projected='true')} phases.{phases[2]}.init.missing={new}"


def matching_losses(phases: Sequence[str]) -> Variants:
    return {
        "configured": ("", ""),  # as in the config; other variants take their first phases from it
        "off": (matching(phases, weight=0), ""),
        "both": (matching(phases, weight=0.1), ""),
        "weak": (matching(phases, weight=0.01), ""),
        "throughout": ("losses.matching.weight=0.1", ""),
        "mse": (matching(phases, weight=0.1, cosine=0), ""),
        "cosine": (matching(phases, weight=0.1, mse=0), ""),
        "scaled_dot_product": (matching(phases, weight=0.1, products="scaled"), ""),
        "dot_product": (matching(phases, weight=0.1, products="dot"), ""),
        "sharp": (matching(phases, weight=0.1, temperature=0.02), ""),
        "soft": (matching(phases, weight=0.1, temperature=0.2), ""),
        "projected": (projected(phases), ""),
        "sum_of_squares": (matching(phases, weight=0.1, relative="false"), ""),
    }


def matching_weights(phases: Sequence[str]) -> Variants:
    variants: Variants = {"configured": ("", "")}
    for mse, cosine in itertools.product((0.1, 1, 10), repeat=2):
        changes = matching(phases, weight=0.1, mse=f"{mse:g}", cosine=f"{cosine:g}")
        variants[f"mse{mse:g}_cosine{cosine:g}"] = (changes, "")
    return variants


def alignments(phases: Sequence[str]) -> Variants:
    def other(kind: str) -> str:
        """Another loss instead of the matching loss."""
        terms = [
            f"'phases.{phase}.losses.align={{type: {kind}, weight: 0.1}}'" for phase in phases[2:]
        ]
        return " ".join([matching(phases, weight=0), *terms])

    return {
        "configured": ("", ""),
        "matching": (matching(phases, weight=0.1), ""),
        "contrastive": (other("contrastive"), ""),
        "ctc": (other("ctc"), ""),
        "none": (matching(phases, weight=0), ""),
    }


def adapters(hidden: int) -> Variants:
    """Every type at every rate, as wide as the adapter of the config."""
    mlp = f"hidden_dim: {hidden}"
    large = hidden >= 1024
    transformer = f"num_heads: {16 if large else 4}, ffn_dim: {2 * hidden if large else hidden}"
    kinds = {"conv1d_mlp": mlp, "dws_mlp": mlp, "conv1d_transformer": transformer}
    return {
        f"{kind}_{rate}": (f"'model.adapter={{type: {kind}, rate: {rate}, {sizes}}}'", "")
        for kind, sizes in kinds.items()
        for rate in (4, 5, 8)
    }


def insertions(phases: Sequence[str]) -> Variants:
    """Methods against insertions.

    `before` is the model that the last phase starts from. `nothing` is the last phase without any
    method, only with more epochs; `noise`, `babble` and `speeds` have one method each.
    `with_augmentation` and `without_augmentation` differ in nothing else, from the first phase on.
    """
    before, augment = f"phase={phases[-2]}", f"phases.{phases[-1]}.data.augment"

    def last(more: str = "") -> str:
        """The last phase with another augmentation instead of non-speech."""
        return f"{augment}.non_speech=null {plain(augment)} {more}".rstrip()

    return {
        "before": ("", before),
        "before_without_limits": ("", f"{before} {NO_LIMITS}"),
        "non_speech": ("", ""),
        "non_speech_without_limits": ("", NO_LIMITS),
        "nothing": (last(), ""),
        "noise": (last(f"'{augment}.noise={{set: noise_train}}'"), ""),
        "babble": (last(f"'{augment}.babble={{set: train}}'"), ""),
        "speeds": (last(f"'{augment}.speeds=[0.9, 1.0, 1.1]'"), ""),
        "with_augmentation": (AUGMENTED, ""),
        "without_augmentation": (plain("data.augment"), ""),
        **{
            f"before_penalty_{alpha:g}": ("", f"{before} {LIMITS}.length_penalty={alpha:g}")
            for alpha in (-1, -0.5, 0, 0.5, 1)
        },
        **{
            f"penalty_{alpha:g}": ("", f"{LIMITS}.length_penalty={alpha:g}") for alpha in (-1, 0, 1)
        },
    }


def plain(augment: str) -> str:
    """Turns off the augmentation of waveforms; non-speech and SpecAugment stay as they are."""
    absent = " ".join(f"{augment}.{kind}=null" for kind in ("noise", "babble", "room"))
    return f"{augment}.speeds=[1.0] {absent}"


def main() -> None:
    argv = sys.argv[1:]
    rest = argv[argv.index("--") + 1 :] if "--" in argv else []
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("study", nargs="?", help="name of a study; without it, all are listed")
    options.add_argument("--variants", nargs="+", help="variants to run (default: all)")
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one training per seed (default: 0)"
    )
    options.add_argument(
        "--mini", choices=("true", "false"), default="false", help="use the miniature"
    )
    options.add_argument("--mini-size", default="default", help="size of the miniature")
    options.add_argument(
        "--train-config", type=Path, help="training config of every variant, with a corpus"
    )
    options.add_argument(
        "--train-args",
        default="",
        help="further overrides of every training, as in 'trainer.epochs=1'",
    )
    options.add_argument("--list", action="store_true", help="list the studies and their variants")
    options.add_argument("--dry-run", action="store_true", help="only print the commands")
    args = options.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    if args.train_config is not None and args.mini == "true":
        options.error("--train-config needs a corpus: the miniature has its own config")
    available = studies(args.train_config or CONFIGS[args.mini])
    if args.list or args.study is None:
        for study, variants in available.items():
            print(f"{study}: {', '.join(variants)}")
        return
    if args.study not in available:
        options.error(f"no study '{args.study}'; there are: {', '.join(available)}")
    variants = available[args.study]
    if unknown := set(args.variants or ()) - set(variants):
        options.error(
            f"study '{args.study}' has no variant {', '.join(sorted(unknown))}; --list prints all"
        )
    rows, exp, prepared = [], folder(args), False
    # the unchanged system first, since the others take phases from it
    for variant in sorted(args.variants or variants, key=lambda name: bool(variants[name][0])):
        training, decoding = variants[variant]
        for seed in args.seeds:
            tag, command = run_of(args, variant, training, decoding, seed)
            if prepared:  # another language model needs its own vocabulary, stage 2
                command += ["--stage", "2" if "--tokenizer" in command else "3"]
            print("+", " ".join(command + rest), flush=True)
            if args.dry_run:
                continue
            share(exp, base_tag(args, seed), tag, training)
            subprocess.run([*command, *rest], check=True, stdin=subprocess.DEVNULL)
            prepared = True
            rows += results(exp / tag / variant, f"{variant}, seed {seed}")
    if rows:
        text = table(args.study, rows)
        atomic.write_text(exp / f"STUDY_{args.study}.md", text)
        print(text)


def run_of(
    args: argparse.Namespace, variant: str, training: str, decoding: str, seed: int
) -> tuple[str, list[str]]:
    """The experiment's name and the command of a variant.

    Variants that change only the search have the same training.
    """
    tag = f"study_{args.study}_{variant}_s{seed}" if training else base_tag(args, seed)
    changes = " ".join(filter(None, (f"seed={seed}", training, args.train_args)))
    command = [
        str(RECIPE / "run_llm.sh"),
        "--tag",
        tag,
        "--decode-tag",
        variant,
        "--train-args",
        changes,
    ]
    if args.mini == "true":
        command += ["--mini", "true", "--mini-size", args.mini_size]
    if args.train_config is not None:
        command += ["--train-config", str(args.train_config.absolute())]
    for change in split_overrides([training]):
        key, _, weights = change.partition("=")
        if key == "model.llm.weights":
            command += ["--tokenizer", weights]
    if decoding:
        command += ["--decode-args", decoding]
    return tag, command


def base_tag(args: argparse.Namespace, seed: int) -> str:
    """Name of the unchanged system's experiment; with --train-args, each study has its own."""
    return f"study_{args.study}_base_s{seed}" if args.train_args else f"study_base_s{seed}"


def share(exp: Path, source: str, tag: str, training: str) -> None:
    """Take the finished phases of `source` before the first one that `training` changes."""
    if source == tag or (exp / tag).exists() or not (exp / source / "config.yaml").exists():
        return
    phases = list(load_phases(exp / source / "config.yaml"))
    same = [
        phase
        for phase in phases[: first_changed(phases, training)]
        if finished(exp / source / phase)
    ]
    if same:
        take_phases(exp / source, exp / tag, same)


def first_changed(phases: Sequence[str], training: str) -> int:
    """Index of the first phase affected by overrides like `phases.lora.trainer.epochs=3 seed=1`."""
    names = [
        text.split(".")[1] if text.startswith("phases.") else phases[0]
        for text in split_overrides([training])
    ]
    return min(map(phases.index, names), default=len(phases))


def folder(args: argparse.Namespace) -> Path:
    mini = (
        ""
        if args.mini == "false"
        else "mini"
        if args.mini_size == "default"
        else f"mini_{args.mini_size}"
    )
    return RECIPE / "exp" / mini


def results(decoded: Path, name: str) -> list[str]:
    """A row of the table for each scored set of a decoding."""
    lines = []
    for path in sorted(decoded.glob("*/insertions.json")):
        report = json.loads(path.read_text(encoding="utf-8"))["groups"]["all"]
        score = path.with_name("score.json")
        rate, bounds = "-", "-"
        if score.exists():
            content = json.loads(score.read_text(encoding="utf-8"))
            rate = f"{100 * content['total']['rate']:.2f}"
            if content.get("interval"):
                bounds = "{:.2f}-{:.2f}".format(*(100 * value for value in content["interval"]))
        errors = ("substitutions", "deletions", "insertions")
        counts = " / ".join(str(report[key]) for key in errors)
        hallucinations = sum(map(len, report["hallucinations"].values()))
        per_minute = f"{report['insertions_per_minute']:.2f}"
        numbers = (rate, bounds, counts, per_minute, str(hallucinations))
        lines.append(f"| {name} | {path.parent.name} | {' | '.join(numbers)} |")
    return lines


def table(study: str, rows: list[str]) -> str:
    heads = (
        "variant",
        "set",
        "WER %",
        "95 % interval",
        "S / D / I",
        "insertions per minute",
        "hallucinations",
    )
    lines = [f"# {study}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
