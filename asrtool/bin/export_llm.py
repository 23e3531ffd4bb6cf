"""Export a trained language model, or the parts of a speech LLM, as folders of `transformers` and
peft.

    asrtool export_llm exp/train_causal_lm --out llm                a Llama with its tokenizer
    asrtool export_llm exp/train_speech_llm --out parts
        parts/llm/                 the language model with LoRA merged, and its tokenizer
        parts/encoder/             the encoder likewise, if it is one of `transformers`; else
                                   encoder.safetensors
        parts/adapters/llm/        LoRA alone, in peft's own format; adapters/encoder/ likewise
        parts/adapter.safetensors  the network between the two

The language model's folder can be given to llm.weights, and to any other program that reads such
folders.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from asrtool import experiment, imports, log, torchaudio_adapter, tuning
from asrtool.data import tokenizers
from asrtool.data.tokenizers import SPACE, BpeTokenizer, HfTokenizer, Tokenizer
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.log import logger
from asrtool.model_folder import Experiment, sha256
from asrtool.models import CausalLm, SpeechLlm
from asrtool.searchers import LlmBeamConfig
from asrtool.system import stamp
from asrtool.trainer import checkpoint


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    log.set_up()
    imports.take(args)
    settings = DecodeConfig(searcher=LlmBeamConfig(), average=args.average, phase=args.phase)
    trained = Experiment.open(args.exp)
    phase, config = trained.phase(settings.phase)
    weights = trained.weights(settings)
    options = {"weights": str(weights), "sha256": sha256(weights)}
    with stamp.building(args.out, "export_llm", [], options, args.force) as target:
        if target is not None:
            export(trained, phase, config, weights, target)
            logger.info(
                "%s: %s", args.out, ", ".join(sorted(path.name for path in target.iterdir()))
            )


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool export_llm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("exp", type=Path, help="experiment of a speech_llm or a causal_lm")
    options.add_argument("--out", type=Path, required=True, help="folder to write")
    options.add_argument("--phase", help="phase of the training (default: the last)")
    options.add_argument(
        "--average", type=int, help="checkpoints to average (default: as many as training did)"
    )
    options.add_argument(
        "--force", action="store_true", help="export again even if nothing changed"
    )
    imports.add_options(options)
    return options.parse_args(argv)


def export(
    trained: Experiment, phase: str, config: TrainConfig, weights: Path, target: Path
) -> None:
    exp, tokenizer = trained.folder, trained.tokenizer
    model = trained.build(phase)
    if not isinstance(model, SpeechLlm | CausalLm):
        raise UserError(
            f"{exp} holds no language model of `transformers`: model.type is {type(model).__name__}"
        )
    checkpoint.load_model(model, weights)
    (target / "config.yaml").write_text(experiment.dump_phases({phase: config}), encoding="utf-8")
    if isinstance(model, CausalLm):
        model.llm.save_pretrained(str(target))
        as_transformers(tokenizer).save_pretrained(str(target))
        return
    save_parts(model, config, target)
    has_tokenizer = isinstance(tokenizer, HfTokenizer)
    written = (
        tokenizers.load_hf(str(exp / "vocab" / tokenizers.HF))
        if has_tokenizer
        else as_transformers(tokenizer)
    )
    written.pad_token = written.pad_token or written.eos_token
    written.save_pretrained(str(target / "llm"))


def save_parts(model: SpeechLlm, config: TrainConfig, target: Path) -> None:
    """Write all parts of a speech LLM except the tokenizer."""
    parts = config.model
    language = parts.llm
    save_file(packed(model.adapter.state_dict()), target / "adapter.safetensors")
    if language.tuning.mode == "lora":
        tuning.save(
            language.tuning, model.llm, target / "adapters" / "llm", language.weights, "CAUSAL_LM"
        )
    with tuning.merged(model.llm):
        model.llm.save_pretrained(str(target / "llm"), state_dict=tuning.plain_tensors(model.llm))
    encoder = getattr(model.encoder, "model", None)  # that of `transformers`, if it is one
    if parts.encoder_tuning.mode == "lora":
        base = parts.encoder.weights or parts.encoder_weights
        tuning.save(
            parts.encoder_tuning, encoder or model.encoder, target / "adapters" / "encoder", base
        )
    with tuning.merged(model.encoder):
        if encoder is not None and hasattr(encoder, "save_pretrained"):
            encoder.save_pretrained(
                str(target / "encoder"), state_dict=tuning.plain_tensors(encoder)
            )
        else:
            tensors = {
                f"encoder.{name}": value
                for name, value in tuning.plain_tensors(model.encoder).items()
            }
            save_file(packed(tensors), target / "encoder.safetensors")


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def as_transformers(tokenizer: Tokenizer) -> object:
    """The vocabulary, of characters or of sentencepiece's unigram model, as a tokenizer of
    `transformers` with the same ids. Raises `UserError` for other kinds.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    from transformers import PreTrainedTokenizerFast

    names = [" " if token == SPACE else token for token in tokenizer.tokens]
    unknown, end = names[tokenizer.unk], names[tokenizer.eos]
    if isinstance(tokenizer, BpeTokenizer):
        if tokenizer.kind != "unigram":
            raise UserError(
                "of sentencepiece's models only `unigram` can be exported as a tokenizer"
            )
        scores = tokenizer.scores()
        inner = Inner(models.Unigram(list(zip(names, scores, strict=True)), unk_id=tokenizer.unk))
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
    else:
        inner = Inner(
            models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=unknown)
        )
        inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        inner.decoder = decoders.Fuse()
    special = {"unk_token": unknown, "bos_token": end, "eos_token": end, "pad_token": names[0]}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, **special
    )


if __name__ == "__main__":
    main()
