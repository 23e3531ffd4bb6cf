"""Recognises a set with Whisper's own decoder, greedily, to compare it with a recogniser.

    PYTHONPATH=. python tools/benchmarks/whisper_decoder.py --weights <folder of whisper-base> \\
        --data data/test --out exp/whisper/test
    utils/score.sh --metric wer --normalize whisper data/test exp/whisper/test

Audio is padded to 30 seconds, as in Whisper's training. `transformers` cuts longer audio into
windows of 30 seconds, by the timestamps in Whisper's output. Whisper writes punctuation, capitals
and digits, so scoring needs `--normalize whisper`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from asrtool import torchaudio_adapter
from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.system import atomic

RATE = 16000
WINDOW = 30  # seconds


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--weights", required=True, help="hub name or folder of the model")
    options.add_argument(
        "--data", type=Path, required=True, help="data directory with audio at 16 kHz"
    )
    options.add_argument("--out", type=Path, required=True, help="folder to write `text` into")
    options.add_argument("--language", help="for multilingual models: the language, such as en")
    options.add_argument("--batch", type=int, default=8, help="utterances per batch")
    args = options.parse_args()
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(args.weights)
    model = WhisperForConditionalGeneration.from_pretrained(args.weights).eval()
    language = {} if args.language is None else {"language": args.language, "task": "transcribe"}
    complete(model.generation_config, processor.tokenizer, args.language)
    rows = sorted(datadir.read(args.data), key=lambda row: row.duration)
    texts, start = {}, time.process_time()
    for first in range(0, len(rows), args.batch):
        batch = rows[first : first + args.batch]
        samples = [read(row.audio, *row.stretch) for row in batch]
        is_long = max(map(len, samples)) > WINDOW * RATE
        inputs = processor(
            samples,
            sampling_rate=RATE,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=not is_long,
            padding="longest" if is_long else "max_length",
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, **language, return_timestamps=is_long, num_beams=1)
        for row, text in zip(
            batch, processor.batch_decode(tokens, skip_special_tokens=True), strict=True
        ):
            texts[row.id] = " ".join(text.split())
    args.out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(
        args.out / "text", "".join(f"{key} {text}\n" for key, text in sorted(texts.items()))
    )
    seconds = sum(row.duration for row in rows)
    used = time.process_time() - start
    print(f"{len(rows)} utterances, {seconds:.0f} s, {used / seconds:.3f} CPU s per s of audio")


def complete(config: object, tokenizer: object, language: str | None) -> None:
    """Set what `generate` needs about the vocabulary.

    A generation_config.json that was made from config.json lacks these values or has wrong ones.
    """
    ids = tokenizer.convert_tokens_to_ids
    config.decoder_start_token_id = ids("<|startoftranscript|>")
    config.eos_token_id = config.pad_token_id = config.bos_token_id = ids("<|endoftext|>")
    config.begin_suppress_tokens = [
        *tokenizer.encode(" ", add_special_tokens=False),
        ids("<|endoftext|>"),
    ]
    config.max_length = 448  # positions of the decoder
    config.no_timestamps_token_id = ids("<|notimestamps|>")
    config.is_multilingual = language is not None
    config.task_to_id = {"transcribe": ids("<|transcribe|>")}
    if language is not None:
        config.lang_to_id = {f"<|{language}|>": ids(f"<|{language}|>")}


def read(path: str, start: float, duration: float | None) -> np.ndarray:
    samples, rate = audio.load(path, start, duration)
    if rate != RATE:
        raise SystemExit(f"{path} has {rate} Hz; Whisper needs {RATE} Hz, so resample the set")
    return samples.reshape(-1).astype(np.float32)


if __name__ == "__main__":
    main()
