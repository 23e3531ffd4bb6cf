"""Write the CTC head that an encoder was trained with to one file, for drafts of a speech LLM.

    asrtool export_ctc_head exp/train_conformer --out ctc_head.safetensors
    asrtool export_ctc_head facebook/hubert-large-ls960-ft --transformers --case lower \\
      --out ctc_head.safetensors

A speech LLM with the same encoder reads it by `encoder_ctc: {path: ctc_head.safetensors}` of the
search `llm_draft` (docs/papers/llm_draft.md). The encoder should be frozen in the speech LLM: its
head no longer fits one that was trained on. The file has `weight` (V, D) and `bias` (V,), and the
texts of the tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from asrtool import imports, log, torchaudio_adapter
from asrtool.data.tokenizers import UNK
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig
from asrtool.heads import names_of
from asrtool.heads.frames import FRAMES
from asrtool.log import logger
from asrtool.model_folder import Experiment, build_model
from asrtool.models import AsrModel
from asrtool.nn.meta_device import without_weights
from asrtool.searchers import CtcGreedyConfig
from asrtool.searchers.drafts import CARD
from asrtool.system import atomic


class Head(NamedTuple):
    """A CTC head over the frames of an encoder."""

    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    texts: Sequence[str]  # of its tokens: with a space where a word begins, "" for what is no text
    blank: int


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    if args.transformers:
        head = of_transformers(args.model)
    else:
        settings = DecodeConfig(searcher=CtcGreedyConfig(), average=args.average, phase=args.phase)
        head = of_experiment(Experiment.open(args.model), settings, args.head)
    if args.case == "lower":
        head = head._replace(texts=[text.lower() for text in head.texts])
    card = {CARD: json.dumps({"texts": list(head.texts), "blank": head.blank})}
    tensors = {
        name: value.detach().float().contiguous()
        for name, value in (("weight", head.weight), ("bias", head.bias))
    }
    with atomic.replacing(args.out) as target:
        save_file(tensors, target, card)
    logger.info("%s: a CTC head over %d tokens, %d columns", args.out, *head.weight.shape)


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool export_ctc_head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("model", help="experiment, packed model or hf:user/model with a CTC head")
    options.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    options.add_argument(
        "--transformers",
        action="store_true",
        help="the model is one of `transformers` for CTC: a folder, or a name on the hub",
    )
    options.add_argument(
        "--case",
        choices=("keep", "lower"),
        default="keep",
        help="of the drafts: that of the speech LLM's vocabulary (stage 2's --case)",
    )
    options.add_argument("--head", default="ctc", help="name of the head (default: ctc)")
    options.add_argument("--phase", help="phase of the training (default: the last)")
    options.add_argument(
        "--average", type=int, help="checkpoints to average (default: as many as training did)"
    )
    imports.add_options(options)
    return options.parse_args(argv)


def of_experiment(trained: Experiment, settings: DecodeConfig, name: str) -> Head:
    """The head `name`. Raises `UserError` if it is no CTC head over the encoder's frames."""
    phase, config = trained.phase(settings.phase)
    trained.refuse_text(config)
    with without_weights():
        model = build_model(config, trained.tokenizer.size)
    check(trained, phase, model, name)
    with safe_open(trained.weights(settings), "pt") as file:
        weight, bias = (file.get_tensor(f"heads.{name}.{part}") for part in ("weight", "bias"))
    tokenizer = trained.tokenizer
    texts = [tokenizer.piece(token) for token in range(tokenizer.size)]
    return Head(weight, bias, ["" if text == UNK else text for text in texts], model.blank)


def check(trained: Experiment, phase: str, model: AsrModel, name: str) -> None:
    if name not in model.heads or model.heads[name].alignment != "ctc":
        heads = [key for key, head in model.heads.items() if head.alignment == "ctc"]
        raise UserError(
            f"{trained.folder}: phase '{phase}' has no CTC head '{name}' (it has: "
            f"{names_of(heads)})"
        )
    source = getattr(model.heads[name], "source", name)
    if source not in (None, FRAMES):
        raise UserError(
            f"{trained.folder}: the head '{name}' reads the tap '{source}' of the encoder, but "
            "drafts are read from its frames"
        )


def of_transformers(name: str) -> Head:
    """The head of a CTC model of `transformers`, such as `HubertForCTC`, with its tokenizer."""
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    from transformers import AutoModelForCTC, AutoTokenizer

    local = {"local_files_only": Path(name).is_dir()}
    try:
        model = AutoModelForCTC.from_pretrained(name, **local)
        tokenizer = AutoTokenizer.from_pretrained(name, **local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name}: no folder and no name on the hub of a CTC model of `transformers`: {reason}"
        ) from None
    if getattr(model.config, "add_adapter", False):
        raise UserError(f"{name}: its head reads an adapter behind the encoder, not the encoder")
    size = model.lm_head.weight.shape[0]
    texts = spelt(tokenizer.convert_ids_to_tokens(range(size)), special_tokens(tokenizer))
    return Head(model.lm_head.weight, model.lm_head.bias, texts, tokenizer.pad_token_id)


def special_tokens(tokenizer: object) -> Mapping[str, str]:
    """Token -> text of the tokens that stand for something else than themselves."""
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    return {**dict.fromkeys(tokenizer.all_special_tokens, ""), delimiter: " "}


def spelt(tokens: Sequence[str], special: Mapping[str, str]) -> list[str]:
    return [special.get(token, token) for token in tokens]


if __name__ == "__main__":
    main()
