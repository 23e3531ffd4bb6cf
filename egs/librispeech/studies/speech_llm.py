#!/usr/bin/env python3
"""The open questions about speech LLMs as runs of the recipe, and one table for each (docs/papers/speech_llm.md).

    python egs/librispeech/studies/speech_llm.py --list
    python egs/librispeech/studies/speech_llm.py matching --mini true
    python egs/librispeech/studies/speech_llm.py grid --seeds 0 1 2 -- --corpus <corpus> --noise <musan> --ngpu 8

Every variant is one call of egs/librispeech/run_llm.sh with a tag of its own, so that a study that was interrupted goes
on where it was; what stands behind `--` is for that script. The table has the word error rate with its interval and the
errors apart, and insertions per minute and hallucinations on noise_eval. It is printed and written to
exp/<variant>/STUDY_<study>.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[1]
NO_MATCHING = " ".join(
    f"{where}losses.matching.weight=0" for where in ("", "phases.matching.", "phases.non_speech.")
)
LIMITS = "searcher.constraints"


def tuned(encoder: str, language: str) -> str:
    return f"model.encoder_tuning.mode={encoder} model.llm.tuning.mode={language} model.llm.precision=float32"


def alignment(kind: str) -> str:
    return f"{NO_MATCHING} 'losses.align={{type: {kind}, weight: 0.1}}'"


# study -> variant -> (changes of the training config, changes of the decoding config)
STUDIES: dict[str, dict[str, tuple[str, str]]] = {
    "grid": {f"{one}_{other}": (tuned(one, other), "") for one in ("frozen", "lora", "full") for other in
             ("frozen", "lora", "full")},
    "matching": {
        "off": (NO_MATCHING, ""),
        "both": ("", ""),
        "mse": ("losses.matching.cosine=0", ""),
        "cosine": ("losses.matching.mse=0", ""),
        "dot_product": ("losses.matching.scaled=false", ""),
    },
    "weights": {
        f"mse{mse:g}_cosine{cosine:g}": (f"losses.matching.mse={mse:g} losses.matching.cosine={cosine:g}", "")
        for mse in (0.1, 1, 10) for cosine in (0.1, 1, 10)
    },
    "alignment": {
        "matching": ("", ""),
        "contrastive": (alignment("contrastive"), ""),
        "ctc": (alignment("ctc"), ""),
        "none": (NO_MATCHING, ""),
    },
    "adapters": {
        f"{kind}_{rate}": (f"'model.adapter={{type: {kind}, rate: {rate}{more}}}'", "")
        for kind, more in (("conv1d_mlp", ", hidden_dim: 384"), ("dws_mlp", ", hidden_dim: 384"),
                           ("conv1d_transformer", ", num_heads: 4, ffn_dim: 384"))
        for rate in (4, 5, 8)
    },
    "insertions": {
        "all": ("", ""),
        "without_non_speech": ("phases.non_speech.data.augment.non_speech=null", ""),
        "with_noise": ("'data.augment.noise={set: noise_train}'", ""),
        "with_babble": ("'data.augment.babble={set: train}'", ""),
        "with_speeds": ("'data.augment.speeds=[0.9, 1.0, 1.1]'", ""),
        "without_limits": ("", f"{LIMITS}.no_repeat_ngram=0 {LIMITS}.max_tokens_per_second=null"),
        "penalty_-1": ("", "searcher.constraints.length_penalty=-1"),
        "penalty_-0.5": ("", "searcher.constraints.length_penalty=-0.5"),
        "penalty_0.5": ("", "searcher.constraints.length_penalty=0.5"),
        "penalty_1": ("", "searcher.constraints.length_penalty=1"),
    },
    "ngram": {
        f"ngram{n}": ("", f"searcher.constraints.no_repeat_ngram={n}") for n in (0, 2, 3, 5, 10)
    },
    "encoder_tuning": {mode: (f"model.encoder_tuning.mode={mode}", "") for mode in ("frozen", "lora", "full")},
    "encoders": {
        kind: (f"'model.encoder={{type: {kind}, weights: {weights}, size: large}}'", "")
        for kind, weights in (("hubert", "facebook/hubert-large-ll60k"), ("wav2vec2", "facebook/wav2vec2-large-lv60"),
                              ("data2vec", "facebook/data2vec-audio-large"), ("wavlm", "microsoft/wavlm-large"))
    },
    "llm_sizes": {
        name.rpartition("/")[2]: (f"model.llm.weights={name} model.llm.shape=null", "")
        for name in ("Qwen/Qwen2.5-0.5B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B",
                     "lmsys/vicuna-7b-v1.5")
    },
}


def main() -> None:
    argv = sys.argv[1:]
    rest = argv[argv.index("--") + 1 :] if "--" in argv else []
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("study", nargs="?", choices=sorted(STUDIES))
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--mini", choices=("true", "false"), default="false", help="on the synthesised miniature")
    options.add_argument("--mini-size", default="default")
    options.add_argument("--list", action="store_true", help="say what each study runs, and run nothing")
    options.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args = options.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    if args.list or args.study is None:
        for study, variants in STUDIES.items():
            print(f"{study}: {', '.join(variants)}")
        return
    rows = []
    for variant, (training, decoding) in STUDIES[args.study].items():
        for seed in args.seeds:
            tag, command = run_of(args, variant, training, decoding, seed)
            print("+", " ".join(command + rest), flush=True)
            if args.dry_run:
                continue
            subprocess.run([*command, *rest], check=True, stdin=subprocess.DEVNULL)
            rows += results(folder(args), tag, f"{variant}, seed {seed}")
    if rows:
        text = table(args.study, rows)
        (folder(args) / f"STUDY_{args.study}.md").write_text(text, encoding="utf-8")
        print(text)


def run_of(args: argparse.Namespace, variant: str, training: str, decoding: str, seed: int) -> tuple[str, list[str]]:
    """The experiment's name and the command of a variant; those that change the search alone share one training."""
    tag = f"study_{args.study}_{variant if training else 'base'}_s{seed}"
    command = [str(RECIPE / "run_llm.sh"), "--tag", tag, "--train-args", f"seed={seed} {training}".strip()]
    if args.mini == "true":
        command += ["--mini", "true", "--mini-size", args.mini_size]
    if decoding:
        command += ["--decode-args", decoding]
    return tag, command


def folder(args: argparse.Namespace) -> Path:
    mini = "" if args.mini == "false" else "mini" if args.mini_size == "default" else f"mini_{args.mini_size}"
    return RECIPE / "exp" / mini


def results(exp: Path, tag: str, name: str) -> list[str]:
    """A line of the table for each set that was scored."""
    lines = []
    for path in sorted((exp / tag).glob("*/*/insertions.json")):
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
    heads = ("variant", "set", "WER %", "95 % interval", "S / D / I", "insertions a minute", "hallucinations")
    lines = [f"# {study}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
