#!/usr/bin/env python3
"""The open questions about speech LLMs as runs of the recipe, and one table for each
(docs/papers/speech_llm.md).

    python egs/librispeech/studies/speech_llm.py --list
    python egs/librispeech/studies/speech_llm.py matching --mini true
    python egs/librispeech/studies/speech_llm.py grid --seeds 0 1 2 -- --corpus <corpus> --noise
        <musan> --ngpu 8

Every variant is one call of egs/librispeech/run_llm.sh with a tag of its own, so that a study that
was interrupted goes on where it was; what stands behind `--` is for that script. Phases that a
variant does not change are those of the unchanged system, which is trained once for all studies.
The table has the word error rate with its interval and the errors apart, and insertions per minute
and hallucinations on noise_eval. It is printed and written to exp/<variant>/STUDY_<study>.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asrtool.experiment import load_phases, split_overrides
from asrtool.system import atomic
from asrtool.train.folder import finished, take_phases

RECIPE = Path(__file__).parents[1]
CONFIGS = {
    "true": RECIPE / "conf" / "train_speech_llm_mini.yaml",
    "false": RECIPE / "conf" / "train_speech_llm.yaml",
}
LIMITS = "searcher.constraints"
NO_LIMITS = f"{LIMITS}.no_repeat_ngram=0 {LIMITS}.max_tokens_per_second=null"
MODES = ("frozen", "lora", "full")


def studies(phases: Sequence[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """study -> variant -> (changes of the training config, changes of the decoding config)."""
    before, augment = f"phase={phases[-2]}", f"phases.{phases[-1]}.data.augment"

    def tuned(encoder: str, language: str) -> str:
        """What is trained whole moves slowly, as in conf/train_speech_llm_full_full.yaml."""
        if (encoder, language) == ("lora", "lora"):
            return ""
        modes = (
            f"model.encoder_tuning.mode={encoder} model.llm.tuning.mode={language} "
            "model.llm.precision=float32"
        )
        sides = (("encoder", encoder), ("llm", language))
        slow = ", ".join(f'"{part}.*": {{lr_scale: 0.1}}' for part, mode in sides if mode == "full")
        groups = [f"'phases.{phase}.optim.groups={{{slow}}}'" for phase in phases[1:] if slow]
        return " ".join([modes, *groups])

    def matching(**changes: object) -> str:
        """Of the matching loss, in the phases after LoRA's first: before them it has weight 0."""
        return " ".join(
            f"phases.{phase}.losses.matching.{key}={value}"
            for phase in phases[2:]
            for key, value in changes.items()
        )

    def alignment(kind: str) -> str:
        terms = [
            f"'phases.{phase}.losses.align={{type: {kind}, weight: 0.1}}'" for phase in phases[2:]
        ]
        return " ".join([matching(weight=0), *terms])

    def last(more: str = "") -> str:
        """The last phase with another augmentation in the place of non-speech."""
        return f"{augment}.non_speech=null {more}".rstrip()

    return {
        "grid": {f"{one}_{other}": (tuned(one, other), "") for one in MODES for other in MODES},
        # configured: as the config has it; the others take their first phases from it
        "matching": {
            "configured": ("", ""),
            "off": (matching(weight=0), ""),
            "both": (matching(weight=0.1), ""),
            "weak": (matching(weight=0.01), ""),
            "throughout": ("losses.matching.weight=0.1", ""),
            "mse": (matching(weight=0.1, cosine=0), ""),
            "cosine": (matching(weight=0.1, mse=0), ""),
            "dot_product": (matching(weight=0.1, scaled="false"), ""),
        },
        "weights": {
            "configured": ("", ""),
            **{
                f"mse{mse:g}_cosine{cosine:g}": (
                    matching(weight=0.1, mse=f"{mse:g}", cosine=f"{cosine:g}"),
                    "",
                )
                for mse in (0.1, 1, 10)
                for cosine in (0.1, 1, 10)
            },
        },
        "alignment": {
            "configured": ("", ""),
            "matching": (matching(weight=0.1), ""),
            "contrastive": (alignment("contrastive"), ""),
            "ctc": (alignment("ctc"), ""),
            "none": (matching(weight=0), ""),
        },
        "adapters": {
            f"{kind}_{rate}": (f"'model.adapter={{type: {kind}, rate: {rate}{more}}}'", "")
            for kind, more in (
                ("conv1d_mlp", ", hidden_dim: 384"),
                ("dws_mlp", ", hidden_dim: 384"),
                ("conv1d_transformer", ", num_heads: 4, ffn_dim: 384"),
            )
            for rate in (4, 5, 8)
        },
        # before: what the last phase starts from; nothing: that phase without any of the methods,
        # more epochs alone
        "insertions": {
            "before": ("", before),
            "before_without_limits": ("", f"{before} {NO_LIMITS}"),
            "non_speech": ("", ""),
            "non_speech_without_limits": ("", NO_LIMITS),
            "nothing": (last(), ""),
            "noise": (last(f"'{augment}.noise={{set: noise_train}}'"), ""),
            "babble": (last(f"'{augment}.babble={{set: train}}'"), ""),
            "speeds": (last(f"'{augment}.speeds=[0.9, 1.0, 1.1]'"), ""),
            **{
                f"before_penalty_{alpha:g}": ("", f"{before} {LIMITS}.length_penalty={alpha:g}")
                for alpha in (-1, -0.5, 0.5, 1)
            },
            **{
                f"penalty_{alpha:g}": ("", f"{LIMITS}.length_penalty={alpha:g}")
                for alpha in (-1, 1)
            },
        },
        "ngram": {f"ngram{n}": ("", f"{LIMITS}.no_repeat_ngram={n}") for n in (0, 2, 3, 5, 10)},
        "encoder_tuning": {mode: (tuned(mode, "lora"), "") for mode in MODES},
        "encoders": {
            kind: (f"'model.encoder={{type: {kind}, weights: {weights}, size: large}}'", "")
            for kind, weights in (
                ("hubert", "facebook/hubert-large-ll60k"),
                ("wav2vec2", "facebook/wav2vec2-large-lv60"),
                ("data2vec", "facebook/data2vec-audio-large"),
                ("wavlm", "microsoft/wavlm-large"),
            )
        },
        "llm_sizes": {
            name.rpartition("/")[2]: (f"model.llm.weights={name} model.llm.shape=null", "")
            for name in (
                "Qwen/Qwen2.5-0.5B",
                "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
                "Qwen/Qwen2.5-1.5B",
                "Qwen/Qwen2.5-7B",
                "lmsys/vicuna-7b-v1.5",
            )
        },
    }


def main() -> None:
    argv = sys.argv[1:]
    rest = argv[argv.index("--") + 1 :] if "--" in argv else []
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("study", nargs="?")
    options.add_argument("--variants", nargs="+", help="some of the study's variants; default: all")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument(
        "--mini", choices=("true", "false"), default="false", help="on the synthesised miniature"
    )
    options.add_argument("--mini-size", default="default")
    options.add_argument(
        "--train-args",
        default="",
        help="further changes of every training, as in 'trainer.epochs=1'",
    )
    options.add_argument(
        "--list", action="store_true", help="say what each study runs, and run nothing"
    )
    options.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args = options.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    available = studies(list(load_phases(CONFIGS[args.mini])))
    if args.list or args.study is None:
        for study, variants in available.items():
            print(f"{study}: {', '.join(variants)}")
        return
    if args.study not in available:
        options.error(f"no study '{args.study}'; there are: {', '.join(available)}")
    variants = available[args.study]
    if unknown := set(args.variants or ()) - set(variants):
        options.error(
            f"study '{args.study}' has no variant {', '.join(sorted(unknown))}; --list prints "
            "what it has"
        )
    rows, exp, prepared = [], folder(args), False
    # the unchanged system first: others take phases from it
    for variant in sorted(args.variants or variants, key=lambda name: bool(variants[name][0])):
        training, decoding = variants[variant]
        for seed in args.seeds:
            tag, command = run_of(args, variant, training, decoding, seed)
            if prepared:
                command += ["--stage", "3"]
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
    """The experiment's name and the command of a variant; those that change the search alone share
    one training.
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
    if decoding:
        command += ["--decode-args", decoding]
    return tag, command


def base_tag(args: argparse.Namespace, seed: int) -> str:
    """The unchanged system; with --train-args it is another one for each study, since they may
    differ.
    """
    return f"study_{args.study}_base_s{seed}" if args.train_args else f"study_base_s{seed}"


def share(exp: Path, source: str, tag: str, training: str) -> None:
    """The phases in front of the first that `training` changes are copied from `source`, where it
    has finished them.
    """
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
    """Number of the first phase that changes like `phases.lora.trainer.epochs=3 seed=1` reach."""
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
    """A line of the table for each set of a decoding that was scored."""
    lines = []
    for path in sorted(decoded.glob("*/insertions.json")):
        found = json.loads(path.read_text(encoding="utf-8"))["groups"]["all"]
        score = path.with_name("score.json")
        rate, bounds = "-", "-"
        if score.exists():
            content = json.loads(score.read_text(encoding="utf-8"))
            rate = f"{100 * content['total']['rate']:.2f}"
            if content.get("interval"):
                bounds = "{:.2f}-{:.2f}".format(*(100 * value for value in content["interval"]))
        counts = " / ".join(str(found[key]) for key in ("substitutions", "deletions", "insertions"))
        wrong = sum(map(len, found["hallucinations"].values()))
        numbers = (rate, bounds, counts, f"{found['insertions_per_minute']:.2f}", str(wrong))
        lines.append(f"| {name} | {path.parent.name} | {' | '.join(numbers)} |")
    return lines


def table(study: str, rows: list[str]) -> str:
    heads = (
        "variant",
        "set",
        "WER %",
        "95 % interval",
        "S / D / I",
        "insertions a minute",
        "hallucinations",
    )
    lines = [f"# {study}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
