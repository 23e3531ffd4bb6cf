"""The speed of training, compared with ESPnet's trainer: same features, model size and batches.

    ./run.sh librispeech --mini true --mini-size small --stop-stage 2
    cd egs/librispeech
    PYTHONPATH=../.. OMP_NUM_THREADS=1 python ../../tools/benchmarks/espnet_trainer.py \\
        --peer <python with espnet>

CPU seconds per epoch, one thread. Both train a Conformer of 4 layers, width 144, 4 heads,
feed-forward 288, kernel 15, with a conv2d stem of 144 channels and CTC on characters, in batches of
at most 60 seconds, from stored features, with SpecAugment and one loader process, and validate on
24 utterances. The cost of a trainer is the difference between a run of many epochs and a run of
two, so imports and the reading of configs do not count; loader processes do. Runs are interleaved.

    same       the same arithmetic: float32 and relative positions
    size       the same sizes; asrtool with rotary positions and bf16, which ESPnet's trainer has
               only on GPUs
    shipped    asrtool with the config of the recipe: as `size`, with a stem of 24 channels
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

MODEL = """
import importlib.machinery, sys
from unittest.mock import MagicMock
from asrtool import torchaudio_adapter
torchaudio_adapter.load()                         # torchaudio without its compiled extension
for name in ("g2p_en", "jaconv"):                 # for other languages, not used here
    stub = MagicMock()
    stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = stub
from espnet2.tasks.asr import ASRTask
ASRTask.main()
"""
SIZE = {
    "output_size": 144,
    "attention_heads": 4,
    "linear_units": 288,
    "num_blocks": 4,
    "cnn_module_kernel": 15,
}
SECONDS, BINS = 60, 80
# the peer's model and training, without options that depend on the data
PEER = f"""
    --token_type=char --input_size={BINS} --normalize=global_mvn --encoder=conformer
    --encoder_conf=dropout_rate=0.05 --encoder_conf=positional_dropout_rate=0.05
    --encoder_conf=attention_dropout_rate=0.0 --encoder_conf=input_layer=conv2d
    --encoder_conf=macaron_style=true --encoder_conf=rel_pos_type=latest
    --encoder_conf=pos_enc_layer_type=rel_pos
    --encoder_conf=selfattention_layer_type=rel_selfattn --encoder_conf=activation_type=swish
    --model_conf=ctc_weight=1.0 --model_conf=report_cer=false --model_conf=report_wer=false
    --specaug=specaug --specaug_conf=apply_time_warp=false
    --specaug_conf=freq_mask_width_range=[0,10] --specaug_conf=num_freq_mask=2
    --specaug_conf=time_mask_width_range=[0,15] --specaug_conf=num_time_mask=2
    --optim=adam --optim_conf=lr=0.001 --batch_type=numel --batch_bins={SECONDS * 100 * BINS}
    --ngpu=0 --num_workers=1 --num_att_plot=0 --use_matplotlib=false --use_tensorboard=false
    --keep_nbest_models=1 --best_model_criterion=[[valid,loss,min]]
"""
STEM = "model.encoder.downsamplers='{0: {type: conv2d, factor: 4, channels: 144}}'"
OURS = {
    "same": f"trainer.precision=float32 model.encoder.positions=relative {STEM}",
    "size": STEM,
    "shipped": "",
}


def prepare(dump: Path, vocab: Path, folder: Path) -> list[str]:
    """ESPnet's arguments for the sets `train` and `dev` of `dump`; writes its files to `folder`."""
    tokens = [line for line in (vocab / "tokens.txt").read_text().splitlines() if line]
    (folder / "tokens").write_text("\n".join(tokens) + "\n")
    arguments = []
    for role, name in (("train", "train"), ("valid", "dev")):
        write_set(dump / name, folder / role, len(tokens))
        arguments += [
            f"--{role}_data_path_and_name_and_type={folder}/{role}.feats.scp,speech,kaldi_ark",
            f"--{role}_data_path_and_name_and_type={folder}/{role}.text,text,text",
            f"--{role}_shape_file={folder}/{role}.speech_shape",
            f"--{role}_shape_file={folder}/{role}.text_shape",
        ]
    mean, std = np.array(json.loads((dump / "train" / "cmvn.json").read_text())["mean"]), 3.0
    np.savez(folder / "stats.npz", count=1, sum=mean, sum_square=mean**2 + std**2)
    return [
        *arguments,
        f"--token_list={folder}/tokens",
        f"--normalize_conf=stats_file={folder}/stats.npz",
        *(f"--encoder_conf={key}={value}" for key, value in SIZE.items()),
        *PEER.split(),
    ]


def write_set(source: Path, role: Path, tokens: int) -> None:
    """Write the files of a set, such as <role>.feats.scp; text shapes have the width `tokens`."""
    lines = {file: (source / file).read_text().splitlines() for file in ("feats.scp", "text")}
    frames = (source / "utt2num_frames").read_text().splitlines()
    shapes = [f"{line},{BINS}" for line in frames]
    texts = []
    for line in lines["text"]:
        key, text = line.split(" ", 1)
        texts.append(f"{key} {len(text)},{tokens}")
    for file, content in {**lines, "speech_shape": shapes, "text_shape": texts}.items():
        role.with_name(f"{role.name}.{file}").write_text("\n".join(content) + "\n")


def seconds(command: list[str]) -> float:
    """CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:300]}\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--peer", required=True, help="python of an environment with espnet and torch"
    )
    options.add_argument("--dump", type=Path, default=Path("dump/mini_small/fbank80"))
    options.add_argument("--vocab", type=Path, default=Path("data/mini_small/vocab_char"))
    options.add_argument(
        "--epochs", type=int, default=10, help="measured epochs, after two that do not count"
    )
    options.add_argument("--rounds", type=int, default=2)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        espnet = [args.peer, "-c", MODEL, *prepare(args.dump, args.vocab, folder)]

        def asrtool(setting: str, epochs: int) -> float:
            paths = [
                f"--train={args.dump}/train",
                f"--valid={args.dump}/dev",
                f"--vocab={args.vocab}",
            ]
            changes = f"trainer.epochs={epochs} trainer.average=1 {OURS[setting]}"
            command = [
                sys.executable,
                "-m",
                "asrtool.bin.train",
                "--config=conf/train_mini.yaml",
                *paths,
            ]
            return seconds(
                [*command, f"--exp={folder}/{setting}-{epochs}", "--force=true", f"--set={changes}"]
            )

        def peer(epochs: int) -> float:
            out = folder / f"espnet-{epochs}"
            shutil.rmtree(out, ignore_errors=True)
            return seconds([*espnet, f"--output_dir={out}", f"--max_epoch={epochs}"])

        runs = {
            "espnet": peer,
            **{
                setting: lambda epochs, setting=setting: asrtool(setting, epochs)
                for setting in OURS
            },
        }
        costs: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, train in runs.items():
                shutil.rmtree(folder / f"{name}-2", ignore_errors=True)
                shutil.rmtree(folder / f"{name}-{args.epochs + 2}", ignore_errors=True)
                costs[name].append((train(args.epochs + 2) - train(2)) / args.epochs)
                print(f"{name}: {costs[name][-1]:.2f} CPU seconds per epoch", flush=True)
        for name in OURS:
            ratios = [
                theirs / ours for theirs, ours in zip(costs["espnet"], costs[name], strict=True)
            ]
            print(f"{name}: {median(ratios):.2f} times ESPnet's speed")


if __name__ == "__main__":
    main()
