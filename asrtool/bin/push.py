"""Upload a trained model to the Hugging Face Hub, packed and with a model card.

    asrtool push exp/train_conformer user/model --license apache-2.0 --language en
    asrtool push exp/train_conformer user/model --license apache-2.0 --out folder

An experiment is packed as by `asrtool pack`. The card has the scores of exactly these weights. With
--out the folder is only written, without using the network. Published weights that the model
was built on are uploaded only if their licence, given by --base-license, permits it;
--adapters-only omits those that were not trained.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from asrtool import experiment, hub, imports, log
from asrtool.bin.pack import Content, add_content_options, write
from asrtool.errors import UserError
from asrtool.experiment import TrainConfig
from asrtool.hub import Reference
from asrtool.hub.card import Publication
from asrtool.log import logger
from asrtool.model_folder import PACKED, Experiment
from asrtool.models.origins import published

# identifiers of licences that permit redistribution, modified or not
OPEN = """
apache-2.0 mit bsd bsd-2-clause bsd-3-clause isc zlib unlicense wtfpl
cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0
cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
mpl-2.0 lgpl-2.1 lgpl-3.0 gpl-2.0 gpl-3.0 agpl-3.0 pddl odc-by
"""


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    reference = Reference.parse(hub.PREFIX + args.repo.removeprefix(hub.PREFIX))
    if reference.revision is not None:
        raise UserError(f"give the branch '{reference.revision}' by --revision")
    reference = Reference(reference.repo, args.revision)
    content = content_of(args)

    def about(card: Mapping) -> Publication:
        return publication(content, card, args, reference)

    if args.out is not None:
        write(content, args.out, about)
        logger.info("%s: written; nothing was uploaded", args.out)
        return
    with tempfile.TemporaryDirectory(prefix="asrtool-push-") as folder:
        target = Path(folder) / "model"
        card = write(content, target, about)
        message = f"asrtool push: {card['name']}, weights {card['sha256'][:16]}"
        address = hub.upload(target, reference, message, PACKED, args.private)
    logger.info("%s: %s", reference, address)
    print(reference)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool push",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("model", help="experiment that stage 3 wrote, or a packed model")
    options.add_argument("repo", metavar="user/model", help="name on the hub, created if new")
    options.add_argument("--revision", help="branch, created if new; default: main")
    options.add_argument("--private", action="store_true", help="create a private model")
    options.add_argument(
        "--out", type=Path, help="only write this folder, which must not exist yet"
    )
    options.add_argument(
        "--license",
        help="licence of the model, as the hub's identifier (apache-2.0, cc-by-4.0 ...); required "
        "unless the packed model has one",
    )
    for name, what in (
        ("language", "language of the speech, ISO 639: en, zh ..."),
        ("dataset", "hub name of a training set"),
        ("tag", "further tag"),
    ):
        options.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="NAME",
            help=f"{what}; may be repeated",
        )
    options.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="PART=user/model[@revision]",
        help="hub name of base weights that were used from a local folder",
    )
    options.add_argument(
        "--base-license",
        action="append",
        default=[],
        metavar="user/model=LICENSE",
        help="licence of base weights that the model includes",
    )
    add_content_options(options)
    return options.parse_args(argv)


def content_of(args: argparse.Namespace) -> Content:
    """The content to push. Raises `UserError` if it refers to local files."""
    trained = Experiment.open(args.model)
    named = {
        part: Reference.parse(hub.PREFIX + name)
        for part, name in pairs(args.base, "--base").items()
    }
    license = args.license or trained.card.get("license")
    if license is None:
        raise UserError("a model needs a licence: give one, as in --license apache-2.0")
    decode = trained.decode_config(args.config, experiment.split_overrides(args.set))
    content = Content(
        trained,
        decode,
        args.lm or trained.lm,
        args.name or trained.card.get("name") or trained.folder.resolve().name,
        args.adapters_only,
        named,
        license,
    )
    check_parts(content, trained.phase(decode.phase)[1])
    return content


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """The values of a repeated option NAME=VALUE by name."""
    split = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"{option} {text}: expected <name>=<value>")
        split[name] = value
    return split


def check_parts(content: Content, train: TrainConfig) -> None:
    """Raise `UserError` if base weights have no name on the hub, or --base names no part."""
    parts = published(train.model)
    unknown = sorted(content.named.keys() - parts.keys())
    if unknown:
        has = ", ".join(parts) or "none"
        raise UserError(f"--base {unknown[0]}: no such part (parts with base weights: {has})")
    for part, config in parts.items():
        if part not in content.named and Path(config.weights).exists():
            raise UserError(
                f"the base weights of its {part} are in the local folder {config.weights}: give "
                f"their name on the hub, --base {part}=user/model"
            )


def publication(
    content: Content, card: Mapping, args: argparse.Namespace, reference: Reference
) -> Publication:
    """What the model card says beyond model.json."""
    train = content.trained.phase(content.decode.phase)[1]
    return Publication(
        reference=reference,
        license=card["license"],
        languages=args.language,
        datasets=args.dataset,
        tags=args.tag,
        bases=licences(content, train, card, pairs(args.base_license, "--base-license")),
    )


def licences(
    content: Content, train: TrainConfig, card: Mapping, given: Mapping[str, str]
) -> dict[str, str | None]:
    """Name of each base model -> its licence, or None if its weights are omitted. Raises
    `UserError` for included weights, modified or not, without a licence that permits it.
    """
    left = {base["part"]: base for base in card.get("bases", ())}
    found: dict[str, str | None] = {}
    for part, config in published(train.model).items():
        if part in left:
            found[left[part]["weights"]] = None
            continue
        name = content.named[part].repo if part in content.named else config.weights
        licence = given.get(name)
        if licence is None or licence not in OPEN.split():
            what = "no licence is given" if licence is None else f"{licence} does not permit it"
            raise UserError(
                f"the model includes the weights of {name}, the base of its {part}, and {what}: "
                "upload only what was trained (--adapters-only), or give a licence that permits "
                f"redistribution (--base-license {name}=apache-2.0)"
            )
        found[name] = licence
    return found


if __name__ == "__main__":
    main()
