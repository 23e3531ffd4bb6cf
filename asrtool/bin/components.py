"""List the components that a config can name, with description, fields, types and defaults."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Sequence

from asrtool.data.tokenizers import TOKENIZERS
from asrtool.decoders import DECODERS
from asrtool.downsamplers import DOWNSAMPLERS
from asrtool.encoders import ATTENTIONS, ENCODERS
from asrtool.heads import HEADS, PREDICTORS
from asrtool.losses import LOSSES
from asrtool.models import MODELS
from asrtool.registry import Registry, suggest
from asrtool.searchers import SEARCHERS
from asrtool.trainer.optim import OPTIMIZERS
from asrtool.trainer.schedules import SCHEDULES

REGISTRIES = (
    MODELS,
    ENCODERS,
    ATTENTIONS,
    DOWNSAMPLERS,
    DECODERS,
    HEADS,
    PREDICTORS,
    LOSSES,
    SEARCHERS,
    TOKENIZERS,
    OPTIMIZERS,
    SCHEDULES,
)


def main(argv: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="asrtool components", description=__doc__)
    options.add_argument("kind", nargs="?", help="one kind only, such as encoder or loss")
    args = options.parse_args(argv)
    kinds = {registry.kind: registry for registry in REGISTRIES}
    if args.kind is not None and args.kind not in kinds:
        raise ValueError(f"no kind '{args.kind}'{suggest(args.kind, kinds)}")
    for kind, registry in kinds.items():
        if args.kind in (None, kind):
            print("\n".join(listing(registry)))


def listing(registry: Registry) -> list[str]:
    """The lines for one registry."""
    lines = [f"{registry.kind}"]
    for name in registry.names():
        config = registry.config_type(name)
        lines.append(f"  {name}: {(inspect.getdoc(config) or '').splitlines()[0]}")
        lines += [
            f"    {field.name}: {field.type}{default(field)}"
            for field in dataclasses.fields(config)
        ]
    return lines


def default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}"
    return "    (required)"


if __name__ == "__main__":
    main()
