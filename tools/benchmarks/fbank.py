"""The speed of filter banks, compared with kaldi-native-fbank, torchaudio and lhotse.

    pip install kaldi-native-fbank lhotse urllib3          # in an environment of its own
    PYTHONPATH=. python tools/benchmarks/fbank.py

One thread; runs are interleaved. Prints the median of the process CPU seconds per hour of audio,
its ratio to asrtool's (above 1: asrtool is faster), and the difference from asrtool's features
(lhotse defines its filters differently). Peers that are not installed are left out with a message.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from asrtool import torchaudio_adapter
from asrtool.data.fbank import Fbank, FbankConfig

Extractor = Callable[[torch.Tensor], np.ndarray | torch.Tensor]
RATE = 16000


def native() -> Extractor:
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80

    def extract(samples: torch.Tensor) -> np.ndarray:
        fbank = kaldi_native_fbank.OnlineFbank(options)
        fbank.accept_waveform(RATE, (samples * 32768).tolist())
        fbank.input_finished()
        return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])

    return extract


def torchaudio() -> Extractor:
    kaldi = torchaudio_adapter.require().compliance.kaldi
    return lambda samples: kaldi.fbank(samples[None] * 32768, num_mel_bins=80, dither=0.0)


def lhotse() -> Extractor:
    from lhotse import Fbank as Peer
    from lhotse import FbankConfig as PeerConfig

    peer = Peer(PeerConfig(num_mel_bins=80, dither=0.0, snip_edges=True))
    return lambda samples: peer.extract((samples * 32768).numpy(), RATE)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=12.0, help="length of the utterance")
    options.add_argument("--rounds", type=int, default=40)
    args = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    samples = (
        torch.randn(int(args.seconds * RATE), generator=torch.Generator().manual_seed(0)) * 0.1
    )
    extractors: dict[str, Extractor] = {"asrtool": Fbank(FbankConfig())}
    for name, make in (
        ("kaldi-native-fbank", native),
        ("torchaudio.compliance", torchaudio),
        ("lhotse", lhotse),
    ):
        try:
            extractors[name] = make()
        except ImportError as error:
            print(f"{name}: left out, {error}")

    # a warm-up, too
    features = {name: torch.as_tensor(extract(samples)) for name, extract in extractors.items()}
    times: dict[str, list[float]] = {name: [] for name in extractors}
    for _ in range(args.rounds):
        for name, extract in extractors.items():
            start = time.process_time()
            extract(samples)
            times[name].append(time.process_time() - start)
    own = statistics.median(times["asrtool"])
    for name, measured in times.items():
        median, difference = (
            statistics.median(measured),
            compare(features["asrtool"], features[name]),
        )
        print(
            f"{name:22} {median / args.seconds * 3600:7.2f} CPU s per hour   x{median / own:5.2f} "
            f"  {difference}"
        )


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    if len(ours) != len(theirs):
        return f"{len(theirs)} frames instead of {len(ours)}"
    gap = (ours - theirs).abs()
    return f"difference: mean {gap.mean():.1e}, largest {gap.max():.1e}"


if __name__ == "__main__":
    main()
