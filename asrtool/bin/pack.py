"""Pack a trained model into one self-contained folder: config, vocabulary, normalisation, averaged
weights.

    asrtool pack exp/train_conformer --config conf/decode_joint.yaml --out model
    asrtool recognize model a.wav

The folder also has a model card (README.md), and model.json with the origin of the model and the
SHA-256 of every file, which is checked whenever the model is loaded. --adapters-only omits base
weights that were not trained, and records their names: adapters and heads are small, and may be
distributed even if the base weights may not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file

from asrtool import __version__, config, experiment, hub, imports, log
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.hub import Reference
from asrtool.hub.card import README, Publication, render
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
from asrtool.models import LM_OUTPUT, HybridConfig, Model, origins
from asrtool.score.stored import SCORE, read_score
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
    if trained.packed:
        raise UserError(f"{trained.folder} is a packed model already; copy the folder")
    content = Content(
        trained, decode, args.lm, args.name or args.exp.resolve().name, args.adapters_only
    )
    write(content, args.out)


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
    add_content_options(options)
    return options.parse_args(argv)


def add_content_options(options: argparse.ArgumentParser) -> None:
    """Options of what is packed."""
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
    options.add_argument(
        "--adapters-only",
        action="store_true",
        help="omit base weights that were not trained, and record their names",
    )
    imports.add_options(options)


@dataclasses.dataclass(frozen=True)
class Content:
    """What is packed: an experiment, or a packed model with another model card."""

    trained: Experiment
    decode: DecodeConfig
    lm: Path | None
    name: str
    adapters_only: bool = False
    # part -> hub name of its base weights
    named: Mapping[str, Reference] = dataclasses.field(default_factory=dict)
    license: str | None = None


def write(content: Content, out: Path, about: Callable[[dict], Publication] | None = None) -> dict:
    """Write the folder `out`, completely or not at all; returns its model.json.

    about: makes the publication of it, for a model card on the hub.
    """
    if out.exists():
        stamp.sweep(out)
        raise UserError(f"{out} already exists; give another --out, or remove it")
    with stamp.locked(out), atomic.replacing_folder(out) as target:
        card = pack(content, target)
        config_text = (target / CONFIG).read_text(encoding="utf-8")
        publication = None if about is None else about(card)
        readme = render(card, config_text, publication)
        (target / README).write_text(readme, encoding="utf-8")
        card["files"] = digests(target)
        text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
        (target / CARD).write_text(text, encoding="utf-8")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    logger.info(
        "%s: %.1f MB, %s parameters, SHA-256 %s",
        out,
        size,
        f"{card['parameters']:,}",
        card["sha256"][:16],
    )
    return card


def pack(content: Content, target: Path) -> dict:
    """Fill an empty folder, without README.md and model.json; returns the content of model.json."""
    trained, decode, lm = content.trained, content.decode, content.lm
    if decode.searcher.weights.get(LM_OUTPUT) and lm is None:
        raise UserError("the decoding config uses a language model: give its folder by --lm")
    phase, train = trained.phase(decode.phase)
    weights = trained.weights(decode)
    model = trained.build(phase)
    own = taken_over(train, model)
    left = left_out(content, model, train)
    names = {part: (known.repo, known.revision) for part, known in content.named.items()}
    names |= {base["part"]: (base["weights"], base["revision"]) for base in left}
    for part, name in names.items():
        train = dataclasses.replace(train, model=origins.renamed(train.model, part, *name))
    if own:  # the weights of the folder have them
        alone = dataclasses.replace(train.model, encoder_weights=None)
        train = dataclasses.replace(train, model=alone)
    (target / "vocab").mkdir()
    fill(target, trained, dataclasses.replace(decode, phase=phase), {phase: train})
    copy_weights(content, phase, model, weights, target / WEIGHTS, own)
    if lm is not None:
        pack_language_model(lm, trained.folder / "vocab", target / LM)
    card = describe(content, phase, train, weights, model, target)
    card |= {} if content.license is None else {"license": content.license}
    return card | ({"bases": left} if left else {})


def left_out(content: Content, model: Model, train: TrainConfig) -> list[dict]:
    """The base weights that are not packed: part, weights (name), revision, and the SHA-256 of
    each of their files.
    """
    trained, whole = content.trained, isinstance(train.model, HybridConfig)
    file = getattr(train.model, "encoder_weights", None)  # is packed: nobody else has it
    sources = {source["part"]: source for source in model.sources if source["weights"] != file}
    if content.adapters_only and trained.packed and not trained.bases:
        raise UserError(
            f"{trained.folder} is packed with its base weights: give its experiment for "
            "--adapters-only"
        )
    if content.adapters_only and not sources:
        raise UserError(
            f"{trained.folder} has no base weights that were not trained, so there is nothing that "
            "--adapters-only could omit"
        )
    if whole and not content.adapters_only and not trained.bases:
        return []
    left = []
    for part, source in sources.items():
        weights, revision = source["weights"], source["revision"]
        files = origins.digests(weights, revision)
        if part in content.named:
            weights, revision = content.named[part].repo, content.named[part].revision
        elif (known := hub.origin(origins.folder_of(weights, revision))) is not None:
            revision = Reference.parse(known).revision  # the commit: a branch may move
        left.append({"part": part, "weights": weights, "revision": revision, "files": files})
    return [base for base in left if base["part"] in origins.published(train.model)]


def fill(
    target: Path,
    trained: Experiment,
    decode: DecodeConfig,
    phases: dict[str, TrainConfig],
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
    (target / CONFIG).write_text(experiment.dump_phases(phases), encoding="utf-8")
    files = named_files(decode.searcher)
    if files:
        (target / "files").mkdir()
    renamed = {}
    for number, file in enumerate(dict.fromkeys(files)):
        # Numbered: two files may have the same name in different folders.
        name = Path(file).name.split("-", 1)[-1] if trained.packed else Path(file).name
        inside = f"files/{number}-{name}"
        shutil.copyfile(file, target / inside)
        renamed[file] = inside
    decode = dataclasses.replace(decode, searcher=moved(decode.searcher, renamed.__getitem__))
    (target / DECODE).write_text(
        experiment.dump(config.encode(DecodeConfig, decode)), encoding="utf-8"
    )


def taken_over(train: TrainConfig, model: Model) -> frozenset[str]:
    """Names of the tensors that checkpoints omit because they are in a file of another training,
    `model.encoder_weights`.
    """
    file = getattr(train.model, "encoder_weights", None)
    return frozenset() if file is None else model.pretrained & checkpoint.shapes(Path(file)).keys()


def copy_weights(
    content: Content, phase: str, model: Model, weights: Path, target: Path, own: frozenset[str]
) -> None:
    """Copy the weights, with those of a frozen encoder, which checkpoints omit.

    A speech LLM keeps reading its published weights from their own folder; `own` are the omitted
    tensors that are not published.
    """
    hybrid = isinstance(content.trained.phase(phase)[1].model, HybridConfig)
    if hybrid and not content.adapters_only and not content.trained.bases:
        own = model.pretrained
    if not own:
        shutil.copyfile(weights, target)
        return
    checkpoint.load_model(model, weights)
    left, model.pretrained = model.pretrained, model.pretrained - own
    tensors = checkpoint.model_tensors(model)
    model.pretrained = left
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, target)


def pack_language_model(lm: Path, vocab: Path, target: Path) -> None:
    phase, train = Experiment.open(lm).phase()
    _, weights = language_model(lm, vocab)
    target.mkdir()
    shutil.copyfile(weights, target / WEIGHTS)
    (target / CONFIG).write_text(experiment.dump_phases({phase: train}), encoding="utf-8")


def describe(
    content: Content, phase: str, train: TrainConfig, weights: Path, model: Model, target: Path
) -> dict:
    """The content of model.json without the digests of files; a packed model keeps its own."""
    trained = content.trained
    if trained.packed:
        return {key: value for key, value in trained.card.items() if key != "files"} | {
            "name": content.name,
            "sha256": sha256(target / WEIGHTS),
            "search": SEARCHERS.name_of(content.decode.searcher),
        }
    exp = trained.folder
    card = exp / next(iter(trained.phases)) / CARD
    origin = {
        "experiment": exp.resolve().name,
        "phase": phase,
        "weights": weights.name,
        "checkpoints": averaging.averaged_from(weights),
        "commit": last_line(exp / "git.txt"),
        "seed": train.seed,
        "data": (stamp.read(exp) or {}).get("sources", {}),
    }
    if card.exists() and (start := json.loads(card.read_text("utf-8")).get("init")) is not None:
        origin["init"] = start if hub.is_reference(start) else Path(start).name
    return {
        "format": FORMAT,
        "name": content.name,
        "asrtool": __version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": sha256(target / WEIGHTS),
        "search": SEARCHERS.name_of(content.decode.searcher),
        "origin": origin,
        "results": results(exp, [weights, *target.glob(f"{LM}/{WEIGHTS}")]),
    }


def last_line(file: Path) -> str | None:
    """The last line of git.txt: date, time and commit of the last start."""
    try:
        return file.read_text(encoding="utf-8").strip().split("\n")[-1]
    except OSError:
        return None


def results(exp: Path, weights: Sequence[Path]) -> list[dict]:
    """The scores of the experiment with these weights: decoding, set, metric, rate, interval. A
    score of other weights is omitted with a warning.
    """
    made_with = [sha256(file)[:16] for file in weights]
    scores = []
    for file in sorted(exp.glob(f"*/*/{SCORE}")):
        stamped = (stamp.read(file.parent) or {}).get("options", {}).get("weights")
        if stamped is None or not set(stamped.split("+")) <= set(made_with):
            why = "its decoding has no stamp" if stamped is None else "it is of other weights"
            logger.warning("%s is omitted from the model card: %s", file, why)
            continue
        score = read_score(file)
        total = {name: score["total"][name] for name in ("rate", "reference")}
        names = {"decode": file.parts[-3], "set": file.parts[-2]}
        kinds = {name: score[name] for name in ("metric", "normalizer", "interval")}
        scores.append({**names, **kinds, **total})
    return scores


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


if __name__ == "__main__":
    main()
