"""Pack a trained model into one self-contained folder: config, vocabulary, normalisation, averaged
weights.

    asrtool pack exp/train_conformer --config conf/decode_joint.yaml --out model
    asrtool recognize model a.wav

The folder also has a model card (README.md), and model.json with the origin of the model and the
SHA-256 of every file, which is checked whenever the model is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from asrtool import __version__, config, experiment, imports, log
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.log import logger
from asrtool.model_folder import (
    CARD,
    CONFIG,
    DECODE,
    LM,
    WEIGHTS,
    Experiment,
    language_model,
    moved,
    named_files,
    sha256,
)
from asrtool.models import LM_OUTPUT, HybridConfig
from asrtool.searchers import SEARCHERS
from asrtool.system import atomic, stamp
from asrtool.trainer import averaging, checkpoint

FORMAT = 1


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    trained = Experiment.open(args.exp)
    overrides = experiment.split_overrides(args.set)
    decode = trained.decode_config(args.config, overrides)
    pack(trained, decode, args.out, args.lm, args.name or args.exp.resolve().name)


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("exp", type=Path, help="experiment that stage 3 wrote")
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write; it must not exist yet"
    )
    options.add_argument(
        "--config",
        "--decode-config",
        dest="config",
        type=Path,
        help="decode_*.yaml for recognition; default: the search that the model's heads choose",
    )
    experiment.add_set_option(options, "override of the search")
    options.add_argument("--lm", type=Path, help="experiment of a language model to include")
    options.add_argument("--name", help="title of the model card; default: the experiment's folder")
    imports.add_options(options)
    return options.parse_args(argv)


def pack(trained: Experiment, decode: DecodeConfig, out: Path, lm: Path | None, name: str) -> None:
    """Write the folder `out`, completely or not at all."""
    exp = trained.folder
    if trained.packed:
        raise UserError(f"{exp} is a packed model already; copy the folder")
    if out.exists():
        stamp.sweep(out)
        raise UserError(f"{out} already exists; give another --out, or remove it")
    if decode.searcher.weights.get(LM_OUTPUT) and lm is None:
        raise UserError("the decoding config uses a language model: give its folder by --lm")
    phase, train = trained.phase(decode.phase)
    weights = trained.weights(decode)
    with stamp.locked(out), atomic.replacing_folder(out) as target:
        (target / "vocab").mkdir()
        fill(target, trained, dataclasses.replace(decode, phase=phase), {phase: train}, weights)
        if lm is not None:
            pack_language_model(lm, exp / "vocab", target / LM)
        card = describe(name, trained, phase, train, weights, target)
        (target / "README.md").write_text(readme(name, card, exp, decode), encoding="utf-8")
        card["files"] = digests(target)
        (target / CARD).write_text(
            json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    logger.info(
        "%s: %.1f MB, %s parameters, SHA-256 %s",
        out,
        size,
        f"{card['parameters']:,}",
        card["sha256"][:16],
    )


def fill(
    target: Path,
    trained: Experiment,
    decode: DecodeConfig,
    phases: dict[str, TrainConfig],
    weights: Path,
) -> None:
    """Write everything but the cards. Files that the decoding config names are copied, and their
    paths become relative to the folder.
    """
    exp = trained.folder
    for file in sorted((exp / "vocab").iterdir()):
        if file.name.startswith("."):
            continue
        # a folder: hf/, the tokenizer of a language model
        copy = shutil.copytree if file.is_dir() else shutil.copyfile
        copy(file, target / "vocab" / file.name)
    if (exp / "cmvn.json").exists():
        shutil.copyfile(exp / "cmvn.json", target / "cmvn.json")
    if (lengths := trained.lengths(decode.phase)) is not None:
        lengths.save(target)
    copy_weights(trained, decode.phase, weights, target / WEIGHTS)
    (target / CONFIG).write_text(experiment.dump_phases(phases), encoding="utf-8")
    files = named_files(decode.searcher)
    if files:
        (target / "files").mkdir()
    renamed = {}
    for number, file in enumerate(dict.fromkeys(files)):
        # Numbered: two files may have the same name in different folders.
        inside = f"files/{number}-{Path(file).name}"
        shutil.copyfile(file, target / inside)
        renamed[file] = inside
    decode = dataclasses.replace(decode, searcher=moved(decode.searcher, renamed.__getitem__))
    (target / DECODE).write_text(
        experiment.dump(config.encode(DecodeConfig, decode)), encoding="utf-8"
    )


def copy_weights(trained: Experiment, phase: str, weights: Path, target: Path) -> None:
    """Copy the weights, with those of a frozen encoder, which checkpoints omit.

    A speech LLM keeps reading its published weights from their own folder.
    """
    model = trained.build(phase)
    if not model.pretrained or not isinstance(trained.phase(phase)[1].model, HybridConfig):
        shutil.copyfile(weights, target)
        return
    checkpoint.load_model(model, weights)
    model.pretrained = frozenset()
    tensors = checkpoint.model_tensors(model)
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, target)


def pack_language_model(lm: Path, vocab: Path, target: Path) -> None:
    phase, train = Experiment.open(lm).phase()
    _, weights = language_model(lm, vocab)
    target.mkdir()
    shutil.copyfile(weights, target / WEIGHTS)
    (target / CONFIG).write_text(experiment.dump_phases({phase: train}), encoding="utf-8")


def describe(
    name: str, trained: Experiment, phase: str, train: TrainConfig, weights: Path, target: Path
) -> dict:
    """The content of model.json, except the digests of the files."""
    exp, model = trained.folder, trained.build(phase)
    return {
        "format": FORMAT,
        "name": name,
        "asrtool": __version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": sha256(target / WEIGHTS),
        "origin": {
            "experiment": exp.resolve().name,
            "phase": phase,
            "weights": weights.name,
            "checkpoints": averaging.averaged_from(weights),
            "commit": last_line(exp / "git.txt"),
            "seed": train.seed,
            "data": (stamp.read(exp) or {}).get("sources", {}),
        },
        "results": results(exp),
    }


def last_line(file: Path) -> str | None:
    """The last line of git.txt: date, time and commit of the last start."""
    try:
        return file.read_text(encoding="utf-8").strip().split("\n")[-1]
    except OSError:
        return None


def results(exp: Path) -> list[dict]:
    """Every score of the experiment: decoding, set, metric, rate, interval."""
    scores = []
    for file in sorted(exp.glob("*/*/score.json")):
        score = json.loads(file.read_text(encoding="utf-8"))
        total = {name: score["total"][name] for name in ("rate", "reference")}
        names = {"decode": file.parts[-3], "set": file.parts[-2]}
        scores.append(
            {**names, "metric": score["metric"], "normalizer": score["normalizer"], **total}
        )
    return scores


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def readme(name: str, card: dict, exp: Path, decode: DecodeConfig) -> str:
    """The model card."""
    origin = card["origin"]
    text = [f"# {name}", "", "Made by `asrtool pack`. It needs nothing but asrtool:", ""]
    text += ["```", "asrtool recognize <this folder> a.wav", "```", "", "| | |", "|---|---|"]
    rows = {
        "SHA-256 of the weights": f"`{card['sha256']}`",
        "parameters": f"{card['parameters']:,}",
        "asrtool": card["asrtool"],
        "trained with": origin["commit"] or "unknown",
        "experiment, phase": f"{origin['experiment']}, {origin['phase']}",
        "weights": f"{origin['weights']}"
        + (f" ({origin['checkpoints']})" if origin["checkpoints"] else ""),
        "seed": origin["seed"],
        "training data": f"digest {origin['data'].get('train', 'unknown')}",
        "search": f"`{SEARCHERS.name_of(decode.searcher)}`",
    }
    text += [f"| {key} | {value} |" for key, value in rows.items()]
    text += ["", "## Results", ""]
    if not card["results"]:
        text += ["None: the experiment was not scored when it was packed."]
    else:
        text += [
            "| decoding | set | metric | rate | of | normalizer |",
            "|---|---|---|---|---|---|",
        ]
    for row in card["results"]:
        rate = "none" if row["rate"] is None else f"{100 * row['rate']:.2f} %"
        cells = (
            row["decode"],
            row["set"],
            row["metric"],
            rate,
            row["reference"],
            row["normalizer"],
        )
        text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
